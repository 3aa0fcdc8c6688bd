"""Ways to run a controller over the same updates: a Python loop, jit one call at a time, and one scan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.batch_size import Controller, ControllerState, Observation

Observe = Callable[[Any, Any], Observation]


def eigenvalue(samples, value):
    return Observation(samples, eigenvalue=value)


def host(
    controller: Controller,
    values: Sequence[float],
    observe: Observe = eigenvalue,
    *,
    update: Any = None,
    state: ControllerState | None = None,
    samples: int = 0,
) -> list[ControllerState]:
    """One update of the parameters per value; the controller sees the value where it asked for one, else NaN."""
    state = controller.init() if state is None else state
    update = controller.update if update is None else update
    states = []
    for value in values:
        samples += int(state.batch_size)
        if samples >= int(state.observe_at):
            told = np.float32(value if bool(state.measure) else np.nan)
            state = update(observe(np.int32(samples), told), state)
        states.append(state)
    return states


def scan(controller: Controller, observe: Observe = eigenvalue) -> Callable[[Any], ControllerState]:
    """The same as a function of the values that may be jitted; the states are stacked."""

    def step(carry, value):
        samples, state = carry
        samples = samples + state.batch_size
        told = jnp.where(state.measure, value, jnp.nan)
        new = controller.update(observe(samples, told), state)
        due = samples >= state.observe_at
        state = jax.tree.map(lambda n, o: jnp.where(due, n, o), new, state)
        return (samples, state), state

    def run(values):
        return jax.lax.scan(step, (jnp.zeros((), jnp.int32), controller.init()), values)[1]

    return jax.jit(run)


def stack(states: Sequence[ControllerState]) -> ControllerState:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def assert_same_bits(left: Any, right: Any) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)}: {a} != {b}"
