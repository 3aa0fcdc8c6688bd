"""The square attack: random search that only asks for the loss, never for its gradient."""

from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import norms, patterns
from hessabs.attacks.ascent import Best
from hessabs.attacks.checks import checked_ball, checked_inputs, checked_key
from hessabs.attacks.given import given
from hessabs.attacks.losses.examples import per_example
from hessabs.attacks.norms import Ball, Bounds, Norm
from hessabs.attacks.patterns import Layout
from hessabs.attacks.rows import Problem, choose, iterate
from hessabs.checks import count, require, require_one_of
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where the squares halve


class _Rows(NamedTuple):
    example: Any  # the batch
    number: jax.Array  # (n,), int32: which example it is, for its random numbers
    best: Best
    done: jax.Array  # (n,), bool


def square(
    epsilon: float,
    *,
    norm: Norm = "linf",
    queries: int = 5000,
    share: float = 0.8,
    layout: Layout = "channels_last",
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make the square attack: change a random square, and keep the change where the loss has risen.

    It follows no gradient, so a network whose gradients vanish or mislead does not withstand it for that. It
    starts from vertical stripes (L-infinity) or a tiling of bumps (L2 and L1). An example stops where it has
    fallen.

    Args:
      epsilon, bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).
      norm: ``"linf"``: each square becomes plus or minus epsilon, by channel; ``"l2"`` or ``"l1"``: each square
        gets a bump, paid for by the perturbation of another square.
      queries: Evaluations of each example, at least 1, beside that of the clean one. The sizes of the squares
        follow from it.
      share: Part of the image that the first squares cover, in (0, 1]; halved nine times on the way.
      layout: How an input lies: ``"channels_last"``, (height, width, channels); ``"channels_first"``,
        (channels, height, width); or ``"vector"``, any shape whose entries have no neighbours: the squares
        are random sets of entries then. An input of two axes is an image without channels (a single row or
        column: a signal, with blocks for squares), one of one axis a vector.

    Returns:
      ``attack(loss_fn, params, batch, key) -> batch``; the key is needed.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> square(0.25, queries=20)(loss, jnp.array([2.0, -1.0]), batch, jax.random.key(0))["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Andriushchenko et al. (2019), arXiv:1912.00049, Algorithms 1 to 3; ``share`` as in AutoAttack; for L1,
      Croce and Hein (2021), arXiv:2103.01208, section 5.
      Differs from the paper: the start counts only if its loss is above that of the clean example.
    """
    ball = checked_ball(epsilon, norm, bounds)
    queries = count(queries=queries)
    require("lie in (0, 1]", share=share)
    require_one_of(get_args(Layout), layout=layout)

    @given(inputs_key, early_exit=True)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        inputs = checked_inputs(loss_fn, params, batch, inputs_key, bounds)
        key = checked_key(key, "The square attack")
        image = jax.eval_shape(lambda x: patterns.as_image(x[0], layout), inputs)
        sides = side_lengths(queries, share, image.shape)
        problem = (trees.as_partial(loss_fn), params, trees.Static((layout, inputs_key)))
        step = Partial(_step, problem, ball, sides, key)
        rows = iterate(step, _begin(problem, batch), queries, loop)
        return with_inputs(batch, inputs_key, rows.best.point)

    return attack


def side_lengths(queries: int, share: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return the side of the square of each query.

    Example:
      >>> side_lengths(10_000, 0.8, (28, 28, 1))[[1, 20, 100, 300, 9000]]
      array([25, 18, 13,  9,  1], dtype=int32)
    """
    height, width, _ = shape
    halvings = np.searchsorted(_HALVINGS, np.arange(queries) / queries * 10_000)
    area = share * height * width / 2.0**halvings
    thin = min(height, width) == 1
    sides = np.round(area if thin else np.sqrt(area))
    return np.clip(sides, 1, (max if thin else min)(height, width)).astype(np.int32)


@programs.jit
def _begin(problem: Problem, batch: Any) -> _Rows:
    loss_fn, params, options = problem
    _, inputs_key = options.value
    inputs = get_inputs(batch, inputs_key)
    best = Best(inputs, *per_example(loss_fn, params, batch, inputs_key))
    return _Rows(batch, jnp.arange(inputs.shape[0], dtype=jnp.int32), best, best.fallen)


def _step(problem: Problem, ball: Ball, sides: jax.Array, key: jax.Array, rows: _Rows, i: jax.Array) -> _Rows:
    loss_fn, params, options = problem
    layout, inputs_key = options.value
    epsilon, norm = ball.epsilon, ball.norm
    inputs = get_inputs(rows.example, inputs_key)
    side = jnp.asarray(sides)[i]
    vector = patterns.is_vector(inputs.shape[1:], layout)

    def propose(number: jax.Array, x: jax.Array, point: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, number), i)
        image = patterns.as_image(trees.upcast(point) - trees.upcast(x), layout)
        if vector:  # a block of them is then any set of entries
            order = jax.random.permutation(jax.random.fold_in(own, 1), image.shape[1])
            image = image[:, order]
        if norm == "linf":
            start = patterns.stripes(own, image.shape, epsilon)
            changed = patterns.flip(own, image, side, epsilon)
        else:
            start = patterns.tiles(own, image.shape, epsilon, norm)
            changed = patterns.move_mass(own, image, side, epsilon, norm)
        image = jnp.where(i == 0, start, changed)
        if vector:
            image = jnp.zeros_like(image).at[:, order].set(image)
        moved = patterns.as_input(image, x.shape, layout)
        return norms.restrict((x + moved).astype(x.dtype), x, ball)

    point = jax.vmap(propose)(rows.number, inputs, rows.best.point)
    value, fallen = per_example(loss_fn, params, with_inputs(rows.example, inputs_key, point), inputs_key)
    better = fallen | (value > rows.best.value)
    best = jax.tree.map(lambda new, old: choose(better, new, old), Best(point, value, fallen), rows.best)
    return rows._replace(best=best, done=best.fallen)
