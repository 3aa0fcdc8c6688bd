"""What is learnt: params and how to draw them, a loss with its weight, the data, and what can be looked at.

Training needs ``init``, ``loss`` and ``train``; evaluation and spectra ``loss`` and ``test``; predictions and
attacks ``logits``. Nobody else knows what a network or an image is. ``hessabs.training.tasks`` makes a task of
a flax, NNX or Equinox module, or of plain functions, in one line.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import losses
from hessabs.data import Source
from hessabs.typing import LossFn, Params


class LossOutput(NamedTuple):
    """What a loss says of a batch."""

    mean: jax.Array  # shape (), float32: in nats
    weight: jax.Array  # shape (), float32: what the mean is over: examples, unmasked tokens
    model_state: Any  # after the batch; as it was in evaluation mode
    metrics: Mapping[str, jax.Array] = {}  # shape () each: means over the same weight, "accuracy" say
    outputs: Any = None  # of the network, (n, classes) logits say, for objectives that compare them


Loss = Callable[[Params, Any, Any, jax.Array, bool], LossOutput]
"""``loss(params, model_state, batch, key, train) -> LossOutput``; ``train`` is static."""

Logits = Callable[[Params, Any, Any], jax.Array]
"""``logits(params, model_state, inputs) -> (n, classes)``, in evaluation mode."""


def as_it_is(batch: Any) -> Any:
    """Return a batch as it is."""
    return batch


class Task(NamedTuple):
    """What is learnt.

    A batch is a dict of pytrees whose leaves have a leading example axis; the stream adds ``"weight"``, float32
    (n,), 0 for an example that only fills a batch up. A loss must heed it: ``fit`` checks.
    """

    name: str
    init: Callable[[jax.Array], tuple[Params, Any]]  # key -> (params, model state; {} without any)
    loss: Loss
    train: Source
    test: Source
    validation: Source | None = None  # held out of the training data, evaluated at the end
    prepare: Callable[[Any], Any] = as_it_is  # on the device, of every batch: uint8 to [0, 1], augmentation
    logits: Logits | None = None  # of classes: attacks raise their cross-entropy, whatever the loss is
    inputs_key: str = "image"  # what predictions are made from and attacks perturb
    label_key: str = "label"
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    bounds: tuple[float, float] | None = None  # of prepared inputs, where continuous: attacks keep them
    augmentation: str = "none"  # what the stream draws for each training example, of ``data.AUGMENTATIONS``
    num_workers: int = (
        0  # processes that read a source which is not in memory, see ``data.reader``; 0 for threads
    )
    partition: Callable[[Mesh, Params], Any] | None = None  # (mesh, params) -> a tree of PartitionSpec
    settings: Mapping[str, Any] = {}  # what made it, for the workdir: flags by name

    @property
    def attackable(self) -> bool:
        """Whether attacks and predictions of classes make sense."""
        return self.logits is not None and self.bounds is not None

    def class_name(self, label: int) -> str:
        """Name a class, by its number where the data have no names."""
        return str(label) if self.class_names is None else self.class_names[label]


def evaluation_loss(task: Task, model_state: Any) -> LossFn:
    """Return the loss in evaluation mode, for curvature: ``loss_fn(params, prepared batch) -> scalar``.

    A pytree: new values of the model state compile nothing.
    """
    return Partial(_mean, trees.Static(task.loss), model_state)


def evaluation_weight(task: Task, params: Params, model_state: Any) -> Callable[[Any], jax.Array]:
    """Return what the mean is over, for curvature over batches: ``weight(prepared batch) -> scalar``."""
    return Partial(_weight, trees.Static(task.loss), model_state, params)


def attack_loss(task: Task, model_state: Any) -> LossFn:
    """Return the cross-entropy that carries its logits, for attacks on prepared batches; a pytree."""
    if not task.attackable:
        raise ValueError(
            f"The task {task.name} cannot be attacked: its inputs are not continuous (`bounds`), or it has no "
            "`logits`. Where a loss of your own is of logits of classes, say so: bounds=(0, 1)."
        )
    logits = Partial(_logits, trees.Static(task.logits), model_state)
    return losses.cross_entropy(logits, inputs_key=task.inputs_key, label_key=task.label_key)


def check_task(task: Task, batch: Any) -> None:
    """Check a task on a batch as the stream gives it, computing nothing but the loss of five batches.

    ValueError: the loss returns something else than a ``LossOutput`` of scalars, changes the structure of the
    model state, does not heed the weight of the examples, or is a sum over them; it does not take the data for
    evaluation; the task can be attacked, as it says, and its logits or labels are none of classes.
    """
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    trees.check_floating(params, "params")
    keys = [path for path, leaf in trees.by_path(model_state).items() if trees.is_key(leaf)]
    if keys:
        raise ValueError(
            f"The model state of {_named(task)} holds a random key at {keys[0]}, which cannot be saved: the "
            "loss is given a key of its own for each micro-batch."
        )

    def loss(train: bool, params: Params, model_state: Any, batch: Any) -> Any:
        return task.loss(params, model_state, task.prepare(batch), jax.random.key(0), train)

    for train in (True, False):
        out = jax.eval_shape(functools.partial(loss, train), params, model_state, batch)
        if not isinstance(out, LossOutput):
            raise ValueError(
                f"The loss of {_named(task)} must return LossOutput(mean, weight, model_state, metrics), "
                f"got {type(out).__name__}: a mean alone does not say what it is over."
            )
        if "loss" in out.metrics:
            raise ValueError(f"No metric of {_named(task)} may be called 'loss': that is the mean itself.")
        for name, value in {"mean": out.mean, "weight": out.weight, **out.metrics}.items():
            if getattr(value, "shape", None) != ():
                raise ValueError(f"`{name}` of the loss of {_named(task)} must be a scalar array, got {value}.")
        trees.check_like(out.model_state, model_state, "model_state of the loss", "model_state", dtypes=True)
    for name, source in {"test": task.test, "validation": task.validation}.items():
        if source is None or _shapes(example := source.take(np.arange(1))) == _shapes(batch):
            continue
        example = {**example, "weight": np.ones(1, np.float32)}
        try:
            jax.eval_shape(functools.partial(loss, False), params, model_state, example)
        except Exception as error:
            raise ValueError(
                f"The {name} data of {_named(task)} do not fit its loss. An example for training is "
                f"{_shapes(batch)}, one of these {_shapes(example)}: {type(error).__name__}: {error}"
            ) from error
    if task.attackable:
        try:
            jax.eval_shape(lambda p, s, b: attack_loss(task, s)(p, task.prepare(b)), params, model_state, batch)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{error} By its `logits` and `bounds` {_named(task)} is of classes, and can be attacked; "
                "make it with logits=None if it is not."
            ) from error
    _check_weight(task, jax.tree.map(np.asarray, batch))


def check_bounds(task: Task, batch: Any) -> None:
    """Refuse prepared inputs outside of the bounds of their task: ruined by some attacks, spared by others."""
    if task.bounds is not None:
        low, high = (float(x) for x in _extremes(batch[task.inputs_key]))
        slack = 1e-6 * (high - low)
        if low < task.bounds[0] - slack or high > task.bounds[1] + slack:
            raise ValueError(
                f"The prepared inputs of {_named(task)} lie in [{low:g}, {high:g}], outside of its `bounds` "
                f"{task.bounds}, which attacks keep: make the task with bounds=(lowest, highest), "
                "(-jnp.inf, jnp.inf) for none."
            )


@jax.jit
def _extremes(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.min(inputs), jnp.max(inputs)


def _check_weight(task: Task, whole: dict[str, Any]) -> None:
    size, params_and_state = len(whole["weight"]), jax.jit(task.init)(jax.random.key(0))
    places = np.arange(size)
    half = {**whole, "weight": np.where(places < size // 2, 0, whole["weight"])}
    # The same, but for what stands where the weight is 0.
    rest = np.where(places < size // 2, places + size // 2, places)
    other = {**jax.tree.map(lambda x: x[rest], whole), "weight": half["weight"]}
    none = {**whole, "weight": np.zeros_like(whole["weight"])}
    functions = trees.Static(False), Partial(task.loss), Partial(task.prepare)
    loss = functools.partial(_mean_and_weight, *functions, *params_and_state)
    first = {**whole, "weight": np.where(places < size // 2, whole["weight"], 0)}
    outs = [loss(each) for each in (whole, half, other, none, first)]
    means, weights = ([float(x) for x in values] for values in zip(*outs, strict=True))
    heeds = weights[0] <= 0 or weights[3] < weights[0]  # a batch of which all is masked tells nothing
    if size > 1 and not (heeds and all(_same(*pair[1:3]) for pair in (weights, means))):
        raise ValueError(
            f"The loss of {_named(task)} does not heed batch['weight'], which is 0 for examples that fill a "
            f"batch up: of {size} examples its weight is {weights[0]:g}, and {weights[3]:g} with all at 0; its "
            f"mean is {means[1]:g} with the first half at 0, and {means[2]:g} with others in their place. "
            "(Outputs and targets of shapes that broadcast, (n,) and (n, 1) say, look like that, too.)"
        )
    both = means[1] + means[4]
    counted = min(weights[1], weights[4]) > 0 and abs(means[0]) > 1e-6 and math.isfinite(means[0] + both)
    if counted and _same(means[0], both):
        raise ValueError(
            f"The loss of {_named(task)} is a sum over examples, not a mean: {means[0]:g} of {size} of them, "
            f"{means[4]:g} and {means[1]:g} of their halves. Divide it by its weight."
        )


def adds_up(task: Task, params: Params, model_state: Any, whole: dict[str, Any]) -> bool:
    """Tell whether the training loss of a batch is that of its halves together: no example sees another."""
    first = np.arange(len(whole["weight"])) < len(whole["weight"]) // 2
    masks = np.ones_like(first), first, ~first
    batches = [{**whole, "weight": np.where(mask, whole["weight"], 0)} for mask in masks]
    of = trees.Static(True), Partial(task.loss), Partial(task.prepare), params, model_state
    sums = [float(mean) * float(weight) for mean, weight in (_mean_and_weight(*of, each) for each in batches)]
    return abs(sums[0] - sums[1] - sums[2]) <= 1e-4 * abs(sums[0]) + 1e-6 or not math.isfinite(sums[0])


@programs.jit
def _mean_and_weight(
    train: trees.Static, loss: Partial, prepare: Partial, params: Params, model_state: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
    out = loss(params, model_state, prepare(batch), jax.random.key(0), train.value)
    return out.mean, out.weight


def _shapes(example: Any) -> str:
    read = {name: value for name, value in example.items() if name != "weight"}  # which the stream adds
    return ", ".join(f"{path} {x.dtype}{list(x.shape[1:])}" for path, x in trees.by_path(read).items())


def _named(task: Task) -> str:
    made_by = task.settings.get("factories", {}).get("task")
    return f"the task {task.name}" + (f" of {made_by['path']}:{made_by['name']}" if made_by else "")


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-3 * abs(one) + 1e-6 or not math.isfinite(one + other)


def _evaluate(loss: Loss, params: Params, model_state: Any, batch: Any) -> LossOutput:
    return loss(params, model_state, batch, jax.random.key(0), False)


def _mean(loss: trees.Static, model_state: Any, params: Params, batch: Any) -> jax.Array:
    return _evaluate(loss.value, params, model_state, batch).mean


def _weight(loss: trees.Static, model_state: Any, params: Params, batch: Any) -> jax.Array:
    return _evaluate(loss.value, params, model_state, batch).weight


def _logits(logits: trees.Static, model_state: Any, params: Params, inputs: Any) -> jax.Array:
    result: jax.Array = logits.value(params, model_state, inputs)
    return result
