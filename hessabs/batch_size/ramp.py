"""The batch that the noise of the gradient or the fall of the learning rate asks for, whichever is larger."""

from collections.abc import Callable

import jax.numpy as jnp

from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, where
from hessabs.batch_size.growth import growths, peak
from hessabs.batch_size.noise import gradient_noise_scale
from hessabs.batch_size.rule import Decision, Rate, Rule, make_controller, rule_of
from hessabs.batch_size.table import schedule


def ramp(
    initial: int,
    maximum: int,
    *,
    measure_every: int,
    lr_schedule: Callable[[int], float] | None = None,
    total: int | None = None,
    scale: float = 2.0,
    average_over: int = 8,
    growth_factor: float = 2.0,
) -> Controller:
    """Grow the batch with the gradient noise scale, and at least as the learning rate falls.

    Below a few noise scales a larger batch saves updates at next to no loss, so the batch follows
    ``gradient_noise_scale``; where the schedule has lowered the rate by more than that, it grows as ``seesaw``
    does, for noise that a lower rate would average away may as well be averaged by the batch. It never falls,
    so the noise is heard from the end of the warm-up on, and not before ``average_over`` measurements: that of
    an untrained network is often large, and falls. Measure often, the two estimates are free.

    Args:
      initial: Examples per update at the start, at least two parts of an update.
      maximum, growth_factor: As in ``timer``.
      measure_every, average_over: As in ``gradient_noise_scale``.
      lr_schedule, total: As in ``seesaw``; None, both, for the noise scale alone.
      scale: Batch size in noise scales, above 0: by the trade-off of McCandlish et al. a batch of 1 takes twice
        the updates of an endless one and twice the examples of a tiny one, one of 2 takes 1.5 and 3 times. The
        default was chosen by hand among 1, 2, 4 and 8, with one seed, on held-out images of a perceptron.

    Returns:
      A ``Controller`` that measures ``"gradient"``.

    Raises:
      ValueError: As ``gradient_noise_scale`` and ``seesaw``, except that a schedule need not fall; if one of
        ``lr_schedule`` and ``total`` is given alone.

    Example:
      >>> from hessabs.batch_size import GradientStatistics
      >>> rule = ramp(128, 1024, measure_every=100, lr_schedule=lambda samples: 1 - samples / 1000, total=1000)
      >>> no_noise = GradientStatistics(64, 2, mean_square=1.0, square_mean=1.0)
      >>> states = [rule.update(Observation(x, gradient=no_noise), rule.init()) for x in (0, 300)]
      >>> [int(state.batch_size) for state in states]
      [128, 256]

    References:
      McCandlish et al. (2018), arXiv:1812.06162; Meterez et al. (2025), arXiv:2510.14717. The rule is this
      library's own.
    """
    if (lr_schedule is None) != (total is None):
        raise ValueError("`lr_schedule` and `total` go together, got one of them.")
    lr_schedule, total = lr_schedule or (lambda samples: 1.0), 1 if total is None else total
    table = growths(initial, maximum, lr_schedule=lr_schedule, total=total, growth_factor=growth_factor)
    noise = rule_of(
        gradient_noise_scale(
            initial,
            maximum,
            measure_every=measure_every,
            scale=scale,
            average_over=average_over,
            growth_factor=growth_factor,
            start=max(average_over * measure_every, peak(lr_schedule, total)),
        )
    )
    decay = rule_of(schedule(list(table.values()), list(table)[1:]))

    def decide(by_noise: Decision, by_decay: Decision, rate: Rate) -> Decision:
        batch_size = jnp.maximum(by_noise.batch_size, by_decay.batch_size)
        return Decision(
            batch_size,
            rate.of(batch_size),
            by_noise.memory,
            events=by_decay.events,
            measure_at=where(batch_size < maximum, by_noise.measure_at, NEVER),
        )

    def init(rate: Rate) -> Decision:
        return decide(noise.init(rate), decay.init(rate), rate)

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        return decide(noise.update(observation, state, rate), decay.update(observation, state, rate), rate)

    return make_controller(Rule(init, update, (initial, maximum), "gradient"))
