"""Projected ascent from several starts: the engine of PGD and its kin.

A rule says how one point moves, given the value and the gradient there; the engine evaluates all points in one
pass of the network, keeps the best point of each example, and maps the rule over restarts and examples. The
first start runs alone; the other restarts then run side by side, for what the first one has not felled: most
examples fall to it, and one that has fallen needs no further step or restart.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import batch_axis, programs, trees
from hessabs.attacks import checks, norms
from hessabs.attacks.given import given
from hessabs.attacks.losses import examples
from hessabs.attacks.norms import Ball
from hessabs.attacks.rows import Problem, iterate
from hessabs.checks import count
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params


class Search(NamedTuple):
    """How an attack searches the ball, in the words of ``hessabs.attacks``; made by ``checked_search``."""

    steps: int
    inputs_key: str | int
    early_exit: bool
    eot: int | None
    loop: Loop | None
    restarts: int
    random_start: bool


class Here(NamedTuple):
    """One point of one example and what is known there; arrays have the shape of one input, or none."""

    inputs: Any  # the example
    point: Any
    value: Any
    gradient: Any
    i: Any  # the iteration, int32


class Rule(NamedTuple):
    """How one point of one example moves. Its arrays are traced: other values of them compile nothing."""

    init: Partial  # point -> state
    move: Partial  # (Here, state) -> (point, state)


class Best(NamedTuple):
    """The best point of each example so far: one that has fallen, else the one of the highest loss."""

    point: jax.Array  # (n, ...)
    value: jax.Array  # (n,), at least float32
    fallen: jax.Array  # (n,), bool


class _Rows(NamedTuple):
    example: Any  # the batch
    point: jax.Array  # (n, restarts, ...)
    state: Any  # of the rule; leaves (n, restarts, ...)
    best: Best
    done: jax.Array  # (n,), bool


def checked_search(
    steps: int,
    inputs_key: str | int,
    early_exit: bool,
    eot: int | None,
    loop: Loop | None,
    restarts: int = 1,
    random_start: bool = False,
) -> Search:
    """Make a search, or raise when one of its numbers is out of range."""
    steps, restarts, eot = count(steps=steps), count(restarts=restarts), examples.checked_draws(eot)
    if restarts > 1 and not random_start:
        raise ValueError(
            f"`restarts` from one and the same start do nothing, got {restarts}: random_start=True."
        )
    return Search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)


def make_attack(rule: Rule, ball: Ball, search: Search) -> Attack:
    """Make an attack of a rule."""
    steps, inputs_key, early_exit, eot, loop, restarts, random_start = search

    @given(inputs_key, early_exit=early_exit)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        inputs = checks.checked_inputs(loss_fn, params, batch, inputs_key, ball.bounds, steps=steps)
        if random_start:
            key = checks.checked_key(key, "A random start")
        examples.check_keys(eot, loss_fn, batch)
        problem = (trees.as_partial(loss_fn), params, trees.Static((inputs_key, eot)))
        best = _clean(problem, batch) if random_start else _unknown(inputs)
        step = Partial(_step, problem, rule, trees.Static(early_exit))
        for wave in ((0, 1), (1, restarts)):
            if wave[0] < wave[1]:
                options = trees.Static((wave, random_start, early_exit, inputs_key))
                rows = _begin(options, rule, ball, batch, best, key)
                # The last step evaluates the last point.
                best = iterate(step, rows, steps + 1, loop, finishes=early_exit).best
        return with_inputs(batch, inputs_key, best.point)

    return attack


def _unknown(inputs: jax.Array) -> Best:
    num_examples = inputs.shape[0]
    value = jnp.full(num_examples, -jnp.inf, jnp.promote_types(inputs.dtype, jnp.float32))
    return Best(jnp.asarray(inputs), value, jnp.zeros(num_examples, bool))


@programs.jit
def _clean(problem: Problem, batch: Any) -> Best:
    loss_fn, params, options = problem
    key, eot = options.value
    values, fallen, _ = examples.with_gradient(loss_fn, params, batch, key, eot, 0)
    return Best(get_inputs(batch, key), values, fallen)


@programs.jit
def _begin(options: trees.Static, rule: Rule, ball: Ball, batch: Any, best: Best, key: Any) -> _Rows:
    wave, random_start, early_exit, inputs_key = options.value
    inputs = get_inputs(batch, inputs_key)

    def start(x: jax.Array, example: jax.Array, restart: jax.Array) -> jax.Array:
        if not random_start:
            return x
        own = jax.random.fold_in(jax.random.fold_in(key, restart), example)
        return norms.restrict(x + norms.random_in_ball(own, x, ball.epsilon, ball.norm), x, ball)

    starts = jax.vmap(jax.vmap(start, (None, None, 0)), (0, 0, None))
    point = starts(inputs, jnp.arange(inputs.shape[0]), jnp.arange(*wave))
    state = jax.vmap(jax.vmap(rule.init))(point)
    return _Rows(batch, point, state, best, best.fallen & early_exit)


def _step(problem: Problem, rule: Rule, early_exit: trees.Static, rows: _Rows, i: jax.Array) -> _Rows:
    loss_fn, params, options = problem
    key, eot = options.value
    num_restarts = rows.point.shape[1]
    repeated = batch_axis.map_examples(lambda x: jnp.repeat(x, num_restarts, axis=0), rows.example)
    flat = rows.point.reshape(-1, *rows.point.shape[2:])
    measured = examples.with_gradient(loss_fn, params, with_inputs(repeated, key, flat), key, eot, i)
    value, fallen, gradient = (x.reshape(-1, num_restarts, *x.shape[1:]) for x in measured)
    best = jax.vmap(_better)(rows.best, rows.point, value, fallen)
    move = jax.vmap(jax.vmap(rule.move, (Here(None, 0, 0, 0, None), 0)), (Here(0, 0, 0, 0, None), 0))
    point, state = move(Here(get_inputs(rows.example, key), rows.point, value, gradient, i), rows.state)
    return _Rows(rows.example, point, state, best, rows.done | (best.fallen & early_exit.value))


def _better(best: Best, point: jax.Array, value: jax.Array, fallen: jax.Array) -> Best:
    # One example: the best so far against its points after this step.
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    values = jnp.concatenate([best.value[None], value])
    has_fallen = jnp.concatenate([best.fallen[None], fallen])
    any_fallen = jnp.any(has_fallen)
    # A point that has fallen at a value of minus infinity is still before one that has not fallen.
    candidates = jnp.maximum(values, jnp.finfo(values.dtype).min)
    winner = jnp.argmax(jnp.where(has_fallen == any_fallen, candidates, -jnp.inf))
    chosen = jnp.where(winner == 0, best.point, point[jnp.maximum(winner - 1, 0)])
    return Best(chosen, values[winner], any_fallen)
