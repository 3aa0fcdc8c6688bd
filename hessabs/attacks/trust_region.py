"""The trust-region attack: small steps towards one rival class, as long as the network looks linear."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import checks, losses, norms
from hessabs.attacks.given import given
from hessabs.attacks.losses.carrying import class_parts, classes_of
from hessabs.attacks.losses.criteria import take_class
from hessabs.attacks.losses.examples import has_fallen
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.rivals import checked_walk, leads, top_rivals
from hessabs.attacks.rows import Problem, choose, iterate
from hessabs.checks import number, require_one_of
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params

Rival = Literal["best", "hardest"]
Ratio = Literal["corrected", "published"]
RADIUS_RANGE: dict[Norm, tuple[float, float]] = {"l2": (0.0005, 0.05), "linf": (0.0001, 0.01)}
"""The radii between which the published code adapts."""
_NUDGE = 1e-4  # added to every step, in the units of the batch, so that the boundary is crossed, not reached
_GOOD, _POOR, _FACTOR = 0.9, 0.5, 1.2


class _Rows(NamedTuple):
    example: Any  # the batch
    point: jax.Array  # like the inputs
    rival: jax.Array  # (n,), int32
    radius: jax.Array  # (n,), at least float32
    margin: jax.Array  # (n,): z_label - z_rival before the last step
    label_logit: jax.Array  # (n,): z_label before the last step
    predicted: jax.Array  # (n,): what the last step was to take off the margin (off it per length: published)
    done: jax.Array  # (n,), bool


def trust_region(
    radius: float,
    *,
    norm: Norm = "l2",
    adaptive: bool = True,
    radius_range: tuple[float, float] | None = None,
    ratio: Ratio = "corrected",
    rival: Rival = "best",
    num_rivals: int | None = None,
    steps: int = 100,
    overshoot: float = 0.02,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make the trust-region attack: walk to the boundary of one rival class in steps of a trusted length.

    With ``m = z_label - z_rival`` and g the gradient of -m, a step has the length
    ``(1 + overshoot) (min(radius, m / ||g||_q) + 1e-4)`` along the steepest direction of the norm (q is its
    dual), and is clipped to the bounds. The radius grows by 1.2 where ``m`` fell by more than 0.9 of what the
    linear model said, and shrinks by 1.2 where it fell by less than 0.5 of it. The rival is chosen once, among
    those with the largest logits, by the distance ``m / ||g||_q`` to its boundary.

    Args:
      radius: Length of a step in ``norm``, to begin with if ``adaptive``; in the units of the batch, above 0.
        There is no epsilon: an example walks until it falls.
      norm: ``"l2"`` or ``"linf"``.
      adaptive: Let the radius follow the network; else it stays.
      radius_range: (smallest, largest) adapted radius; ``RADIUS_RANGE[norm]``, widened to hold ``radius``, by
        default. The published numbers are for inputs divided by their standard deviation.
      ratio: ``"corrected"``: fall of the margin over ``g . step``, the step as clipped. ``"published"``: the
        published code's, fall of the label's logit alone over the step length, which also becomes the radius.
      rival: ``"best"``, the nearest, or ``"hardest"``, the farthest. A loss with targets has its own.
      num_rivals: How many rivals to choose among; 9, or all there are, by default.
      overshoot: At least 0.
      steps, bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch`` for a loss that carries its logits, of which only
      labels and targets are read. An example that has not fallen is where its walk ended. No random key.

    Raises:
      ValueError: As every attack; when called, if there are fewer than ``num_rivals`` other classes.

    Example:
      >>> batch = {"image": jnp.array([[0.6, 0.4]]), "label": jnp.array([0])}
      >>> loss_fn = losses.margin(lambda w, x: x @ w)
      >>> found = trust_region(0.05, norm="linf")(loss_fn, jnp.eye(2), batch)["image"]
      >>> bool(jnp.allclose(found, jnp.array([[0.498, 0.502]]), atol=1e-3))
      True

    References:
      Yao et al. (2018), arXiv:1812.06371, section 3. Differs from the paper: first order only. Differs from the
      published code: bounds are given, not the extremes of the batch, and the ratio is corrected by default.
    """
    radius = number("be positive and finite", radius=radius)
    steps, num_rivals, overshoot, bounds = checked_walk(norm, steps, num_rivals, overshoot, bounds)
    require_one_of(get_args(Ratio), ratio=ratio)
    require_one_of(get_args(Rival), rival=rival)
    if radius_range is None:
        radius_range = min(radius, RADIUS_RANGE[norm][0]), max(radius, RADIUS_RANGE[norm][1])
    if not 0 < radius_range[0] <= radius <= radius_range[1]:
        raise ValueError(f"`radius_range` must be (smallest, largest) around {radius}, got {radius_range}.")
    radii = (float(radius_range[0]), float(radius_range[1])) if adaptive else (radius, radius)

    @given(inputs_key, early_exit=True)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        class_parts(loss_fn, "trust_region")  # it must carry them
        inputs = checks.checked_inputs(loss_fn, params, batch, inputs_key, bounds, steps=steps)
        rows = _begin((loss_fn, params, trees.Static((norm, rival, num_rivals, inputs_key))), batch, radius)
        problem = (loss_fn, params, trees.Static((norm, ratio, bounds, inputs_key)))
        step = Partial(_step, problem, radii, overshoot)
        return with_inputs(batch, inputs_key, iterate(step, rows, steps, loop).point.astype(inputs.dtype))

    return attack


