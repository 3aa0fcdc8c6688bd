"""A loss or params that are not finite: which update was it?"""

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.training.loop_state import Decision, LoopState
from hessabs.training.setup import Run


class NonFiniteError(FloatingPointError):
    """A loss or params that are not finite.

    Attributes:
        update: The update whose batch is to blame, as far as one can tell, from 1.
    """

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


def check_loss(run: Run, state: LoopState) -> None:
    """Check that every training loss so far was finite.

    Args:
      run: The run.
      state: Its state.

    Raises:
      NonFiniteError: Naming the update.
    """
    update = int(_largest(state.train.nonfinite_update))  # of all devices
    if update:
        # At the end of an epoch the position is already that of the next one.
        epoch = state.position.epoch + (state.position.index > 0)
        raise NonFiniteError(
            f"The training loss is not finite at update {update} (epoch {epoch}, batch size "
            f"{state.decision.batch_size}, learning rate {learning_rate(run, state.decision):g}); "
            "lower --lr, or the largest batch size.",
            update,
        )


def check_params(state: LoopState) -> None:
    """Check that the params are finite.

    Args:
      state: The state of a run between two updates.

    Raises:
      NonFiniteError: Naming the last update.
    """
    params = jax.device_get(state.train.params)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise NonFiniteError(
            f"The params are not finite after the last update, {state.updates}; lower --lr.", state.updates
        )


@jax.jit
def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(x)


def learning_rate(run: Run, decision: Decision) -> float:
    """Return the learning rate of a decision, in as many digits as a float32 has.

    Args:
      run: What is trained, whose config has the rate at the start.
      decision: Of the rule, for one update.

    Returns:
      The rate.
    """
    return float(f"{run.config.lr * decision.lr_scale:.7g}")
