"""ABS and ABSA: the batch grows where the top Hessian eigenvalue falls."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, Count, where
from hessabs.batch_size.rule import Decision, Rate, Rule, make_controller, with_adversarial
from hessabs.batch_size.sizes import grow_by, whole_batches
from hessabs.batch_size.statistics import hear, is_valid
from hessabs.checks import require, require_one_of

Signal = Literal["eigenvalue", "eigenvalue_times_lr"]
Block = Literal["all", "last_layer"]


class _Memory(NamedTuple):
    reference: jax.Array  # shape (), float32: the signal that the next one is held against
    reference_error: jax.Array  # shape (), float32: its standard error
    has_reference: jax.Array  # shape (), bool
    since_growth: jax.Array  # shape (), int32: measurements that were due since the batch grew
    measure_at: Count  # examples at the next measurement
    owed: jax.Array  # shape (), bool: whether one that was due has not been told yet


def hessian_adaptive(
    initial: int,
    maximum: int,
    *,
    measure_every: int,
    eigenvalue_decrease: float = 2.0,
    growth_factor: float = 2.0,
    patience: int | None = 10,
    signal: Signal = "eigenvalue",
    block: Block = "all",
    noise_factor: float = 2.0,
    compatibility: Literal["hessianflow"] | None = None,
) -> Controller:
    """Grow the batch when the top Hessian eigenvalue falls (ABS).

    At each measurement: if ``signal <= reference / eigenvalue_decrease``, or the batch has not grown for
    ``patience`` measurements, the batch grows by ``growth_factor``, and the learning rate with it. The
    reference is the signal that last fell far enough, at first the first one measured. At the maximum,
    measurements end.

    A negative, zero, subnormal or non-finite eigenvalue never grows the batch, is never the reference, and does
    not let the patience end; the measurement after it may. NaN stands for "not measured": it counts towards the
    patience, and the measurement may be told until the next is due, with a state whose ``measure`` is True.

    Args:
      initial, maximum: As in ``timer`` (B0 and the largest batch).
      measure_every: Examples between measurements (n), at least 1. The published code measures once an epoch.
      eigenvalue_decrease: The fall that counts (alpha), above 1.
      growth_factor: Growth of the batch (beta), above 1.
      patience: Measurements without growth after which the batch grows anyway (kappa), or None for never.
      signal: ``"eigenvalue"``, or ``"eigenvalue_times_lr"``: times the learning-rate scale at the time.
      block: The Hessian that ``controller.measures`` names, ``"all"`` parameters or the ``"last_layer"``.
      noise_factor: With ``Observation.standard_error`` (see ``mean_and_error``) a fall only counts if it is
        larger than this many standard errors of the difference, at least 0.
      compatibility: ``"hessianflow"`` reproduces the rule of the published code for comparison, quirks
        included: any eigenvalue is believed (a negative one counts as a fall, a first NaN is the reference for
        ever), the patience ends on any, and a growth that rounds to nothing still counts as one.

    Returns:
      A ``Controller``. ``state.measure`` says when ``Observation.eigenvalue`` must be fresh.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no eigenvalue.

    Example:
      >>> controller = hessian_adaptive(128, 512, measure_every=1000)
      >>> state = controller.init()
      >>> for samples, eigenvalue in ((1000, 8.0), (2000, 5.0), (3000, 4.0)):
      ...     state = controller.update(Observation(samples, eigenvalue), state)
      >>> int(state.batch_size), float(state.lr_scale)
      (256, 2.0)

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1. Differs from the published code: measurements are
      counted in examples, and invalid eigenvalues (above) are guarded against.
    """
    require_sizes(initial, maximum)
    require("be at least 1 example", measure_every=measure_every)
    require("be above 1", eigenvalue_decrease=eigenvalue_decrease, growth_factor=growth_factor)
    if patience is not None and patience < 1:
        raise ValueError(f"`patience` must be at least 1 measurement, or None, got {patience}.")
    require("be at least 0", noise_factor=noise_factor)
    require_one_of(get_args(Signal), signal=signal)
    require_one_of(get_args(Block), block=block)
    require_one_of(("hessianflow", None), compatibility=compatibility)
    published = compatibility == "hessianflow"
    ratios = {eigenvalue_decrease, growth_factor}
    if published and (len(ratios) > 1 or signal != "eigenvalue"):
        raise ValueError(
            'compatibility="hessianflow" has one ratio for `eigenvalue_decrease` and `growth_factor`, and the '
            f"plain eigenvalue, got {sorted(ratios)} and {signal!r}."
        )
    most_measurements = 2**31 - 1 if patience is None else patience

    def decide(batch_size: jax.Array, memory: _Memory, rate: Rate, grew: Any) -> Decision:
        measure_at = where(batch_size < maximum, memory.measure_at, NEVER)
        return Decision(batch_size, rate.of(batch_size), memory, measure_at=measure_at, grew=grew)

    def init(rate: Rate) -> Decision:
        zero, when = functools.partial(jnp.zeros, ()), Count.of(measure_every)
        memory = _Memory(zero(jnp.float32), zero(jnp.float32), zero(bool), zero(jnp.int32), when, zero(bool))
        return decide(jnp.int32(initial), memory, rate, False)

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        memory: _Memory = state.rule
        eigenvalue, due, told, later = hear(observation, state, measure_every, "hessian_adaptive")
        error = jnp.float32(0) if observation.standard_error is None else observation.standard_error
        error = jnp.asarray(error, jnp.float32)
        valid = due if published else told & is_valid(eigenvalue) & (error >= 0)
        if signal == "eigenvalue_times_lr":
            lr_scale = state.lr_scale * observation.lr_scale
            eigenvalue, error = eigenvalue * lr_scale, error * lr_scale

        first = valid & ~memory.has_reference
        fell = valid & memory.has_reference & (eigenvalue <= memory.reference * (1 / eigenvalue_decrease))
        if not published:
            noise = noise_factor * jnp.hypot(error, memory.reference_error)
            fell &= memory.reference - eigenvalue >= noise
        since_growth = memory.since_growth + due
        grow = fell | (valid & (since_growth >= most_measurements))

        factor = state.batch_size // initial
        rounded = jnp.floor(factor * growth_factor).astype(jnp.int32)
        grown = rounded if published else grow_by(factor, growth_factor)
        batch_size = jnp.where(grow, whole_batches(grown, initial, maximum), state.batch_size)
        memory = _Memory(
            reference=jnp.where(fell | first, eigenvalue, memory.reference),
            reference_error=jnp.where(fell | first, error, memory.reference_error),
            has_reference=memory.has_reference | first,
            since_growth=jnp.where(grow, 0, since_growth),
            **later,
        )
        return decide(batch_size, memory, rate, grow)

    rule = Rule(init, update, (initial, maximum), "eigenvalue" if block == "all" else "last_layer_eigenvalue")
    return make_controller(rule._replace(only_decrease=growth_factor if published else None))


def absa(
    initial: int,
    maximum: int,
    *,
    adversarial_fraction: float = 0.2,
    fraction_decrease: float = 2.0,
    adversarial_until: int | None = None,
    **options: Any,
) -> Controller:
    """Grow the batch as ABS does, and train with adversarial examples that get fewer at each growth (ABSA).

    Args:
      initial, maximum: As in ``hessian_adaptive``.
      adversarial_fraction: Fraction of each batch to replace by adversarial examples (gamma), in [0, 1].
      fraction_decrease: Divides the fraction at each growth (omega), see ``with_adversarial``.
      adversarial_until: Examples after which it is 0 (tau); None for never. In the paper, half of the training.
      **options: As ``hessian_adaptive``; ``measure_every`` is required.

    Returns:
      A ``Controller`` that measures the top eigenvalue.

    Raises:
      ValueError: As ``hessian_adaptive``.

    Example:
      >>> controller = absa(128, 512, measure_every=1000)
      >>> state = controller.init()
      >>> for samples, eigenvalue in ((1000, 8.0), (2000, 4.0)):
      ...     state = controller.update(Observation(samples, eigenvalue), state)
      >>> int(state.batch_size), round(float(state.adversarial_fraction), 6)
      (256, 0.1)

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1.
    """
    rule = hessian_adaptive(initial, maximum, **options)
    return with_adversarial(rule, adversarial_fraction, decrease=fraction_decrease, until=adversarial_until)
