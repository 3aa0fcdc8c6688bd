"""Ways to run a controller over the same updates: a Python loop, jit one call at a time, and one scan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.batch_size import Controller, ControllerState, GradientStatistics, Observation

Observe = Callable[..., Observation]


SQUARE = np.float32(2)


def eigenvalue(samples, value, square=SQUARE):
    del square
    return Observation(samples, eigenvalue=value)


def gradient(samples, value, square=SQUARE):
    """Two parts of 24 examples whose mean gradient has the square 2, with a spread of value / 64."""
    spread = value * np.float32(1 / 64)
    statistics = GradientStatistics(
        np.int32(24), np.int32(2), square + spread, square, square * square + spread
    )
    return Observation(samples, gradient=statistics)


def observer(controller: Controller) -> Observe:
    return gradient if controller.measures == "gradient" else eigenvalue


def host(
    controller: Controller,
    values: Sequence[float],
    observe: Observe | None = None,
    *,
    update: Any = None,
    state: ControllerState | None = None,
    samples: int = 0,
) -> list[ControllerState]:
    """One update of the params per value; the controller sees the value where it asked for one, else NaN."""
    observe = observer(controller) if observe is None else observe
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


def scan(controller: Controller, observe: Observe | None = None) -> Callable[..., ControllerState]:
    """The same as one jitted function of the values, from the start or from a state; the states are stacked."""
    observe = observer(controller) if observe is None else observe

    # The square is an argument: as a constant the compiler would move it out of the rule's own arithmetic.
    def step(carry, inputs):
        (samples, state), (value, square) = carry, inputs
        samples = samples + state.batch_size
        told = jnp.where(state.measure, value, jnp.nan)
        new = controller.update(observe(samples, told, square), state)
        due = samples >= state.observe_at
        state = jax.tree.map(lambda n, o: jnp.where(due, n, o), new, state)
        return (samples, state), state

    @jax.jit
    def run(values, squares, state, samples):
        return jax.lax.scan(step, (samples, state), (values, squares))[1]

    first = jax.device_get(controller.init())

    def start(values, state=first, samples=0):
        values = np.asarray(values, np.float32)
        return jax.device_get(run(values, np.full_like(values, SQUARE), state, np.int32(samples)))

    return start


def stack(states: Sequence[ControllerState]) -> ControllerState:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def assert_same_bits(left: Any, right: Any) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)}: {a} != {b}"
