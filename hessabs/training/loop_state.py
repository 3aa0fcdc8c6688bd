"""All that the rest of a run depends on, between two updates."""

from typing import Any, NamedTuple

import jax
import optax

from hessabs.batch_size import ControllerState
from hessabs.data import Position
from hessabs.training.mesh import place
from hessabs.training.objectives import Objective
from hessabs.training.run import Run
from hessabs.training.step import TrainState
from hessabs.typing import Params


class Decision(NamedTuple):
    """What a rule decided, as numbers of the host; it holds for a whole update."""

    batch_size: int
    lr_scale: float
    adversarial_fraction: float

    @classmethod
    def of(cls, objective: Objective, controller: ControllerState) -> "Decision":
        """Read the decision of a rule; a robust objective may fix the adversarial fraction."""
        fraction = objective.fraction
        if fraction is None:
            fraction = float(controller.adversarial_fraction) if objective.perturb is not None else 0.0
        return cls(int(controller.batch_size), float(controller.lr_scale), fraction)


class Drop(NamedTuple):
    """Batches that are not trained on, because one of them led to a loss that is not finite."""

    update: int  # the update that the first of them would have made, from 1
    batches: int


class LoopState(NamedTuple):
    """All that the rest of a run depends on: the order of the data is a function of seed and position."""

    train: TrainState
    controller: ControllerState  # on the host
    decision: Decision  # of the next update
    updates: int  # train.updates, known to the host
    samples: int  # examples trained on, and those dropped
    position: Position  # of the stream
    eigenvector: Params  # of the last measurement, where the next one starts
    measured: tuple[float, float]  # (eigenvalue, residual) last measured in this epoch, else nan
    last_eigenvalue: float | None  # of the last measurement, for the progress bar
    drops: tuple[Drop, ...]  # still to come, by update


def start(run: Run) -> LoopState:
    """Make the state of a run before its first update."""
    key = jax.random.fold_in(jax.random.key(run.settings.seed), 1)
    controller: Any = jax.device_get(run.rule.init())
    params = run.state.params
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    eigenvector = optax.tree.random_like(key, shapes, jax.random.normal)
    if run.mesh is not None:
        eigenvector = jax.tree.map(lambda v, p: place(jax.device_get(v), p.sharding), eigenvector, params)
    nan = float("nan")
    return LoopState(
        train=run.state,
        controller=controller,
        decision=Decision.of(run.objective, controller),
        updates=0,
        samples=0,
        position=Position(0, 0),
        eigenvector=eigenvector,
        measured=(nan, nan),
        last_eigenvalue=None,
        drops=(),
    )
