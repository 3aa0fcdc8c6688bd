"""All that the rest of a run depends on."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from hessabs.batch_size import ControllerState
from hessabs.data import Position
from hessabs.training.devices.mesh import on_all
from hessabs.training.setup import Run
from hessabs.training.state import TrainState
from hessabs.typing import Params


class Decision(NamedTuple):
    """What a controller decided, as numbers of the host; it holds for a whole update."""

    batch_size: int
    lr_scale: float
    adversarial_fraction: float


class Drop(NamedTuple):
    """Batches that are not trained on, because one of them led to a loss that is not finite."""

    update: int  # the update that the first of them would have made, from 1
    batches: int


class LoopState(NamedTuple):
    """All that the rest of a run depends on: the order of the data is a function of seed and position."""

    train: TrainState
    controller: ControllerState  # on the host
    decision: Decision  # of the update that is being accumulated
    accumulated: int  # micro-batches in train.gradient
    updates: int  # train.updates, known to the host
    samples: int  # examples trained on, and those dropped
    position: Position  # of the stream
    eigenvector: Params  # of the last measurement, where the next one starts
    measured: tuple[float, float]  # (eigenvalue, residual) last measured in this epoch, else nan
    last_eigenvalue: float | None  # of the last measurement, for the progress bar
    drops: tuple[Drop, ...]  # still to come, by update
    dropping: int  # micro-batches still to drop of the one that has begun


def start(run: Run) -> LoopState:
    """Make the state of a run before its first micro-batch.

    Args:
      run: What ``set_up`` made.

    Returns:
      A ``LoopState``.
    """
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
    controller = jax.device_get(run.controller.init())
    return LoopState(
        train=run.state,
        controller=controller,
        decision=decide(run, controller),
        accumulated=0,
        updates=0,
        samples=0,
        position=Position(0, 0),
        eigenvector=on_all(optax.tree.random_like(key, run.state.params, jax.random.normal), run.mesh),
        measured=(float("nan"), float("nan")),
        last_eigenvalue=None,
        drops=(),
        dropping=0,
    )


def decide(run: Run, controller: ControllerState) -> Decision:
    """Read the decision of a controller.

    Args:
      run: The run; a robust objective may fix the adversarial fraction.
      controller: The state of its controller.

    Returns:
      A ``Decision``.
    """
    fraction = run.objective.fraction
    if fraction is None:
        fraction = float(controller.adversarial_fraction)
    return Decision(int(controller.batch_size), float(controller.lr_scale), fraction)


def begin_drop(run: Run, state: LoopState) -> LoopState:
    """Begin to drop a batch if the coming update is one whose batch is to be dropped.

    What was accumulated for that update goes too.

    Args:
      run: The run.
      state: Its state before a micro-batch.

    Returns:
      The state, whose ``dropping`` says how many micro-batches to pass over.
    """
    if state.dropping or not state.drops or state.updates + 1 < state.drops[0].update:
        return state
    drop, *later = state.drops
    size = -(-state.decision.batch_size // run.micro_batch_size)
    train: Any = state.train
    train = train._replace(**{name: _zeros(getattr(train, name)) for name in _ACCUMULATORS})
    return state._replace(
        train=train, accumulated=0, drops=tuple(later), dropping=drop.batches * size - state.accumulated
    )


_ACCUMULATORS = ("gradient", "weight", "square", "parts")


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), tree)
