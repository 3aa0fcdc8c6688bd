"""Several attacks in a row, each on the examples that all before it have left standing."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import programs, trees
from hessabs.attacks import losses, norms
from hessabs.attacks.apgd import apgd
from hessabs.attacks.checks import checked_ball, checked_inputs, checked_key
from hessabs.attacks.deepfool import deepfool
from hessabs.attacks.given import given
from hessabs.attacks.losses.carrying import class_parts, classes_of
from hessabs.attacks.losses.criteria import difference_of_logits
from hessabs.attacks.losses.examples import has_fallen
from hessabs.attacks.norms import Ball, Bounds, Norm
from hessabs.attacks.patterns import Layout
from hessabs.attacks.rivals import top_rivals
from hessabs.attacks.rows import choose
from hessabs.attacks.square import square
from hessabs.checks import count
from hessabs.inputs import get_inputs, with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params


def ensemble(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    num_targets: int = 3,
    queries: int = 1000,
    layout: Layout = "channels_last",
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make an ensemble without parameters to tune: APGD on three losses, DeepFool, and the square attack.

    In order: APGD on the cross-entropy; APGD on the difference-of-logits ratio (on the margin for fewer than 3
    classes); APGD on the ratio to each of the rival classes with the largest logits (from 4 classes on);
    DeepFool, of which what lies within epsilon counts (not in L1, which it does not know); the square attack on
    the margin. An example counts for as many as it takes until it falls.

    Args:
      epsilon, norm, steps, bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).
      num_targets: Rival classes to lead to, at least 0; at most all that there are.
      queries, layout: As for ``square``.

    Returns:
      ``attack(loss_fn, params, batch, key) -> batch`` for an untargeted loss that carries its logits, of which
      only labels and logits are used. An example that no member has felled is where the first one left it.

    Raises:
      ValueError: As every attack; when called, if the loss is targeted.

    Example:
      >>> batch = {"image": jnp.array([[0.6, 0.4]]), "label": jnp.array([0])}
      >>> loss_fn = losses.cross_entropy(lambda w, x: x @ w)
      >>> attack = ensemble(0.2, steps=10, queries=10)
      >>> found = attack(loss_fn, jnp.eye(2), batch, jax.random.key(0))["image"]
      >>> bool(found[0, 0] < found[0, 1])
      True

    References:
      Croce and Hein (2020), arXiv:2003.01690, section 5.
      Differs from AutoAttack: DeepFool in place of FAB, 3 targets instead of 9 and 1,000 queries instead of
      5,000 by default.
    """
    ball = checked_ball(epsilon, norm, bounds)
    num_targets = count(0, num_targets=num_targets)
    shared: dict[str, Any] = {"norm": norm, "bounds": bounds, "loop": loop}
    ascend = apgd(epsilon, steps=steps, **shared)
    search = square(epsilon, queries=queries, layout=layout, **shared)

    @given(inputs_key, early_exit=True)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        logits_fn, spec = class_parts(loss_fn, "ensemble")
        if spec.targeted:
            raise ValueError("ensemble is untargeted, got a loss with targeted=True; use apgd.")
        inputs = jnp.asarray(checked_inputs(loss_fn, params, batch, inputs_key, bounds))
        labels, _ = classes_of(spec, batch)
        key = checked_key(key, "The ensemble")
        rivals, standing = _look(loss_fn, params, batch, trees.Static(num_targets))
        num_classes = jax.eval_shape(logits_fn, params, inputs).shape[-1]
        ratio = losses.dlr if num_classes >= 3 else losses.margin
        members = [(ascend, losses.cross_entropy(logits_fn), labels), (ascend, ratio(logits_fn), labels)]
        if num_classes >= 4:
            led = losses.from_logits(logits_fn, _ratio_to_the_second, soft_labels=True)
            members += [(ascend, led, _weights(labels, rival, num_classes)) for rival in rivals.T]
        if norm != "l1":
            members += [(deepfool(**shared), losses.margin(logits_fn), labels)]
        members += [(search, losses.margin(logits_fn), labels)]

        point = inputs
        for number, (member, loss, classes) in enumerate(members):
            # What has fallen enters as it fell: the member finds nothing left to do there, and drops it.
            entering = choose(standing, inputs, point)
            left = member(loss, params, {"image": entering, "label": classes}, jax.random.fold_in(key, number))
            reached, fallen = _judge(loss_fn, params, batch, left["image"], ball)
            point = choose(standing & (fallen | (number == 0)), reached, point)
            standing = standing & ~fallen
        return with_inputs(batch, inputs_key, point)

    return attack


@programs.jit
def _look(
    loss_fn: LossFn, params: Params, batch: Any, num_targets: trees.Static
) -> tuple[jax.Array, jax.Array]:
    # The rivals of each example, and whether it stands.
    logits_fn, spec = losses.parts(loss_fn)
    logits = logits_fn(params, get_inputs(batch, spec.inputs_key))
    labels, _ = classes_of(spec, batch)
    rivals = top_rivals(logits, labels, min(num_targets.value, logits.shape[-1] - 1))
    return rivals, ~has_fallen(spec, logits, batch)


@programs.jit
def _judge(
    loss_fn: LossFn, params: Params, batch: Any, left: jax.Array, ball: Ball
) -> tuple[jax.Array, jax.Array]:
    # The points brought into the ball (DeepFool knows none), and which of them have fallen.
    logits_fn, spec = losses.parts(loss_fn)
    point = jax.vmap(lambda x, y: norms.restrict(y, x, ball))(get_inputs(batch, spec.inputs_key), left)
    return point, has_fallen(spec, logits_fn(params, point), batch)


def _weights(labels: jax.Array, rivals: jax.Array, num_classes: int) -> jax.Array:
    # Both classes in one leaf, as an untargeted loss wants it: the label weighs most, the rival second.
    return (2 * jax.nn.one_hot(labels, num_classes) + jax.nn.one_hot(rivals, num_classes)) / 3


def _ratio_to_the_second(logits: jax.Array, weights: jax.Array, targets: jax.Array | None) -> jax.Array:
    del targets
    classes = jax.lax.top_k(weights, 2)[1]
    return difference_of_logits(logits, classes[:, 0], classes[:, 1])
