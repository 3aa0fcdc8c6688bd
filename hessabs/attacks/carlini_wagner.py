"""The attack of Carlini and Wagner in L2: minimise the size and the margin together, weighed by bisection."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import checks, losses, norms
from hessabs.attacks.given import given
from hessabs.attacks.rows import Problem, choose, iterate
from hessabs.checks import count, number
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params

_INSIDE = 0.999999  # an input at a bound has no finite arctanh
_PROGRESS = 0.9999  # a loss that is not below this part of itself a tenth of the steps ago has stalled
_GROWTH = 10.0  # of the weight while nothing has fallen


class _Rows(NamedTuple):
    example: Any  # the batch
    free: jax.Array  # like the inputs: arctanh of the point between the bounds
    opt_state: Any  # leaves (n, ...)
    weight: jax.Array  # (n,): c of the paper; like all numbers here at least float32
    lower: jax.Array  # (n,): the largest weight with which nothing fell
    upper: jax.Array  # (n,): the smallest weight with which it fell, or inf
    taken: jax.Array  # (n,), int32: steps with this weight
    checked: jax.Array  # (n,): the loss a tenth of the steps ago
    fell: jax.Array  # (n,), bool: whether it has fallen with this weight
    search: jax.Array  # (n,), int32: weights tried
    best: jax.Array  # like the inputs
    best_size: jax.Array  # (n,): its squared L2 distance, inf before the first success
    done: jax.Array  # (n,), bool


def carlini_wagner(
    *,
    steps: int = 1000,
    binary_search_steps: int = 9,
    learning_rate: float = 0.01,
    confidence: float = 0.0,
    initial_weight: float = 1e-3,
    bounds: tuple[float, float] = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make the Carlini-Wagner attack: the smallest L2 perturbation that Adam and a bisection find.

    For each example it minimises ``||x' - x||_2^2 + c max(confidence - lead, 0)``, lead being the ``margin`` of
    ``attacks.losses``, over ``x' = middle + half * tanh(w)``, which lies between the bounds by itself. c starts
    at ``initial_weight``, is multiplied by 10 until the example falls and bisected afterwards. Each example
    has its own c, its own Adam and its own pace: it goes on to the next c when its loss has not fallen by 1e-4
    of itself in a tenth of the steps. There is no epsilon.

    Args:
      steps: Most Adam steps with one c, at least 1.
      binary_search_steps: Values of c, at least 1.
      learning_rate: Of Adam, in units of w, above 0.
      confidence: By how much of a logit an example must have fallen, at least 0.
      initial_weight: The first c, above 0.
      bounds, inputs_key, loop: As in every attack (``hessabs.attacks``), but this one needs bounds.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch`` for a loss that carries its logits, of which labels
      and targets are read. An example that never fell, or had fallen before, is returned as it came. No random
      key.

    Raises:
      ValueError: As every attack.

    Example:
      >>> batch = {"image": jnp.array([[0.6, 0.4]]), "label": jnp.array([0])}
      >>> loss_fn = losses.margin(lambda w, x: x @ w)
      >>> found = carlini_wagner(steps=100)(loss_fn, jnp.eye(2), batch)["image"]
      >>> bool(jnp.allclose(found, jnp.array([[0.5, 0.5]]), atol=0.005))
      True

    References:
      Carlini and Wagner (2017), arXiv:1608.04644, sections V and VI-A; the parameters are those of their code.
    """
    steps, binary_search_steps = count(steps=steps), count(binary_search_steps=binary_search_steps)
    learning_rate = number("be positive and finite", learning_rate=learning_rate)
    initial_weight = number("be positive and finite", initial_weight=initial_weight)
    confidence = number("be at least 0 and finite", confidence=confidence)
    checked = checks.checked_bounds(bounds)
    if checked is None or not all(map(math.isfinite, checked)):
        raise ValueError(f"`bounds` must be (lowest, highest), finite, for carlini_wagner, got {bounds}.")
    bounds = checked

    @given(inputs_key, early_exit=True)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        logits_fn, spec = losses.parts(loss_fn, "carlini_wagner")
        checks.checked_inputs(loss_fn, params, batch, inputs_key, bounds, steps=steps)
        keys = {name: getattr(spec, name) for name in ("targeted", "label_key", "target_key")}
        lead = losses.margin(logits_fn, inputs_key=inputs_key, **keys)
        problem = (lead, params, trees.Static((bounds, inputs_key)))
        rows = _begin(problem, batch, initial_weight)
        step = Partial(_step, problem, (learning_rate, confidence, steps, binary_search_steps))
        return with_inputs(batch, inputs_key, iterate(step, rows, steps * binary_search_steps, loop).best)

    return attack


