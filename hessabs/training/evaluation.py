"""Mean loss and metrics of a network over all examples of a split, clean or under attack."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from hessabs import loops, programs, trees
from hessabs.data import Source, eval_batches
from hessabs.training.mesh import split_whole
from hessabs.training.task import Task, attack_loss, check_bounds
from hessabs.typing import Attack, LossFn, Params

Evaluation = Callable[[Params, Any], dict[str, float]]
"""``evaluation(params, model_state) -> means by name``, fractions where they are accuracies."""


_RESIDENT_BYTES = 2**30  # batches of no more than these stay on the device


def evaluate(
    task: Task,
    params: Params,
    model_state: Any,
    *,
    split: str = "test",
    attack: Attack | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 1000,
) -> dict[str, float]:
    """Evaluate a network: its mean loss and every metric of the task, over all examples of a split.

    The means are over what the loss weighs: examples, unmasked tokens.

    Args:
      task: What was learnt.
      params, model_state: The network; ``model_state`` is {} without any.
      split: ``"test"``, ``"validation"`` or ``"train"`` (without augmentation).
      attack: An attack of ``hessabs.attacks`` on the inputs first, made with ``bounds=task.bounds`` and
        ``inputs_key=task.inputs_key`` where these are not its defaults; or None.
      key: Random key of an attack of many steps with random starts: Python drives its steps, and it stops where
        an example has fallen. An attack without a key is compiled into the evaluation.
      mesh: Devices over which each batch is split, or None.
      batch_size: Examples in one pass of the network.

    Returns:
      ``"loss"`` in nats, and each metric by its name. An accuracy is a fraction in [0, 1]; the records of a run
      have it in percent (``100 *``).

    Raises:
      ValueError: If there is no such split, nothing in it counts, the task cannot be attacked, or inputs lie
        outside of its bounds, or those of the attack.

    Example:
      >>> from hessabs import data, models
      >>> from hessabs.training import tasks
      >>> task = tasks.linen(models.mlp(10), data.load("digits"))
      >>> sorted(evaluate(task, *task.init(jax.random.key(0))))
      ['accuracy', 'loss']
    """
    sources = {"test": task.test, "validation": task.validation, "train": task.train}
    source = sources.get(split)
    if source is None:
        there = ", ".join(name for name, source in sources.items() if source is not None)
        raise ValueError(f"`split` must be one of {there}, those that the task {task.name} has, got {split!r}.")
    evaluation = make_evaluation(task, source, attack=attack, key=key, mesh=mesh, batch_size=batch_size)
    if attack is not None and key is None and task.attackable:
        _look_at_values(task, params, model_state, source, attack, batch_size)
    return evaluation(params, model_state)


def _look_at_values(
    task: Task, params: Params, model_state: Any, source: Source, attack: Attack, batch_size: int
) -> None:
    """Let an attack refuse inputs outside of its own bounds: compiled into an evaluation it sees no values."""
    batch = task.prepare(next(eval_batches(source, min(batch_size, len(source)))))
    flat = np.asarray(batch[task.inputs_key]).reshape(len(batch["weight"]), -1)
    places = np.array([flat.min(axis=1).argmin(), flat.max(axis=1).argmax()])
    attack(attack_loss(task, model_state), params, jax.tree.map(lambda x: x[places], batch))


def make_evaluation(
    task: Task,
    source: Source,
    *,
    attack: Attack | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    batch_size: int = 1000,
) -> Evaluation:
    """Make ``evaluate`` a function of params and model state, to be called again and again.

    It compiles once, and keeps the batches on the device where they are small.
    """
    one = jax.tree.leaves(source.take(np.arange(1)))
    is_small = len(source) * sum(np.asarray(leaf).nbytes for leaf in one) <= _RESIDENT_BYTES
    resident: list[Any] = []
    checked = attack is None  # whether the inputs lie in the bounds of the task

    def batches() -> Iterator[Any]:
        every = eval_batches(source, min(batch_size, len(source)))
        return (jax.device_put(batch) if mesh is None else split_whole(batch, mesh) for batch in every)

    def evaluation(params: Params, model_state: Any) -> dict[str, float]:
        nonlocal checked
        if is_small and not resident:
            resident.extend(batches())
        prepare, loss = Partial(task.prepare), Partial(task.loss)
        loss_fn = None if attack is None else attack_loss(task, model_state)
        compiled = None if attack is None or key is not None else (trees.as_partial(attack), loss_fn)
        means, ahead = [], deque[Any]()
        for number, batch in enumerate(resident or batches()):
            if not checked:
                check_bounds(task, _prepare(prepare, batch))
            if attack is not None and loss_fn is not None and key is not None:
                batch = attack(loss_fn, params, _prepare(prepare, batch), jax.random.fold_in(key, number))
                means.append(_means(None, loss, None, params, model_state, batch))
            else:
                means.append(_means(prepare, loss, compiled, params, model_state, batch))
            loops.keep_pace(ahead, means[-1])
        checked = True
        return _average(task, jax.device_get(means))

    return evaluation


@programs.jit
def _prepare(prepare: Partial, batch: Any) -> Any:
    return prepare(batch)


@programs.jit
def _means(
    prepare: Partial | None,
    loss: Partial,
    attack: tuple[Partial, LossFn] | None,
    params: Params,
    model_state: Any,
    batch: Any,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    batch = batch if prepare is None else prepare(batch)
    if attack is not None:
        batch = attack[0](attack[1], params, batch)
    out = loss(params, model_state, batch, jax.random.key(0), False)
    return out.weight, {"loss": out.mean, **out.metrics}


def _average(task: Task, means: list[tuple[Any, Mapping[str, Any]]]) -> dict[str, float]:
    weights = np.array([weight for weight, _ in means], np.float64)
    counts = weights > 0  # a batch that weighs nothing may have a mean of 0 / 0
    if not counts.any():
        raise ValueError(f"The loss of the task {task.name} weighs nothing in this split; is all of it masked?")
    values = {name: np.array([each[name] for _, each in means], np.float64)[counts] for name in means[0][1]}
    weights = weights[counts]
    return {name: float(_unrounded(weights * v).sum() / weights.sum()) for name, v in values.items()}


def _unrounded(totals: np.ndarray) -> np.ndarray:
    """Return whole numbers where float32 may have rounded them: how many are classified rightly, say."""
    whole = np.rint(totals)
    return np.where(np.abs(totals - whole) <= 2.0**-22 * np.abs(totals), whole, totals)
