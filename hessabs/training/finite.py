"""A loss or params that are not finite: which update was it?"""

import jax
import jax.numpy as jnp

from hessabs.training.loop_state import Decision, LoopState
from hessabs.training.run import Run


class NonFiniteError(FloatingPointError):
    """A loss or params that are not finite.

    Attributes:
        update: The update whose batch is to blame, as far as one can tell, from 1.
    """

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


def check_loss(run: Run, state: LoopState, epoch: int | None = None) -> None:
    """Raise ``NonFiniteError`` unless every training loss was finite; ``epoch`` is one that has ended."""
    update = int(state.train.nonfinite_update)
    if update:
        rate = learning_rate(run, state.decision, state.samples)
        # At the end of an epoch the position is already that of the next one.
        epoch = epoch or state.position.epoch + (state.position.index > 0)
        raise NonFiniteError(
            f"The training loss is not finite at update {update} (epoch {epoch}, batch size "
            f"{state.decision.batch_size}, learning rate {rate:g}); lower --lr, or the largest batch size.",
            update,
        )


def check_params(state: LoopState) -> None:
    """Raise ``NonFiniteError`` unless the params are finite."""
    if not bool(_all_finite(state.train.params)):
        raise NonFiniteError(
            f"The params are not finite after the last update, {state.updates}; lower --lr.", state.updates
        )


@jax.jit
def _all_finite(params: object) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def learning_rate(run: Run, decision: Decision, samples: int) -> float:
    """Return the learning rate after so many examples, in as many digits as a float32 has."""
    return float(f"{run.optimizer.lr * decision.lr_scale * run.schedule(samples):.7g}")
