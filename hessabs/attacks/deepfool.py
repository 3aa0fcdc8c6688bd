"""DeepFool: step to the nearest boundary of the linearised network, again and again."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import losses, norms
from hessabs.attacks.checks import checked_inputs
from hessabs.attacks.given import given
from hessabs.attacks.losses.carrying import class_parts, classes_of
from hessabs.attacks.losses.examples import has_fallen
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.rivals import checked_walk, leads, top_rivals
from hessabs.attacks.rows import Problem, choose, iterate
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params

_NUDGE = 1e-4  # added to the distance, in the units of the batch, so that a step is never too short to count


class _Rows(NamedTuple):
    example: Any  # the batch
    rivals: jax.Array  # (n, num_rivals), int32
    total: jax.Array  # like the inputs: the sum of the steps, before overshoot and bounds
    point: jax.Array  # like the inputs
    done: jax.Array  # (n,), bool


def deepfool(
    *,
    norm: Norm = "l2",
    steps: int = 50,
    num_rivals: int | None = None,
    overshoot: float = 0.02,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make DeepFool: a small perturbation that takes each example just over a boundary.

    Each step goes to the nearest of the planes on which the linearised rivals equal the label; the steps are
    summed, and the sum is stretched by ``1 + overshoot`` from the clean example. There is no epsilon.

    Args:
      norm: ``"l2"`` or ``"linf"``: the norm to keep small.
      steps, bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).
      num_rivals: Other classes to look at, those with the largest logits at the clean example; 9, or all there
        are, by default.
      overshoot: At least 0.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch`` for a loss that carries its logits, of which only
      the labels are read. An example that has not fallen is where its walk ended. No random key.

    Raises:
      ValueError: As every attack; when called, if the loss is targeted, or there are fewer than ``num_rivals``
        other classes.

    Example:
      >>> batch = {"image": jnp.array([[0.6, 0.4]]), "label": jnp.array([0])}
      >>> found = deepfool()(losses.margin(lambda w, x: x @ w), jnp.eye(2), batch)["image"]
      >>> bool(jnp.allclose(found, jnp.array([[0.498, 0.502]]), atol=1e-3))
      True

    References:
      Moosavi-Dezfooli et al. (2015), arXiv:1511.04599, Algorithm 2 and equations 10 and 11.
      Differs from the paper: clipped to the bounds at every step.
    """
    steps, num_rivals, overshoot, bounds = checked_walk(norm, steps, num_rivals, overshoot, bounds)

    @given(inputs_key, early_exit=True)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        if class_parts(loss_fn, "deepfool")[1].targeted:
            raise ValueError("deepfool is untargeted, got a loss with targeted=True; use trust_region.")
        inputs = checked_inputs(loss_fn, params, batch, inputs_key, bounds, steps=steps)
        rows = _begin((loss_fn, params, trees.Static((num_rivals, inputs_key))), batch)
        step = Partial(_step, (loss_fn, params, trees.Static((norm, bounds, inputs_key))), overshoot)
        return with_inputs(batch, inputs_key, iterate(step, rows, steps, loop).point.astype(inputs.dtype))

    return attack


@programs.jit
def _begin(problem: Problem, batch: Any) -> _Rows:
    loss_fn, params, options = problem
    num_rivals, inputs_key = options.value
    inputs = get_inputs(batch, inputs_key)
    logits_fn, spec = losses.parts(loss_fn)
    logits = logits_fn(params, inputs)
    fallen = has_fallen(spec, logits, batch)
    rivals = top_rivals(logits, classes_of(spec, batch)[0], num_rivals)
    return _Rows(batch, rivals, jnp.zeros_like(inputs), inputs, fallen)


def _step(problem: Problem, overshoot: jax.Array, rows: _Rows, i: jax.Array) -> _Rows:
    del i
    loss_fn, params, options = problem
    norm, bounds, inputs_key = options.value
    logits_fn, spec = losses.parts(loss_fn)
    labels, _ = classes_of(spec, rows.example)
    logits, ahead, gradients = leads(logits_fn, params, rows.point, labels, rows.rivals)

    def move(
        x: jax.Array, total: jax.Array, ahead: jax.Array, gradients: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        slopes = jax.vmap(lambda g: norms.slope(g, norm))(gradients)
        distance = jnp.where(slopes > 0, jnp.abs(ahead) * trees.safe_inverse(slopes), jnp.inf)
        nearest = jnp.argmin(distance)
        length = jnp.where(jnp.isfinite(distance[nearest]), distance[nearest] + _NUDGE, 0)
        total = (total + length * norms.steepest(gradients[nearest], norm)).astype(x.dtype)
        return total, norms.within((x + (1 + overshoot) * total).astype(x.dtype), x, bounds)

    total, point = jax.vmap(move)(get_inputs(rows.example, inputs_key), rows.total, ahead, gradients)
    fallen = has_fallen(spec, logits, rows.example)
    return rows._replace(total=total, point=choose(fallen, rows.point, point), done=fallen)