@programs.jit
def _begin(problem: Problem, batch: Any, radius: jax.Array) -> _Rows:
    loss_fn, params, options = problem
    norm, rival, num_rivals, inputs_key = options.value
    inputs = get_inputs(batch, inputs_key)
    logits_fn, spec = losses.parts(loss_fn)
    logits = logits_fn(params, inputs)
    fallen = has_fallen(spec, logits, batch)
    labels, targets = classes_of(spec, batch)
    if targets is None:
        candidates = top_rivals(logits, labels, num_rivals)
        _, ahead, gradients = leads(logits_fn, params, inputs, labels, candidates)
        slopes = jax.vmap(jax.vmap(lambda g: norms.slope(g, norm)))(gradients)
        worst = jnp.inf if rival == "best" else -jnp.inf  # no way leads to a class without a gradient
        distance = jnp.where(slopes > 0, -ahead * trees.safe_inverse(slopes), worst)
        chosen = (jnp.argmin if rival == "best" else jnp.argmax)(distance, axis=1)
        targets = jnp.take_along_axis(candidates, chosen[:, None], axis=1)[:, 0]
    zeros = jnp.zeros(inputs.shape[0], trees.upcast(logits).dtype)
    radii = jnp.full_like(zeros, radius)
    return _Rows(batch, inputs, targets.astype(jnp.int32), radii, zeros, zeros, zeros, fallen)


def _step(problem: Problem, radii: tuple[Any, Any], overshoot: Any, rows: _Rows, i: jax.Array) -> _Rows:
    loss_fn, params, options = problem
    norm, ratio, bounds, inputs_key = options.value
    logits_fn, spec = losses.parts(loss_fn)
    labels, targets = classes_of(spec, rows.example)
    # A targeted example leaves whichever class is the best but its target.
    own = labels if targets is None else None
    logits, ahead, gradient = leads(logits_fn, params, rows.point, own, rows.rival[:, None])
    margin, label_logit = -ahead[:, 0], take_class(trees.upcast(logits), rows.rival) - ahead[:, 0]
    fall = rows.margin - margin if ratio == "corrected" else rows.label_logit - label_logit
    agreement = fall * trees.safe_inverse(rows.predicted)
    factor = jnp.where(agreement > _GOOD, _FACTOR, jnp.where(agreement < _POOR, 1 / _FACTOR, 1.0))
    radius = jnp.where(i == 0, rows.radius, jnp.clip(rows.radius * factor, *radii))

    def move(
        x: jax.Array, clean: jax.Array, g: jax.Array, margin: jax.Array, radius: jax.Array
    ) -> tuple[jax.Array, ...]:
        distance = jnp.maximum(margin, 0) * trees.safe_inverse(norms.slope(g, norm))
        length = (1 + overshoot) * (jnp.minimum(radius, distance) + _NUDGE)
        length = jnp.where(jnp.isnan(margin), 0, length)  # the network says nothing here
        moved = norms.within((x + length * norms.steepest(g, norm)).astype(x.dtype), clean, bounds)
        return moved, trees.vdot(g, moved - x), length

    clean = get_inputs(rows.example, inputs_key)
    point, predicted, length = jax.vmap(move)(rows.point, clean, gradient[:, 0], margin, radius)
    fallen = has_fallen(spec, logits, rows.example)
    return rows._replace(
        point=choose(fallen, rows.point, point),
        radius=radius if ratio == "corrected" else length,
        margin=margin,
        label_logit=label_logit,
        predicted=predicted if ratio == "corrected" else length,
        done=fallen,
    )