def _frame(x: jax.Array, bounds: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    low, high = norms.widened(trees.upcast(x), bounds)
    return (low + high) / 2, (high - low) / 2


def _start(x: jax.Array, bounds: tuple[float, float]) -> tuple[jax.Array, Any]:
    middle, half = _frame(x, bounds)
    free = jnp.arctanh((trees.upcast(x) - middle) / half * _INSIDE)
    return free, optax.scale_by_adam().init(free)


@programs.jit
def _begin(problem: Problem, batch: Any, weight: jax.Array) -> _Rows:
    lead, params, options = problem
    bounds, inputs_key = options.value
    inputs = get_inputs(batch, inputs_key)
    free, opt_state = jax.vmap(lambda x: _start(x, bounds))(inputs)
    _, fallen = losses.per_example(lead, params, batch, inputs_key)
    zeros, none = jnp.zeros(inputs.shape[0], free.dtype), jnp.zeros(inputs.shape[0], jnp.int32)
    weights, infinite = jnp.full_like(zeros, weight), jnp.full_like(zeros, jnp.inf)
    bisection = (weights, zeros, infinite, none, infinite, jnp.zeros_like(fallen), none)
    return _Rows(batch, free, opt_state, *bisection, best=inputs, best_size=infinite, done=fallen)


def _step(problem: Problem, numbers: tuple[Any, ...], rows: _Rows, i: jax.Array) -> _Rows:
    del i  # each example counts for itself
    lead_fn, params, options = problem
    bounds, inputs_key = options.value
    learning_rate, confidence, steps, binary_search_steps = numbers
    inputs = get_inputs(rows.example, inputs_key)
    middle, half = _frame(inputs, bounds)

    def total(free: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        point = norms.within((middle + half * jnp.tanh(free)).astype(inputs.dtype), inputs, bounds)
        moved_batch = with_inputs(rows.example, inputs_key, point)
        lead, fallen = losses.per_example(lead_fn, params, moved_batch, inputs_key)
        moved = trees.upcast(point) - trees.upcast(inputs)
        size = jnp.sum(moved**2, axis=tuple(range(1, moved.ndim)))
        success = fallen & (lead >= confidence)
        # Not the maximum with 0, which lets go of a tie that the network decides for the label.
        loss = size + rows.weight * jnp.where(success, 0, confidence - lead)
        return jnp.sum(loss), (loss, point, size, success)

    gradient, (loss, point, size, success) = jax.grad(total, has_aux=True)(rows.free)
    gradient = trees.finite_or_zero(gradient)
    better = success & (size < rows.best_size)
    fell = rows.fell | success
    taken = rows.taken + 1

    check = taken % jnp.maximum(steps // 10, 1) == 0
    finished = (taken >= steps) | (check & ~(loss < _PROGRESS * rows.checked))
    upper = jnp.where(finished & fell, jnp.minimum(rows.upper, rows.weight), rows.upper)
    lower = jnp.where(finished & ~fell, jnp.maximum(rows.lower, rows.weight), rows.lower)
    following = jnp.where(jnp.isfinite(upper), (lower + upper) / 2, rows.weight * _GROWTH)

    updates, opt_state = jax.vmap(optax.scale_by_adam().update)(gradient, rows.opt_state)
    anew = jax.vmap(lambda x: _start(x, bounds))(inputs)
    moved = (rows.free - learning_rate * updates, opt_state)
    free, opt_state = jax.tree.map(lambda fresh, old: choose(finished, fresh, old), anew, moved)
    search = rows.search + finished
    return _Rows(
        example=rows.example,
        free=free,
        opt_state=opt_state,
        weight=jnp.where(finished, following, rows.weight),
        lower=lower,
        upper=upper,
        taken=jnp.where(finished, 0, taken),
        checked=jnp.where(finished, jnp.inf, jnp.where(check, loss, rows.checked)),
        fell=fell & ~finished,
        search=search,
        best=choose(better, point, rows.best),
        best_size=jnp.where(better, size, rows.best_size),
        done=search >= binary_search_steps,
    )
