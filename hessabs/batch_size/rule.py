"""A rule is what it is about; decays, coupling and adversarial examples are put around it."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_events, require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Measurement, Observation
from hessabs.batch_size.counting import NEVER, Count, next_event, num_passed, where
from hessabs.checks import require, require_one_of

Coupling = Literal["linear", "sqrt", "none"]
"""How the learning rate follows the batch: with it (SGD), with its square root (Adam and its kin), or not."""


class Rate(NamedTuple):
    """What a rule may know of the learning rate: how it follows the batch, and what else scales it."""

    coupling: Coupling
    initial: int  # the batch whose factor is 1
    maximum: int
    schedule: Any  # shape (), float32: the factor of decays and outer schedules at the next update

    def of(self, batch_size: Any) -> jax.Array:
        """Return the factor of a batch: a multiple of ``initial``, or the maximum; float32 of its shape."""
        # Nothing is rounded here, so eager and compiled code agree.
        batch_size = jnp.asarray(batch_size)
        factor = (batch_size // self.initial).astype(jnp.float32)
        factor = jnp.where(batch_size == self.maximum, jnp.float32(self.maximum / self.initial), factor)
        if self.coupling == "none":
            return jnp.ones_like(factor)
        return factor if self.coupling == "linear" else jnp.sqrt(factor)

    def of_ratio(self, ratio: float) -> float:
        """Return the factor of a batch that is known beforehand, by its ratio to the first."""
        return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[self.coupling]


class Decision(NamedTuple):
    """What a rule decides."""

    batch_size: Any  # shape (), int32: examples per update from now on
    lr_scale: Any  # shape (), float32: its factor on the learning rate, with `rate.of(batch_size)` in it
    memory: Any = ()  # what the rule remembers, a pytree of arrays
    events: Sequence[int | Count] = ()  # examples at which it wants to be called without a measurement
    measure_at: int | Count = NEVER  # examples at the next measurement; one that is overdue is asked for again
    grew: Any = None  # shape (), bool: whether this is a growth; None: where the batch is larger than before
    growths: tuple[Sequence[float], jax.Array] | None = None  # where known: count by stage, the stage
    progress: Count | None = None  # what decays are counted in; None: examples


class Rule(NamedTuple):
    """What a rule is about: the batch, and when it wants to be asked again.

    ``update`` may be called sooner than it asked, for the sake of a decay say: a measurement is there where
    ``state.measure`` and its time has come.
    """

    init: Callable[[Rate], Decision]
    update: Callable[[Observation, ControllerState, Rate], Decision]
    batch_sizes: tuple[int, int]  # the smallest and the largest
    measures: Measurement = "nothing"
    only_decrease: float | None = None  # the published rule: the one decrease of the fraction that goes with it


class Decay(NamedTuple):
    """A step decay of the learning rate."""

    at: tuple[int, ...]  # examples after which the rate is multiplied by `factor`, ascending
    factor: float

    def scale(self, samples: Count) -> jax.Array:
        """Return the product of the decays that have happened, a float32 scalar."""
        # A table and not a power: the same bits from eager code, jit and scan, and each entry rounded once.
        table = jnp.asarray([self.factor**count for count in range(len(self.at) + 1)], jnp.float32)
        return table[num_passed(samples, self.at)]


class Adversarial(NamedTuple):
    """Which fraction of a batch is replaced by adversarial examples."""

    fraction: float = 0.0
    decrease: float = 1.0  # divides the fraction at each growth
    until: int = NEVER  # examples after which it is 0

    def after(self, decision: Decision, before: ControllerState | None, maximum: int) -> jax.Array:
        """Return the fraction after a decision: divided once by a growth, and 0 from the maximum on."""
        if decision.growths is not None:
            counted, stage = decision.growths
            table = [self.fraction * float(self.decrease) ** -growths for growths in counted]
            return jnp.asarray(table, jnp.float32)[stage]
        if before is None:
            return jnp.float32(self.fraction)
        if self.decrease == 1:
            return before.adversarial_fraction
        grew = decision.batch_size > before.batch_size if decision.grew is None else decision.grew
        shrunk = before.adversarial_fraction * (1 / self.decrease)
        shrunk = jnp.where(decision.batch_size >= maximum, 0.0, shrunk)
        return jnp.where(grew, shrunk, before.adversarial_fraction)


class _Options(NamedTuple):
    rule: Rule
    coupling: Coupling
    decays: tuple[Decay, ...] = ()
    adversarial: Adversarial = Adversarial()


def make_controller(rule: Rule, lr_coupling: Coupling = "linear") -> Controller:
    """Make a controller of a rule, which ``with_decay`` and its kin can then be put around.

    Args:
      rule: What it is about.
      lr_coupling: How the learning rate follows the batch unless ``with_coupling`` says otherwise.

    Raises:
      ValueError: If the batch sizes are out of range, or the coupling is unknown.

    Example:
      >>> halve = lambda rate: Decision(jnp.int32(8), rate.of(8), events=(100,))
      >>> rule = Rule(halve, lambda told, state, rate: Decision(jnp.int32(16), rate.of(16)), (8, 16))
      >>> controller = with_decay(make_controller(rule, "sqrt"), at=(100,), factor=0.5)
      >>> state = controller.update(Observation(100), controller.init())
      >>> int(state.batch_size), round(float(state.lr_scale), 6)  # half of the square root of 2
      (16, 0.707107)
    """
    require_sizes(*rule.batch_sizes)
    return _compose(_Options(rule, lr_coupling))


def with_decay(rule: Controller, at: Sequence[int], factor: float = 0.2) -> Controller:
    """Let the learning rate of a rule decay by steps, beside what it decides.

    Args:
      rule: One of this package, or of ``make_controller``.
      at: Examples after which the learning rate is multiplied by ``factor``, positive and ascending. (With
        ``adascale`` examples of the base batch that its progress is worth.)
      factor: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller``. Decays put around each other multiply.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import constant
      >>> controller = with_decay(constant(128), at=(1000,), factor=0.5)
      >>> float(controller.update(Observation(1000), controller.init()).lr_scale)
      0.5
    """
    decay = Decay(require_events(at=at), factor)
    require("lie in (0, 1]", factor=factor)
    options = _options(rule, "with_decay")
    return _compose(options._replace(decays=(*options.decays, decay))) if decay.at else rule


def with_coupling(rule: Controller, lr_coupling: Coupling) -> Controller:
    """Say how the learning rate follows the batch of a rule, in place of the rule's default.

    Args:
      rule: As in ``with_decay``.
      lr_coupling: ``"linear"``, ``"sqrt"`` or ``"none"``.

    Raises:
      ValueError: If the coupling is unknown.

    Example:
      >>> from hessabs.batch_size import timer
      >>> controller = with_coupling(timer(32, 128, every=10), "sqrt")
      >>> float(controller.update(Observation(20), controller.init()).lr_scale)
      2.0
    """
    return _compose(_options(rule, "with_coupling")._replace(coupling=lr_coupling))


def with_adversarial(
    rule: Controller, fraction: float, *, decrease: float = 2.0, until: int | None = None
) -> Controller:
    """Let a rule say which fraction of each batch is to be replaced by adversarial examples.

    Args:
      rule: As in ``with_decay``.
      fraction: Fraction at the start, in [0, 1] (gamma of ABSA).
      decrease: Divides the fraction when the batch grows, at least 1 (omega); it is 0 at the maximum, except
        with 1, which leaves it as it is. A batch that comes back (``cyclical``) does not change it.
      until: Examples after which the fraction is 0 (tau), at least 0; None for never.

    Returns:
      A ``Controller``; a fraction said before is replaced.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import timer
      >>> controller = with_adversarial(timer(32, 128, every=10), 0.5)
      >>> float(controller.update(Observation(10), controller.init()).adversarial_fraction)
      0.25
    """
    require("lie in [0, 1]", fraction=fraction)
    require("be at least 1", decrease=decrease)
    until = NEVER if until is None else operator.index(until)
    require("be at least 0 examples", until=until)
    adversarial = Adversarial(fraction, decrease, until)
    return _compose(_options(rule, "with_adversarial")._replace(adversarial=adversarial))


def rule_of(controller: Controller) -> Rule:
    """Return the bare rule that ``make_controller`` made a controller of."""
    return _options(controller, "rule_of").rule


def coupling_of(controller: Controller) -> Coupling | None:
    """Say how the learning rate follows the batch; None of a controller that was made by hand."""
    return controller.options.coupling if isinstance(controller.options, _Options) else None


def fraction_of(controller: Controller) -> float | None:
    """Say the largest adversarial fraction of a rule; None of a controller that was made by hand."""
    return controller.options.adversarial.fraction if isinstance(controller.options, _Options) else None


def _options(rule: Controller, caller: str) -> _Options:
    if not isinstance(rule.options, _Options):
        raise ValueError(
            f"{caller} goes around a rule of hessabs.batch_size, or one of make_controller(Rule(...)), got a "
            "Controller that was made by hand, which decides all of it itself."
        )
    return rule.options


def _compose(options: _Options) -> Controller:
    rule, coupling, decays, adversarial = options
    initial, maximum = rule.batch_sizes
    require_one_of(get_args(Coupling), lr_coupling=coupling)
    only = rule.only_decrease
    if only is not None and (coupling != "linear" or (adversarial.fraction and adversarial.decrease != only)):
        raise ValueError(
            'compatibility="hessianflow" has one ratio for `eigenvalue_decrease`, `growth_factor` and '
            f"`decrease`, and the linear coupling, got {only}, {adversarial.decrease} and {coupling!r}."
        )

    def decayed(samples: Count) -> jax.Array:
        return math.prod((decay.scale(samples) for decay in decays), start=jnp.ones((), jnp.float32))

    def decide(samples: Count, decision: Decision, before: ControllerState | None) -> ControllerState:
        by_examples = decision.progress is None
        measure_at = Count.of(decision.measure_at)
        # One that is overdue (an update may end far beyond it) is due at the next update.
        measuring, soonest = measure_at < NEVER, samples + 1
        measure_at = where(measure_at < soonest, soonest, measure_at)
        points = [point for decay in decays if by_examples for point in decay.at]
        observe_at = next_event(samples, (*points, adversarial.until, *decision.events, measure_at))
        scale = decision.lr_scale * decayed(samples if decision.progress is None else decision.progress)
        fraction = adversarial.after(decision, before, maximum)
        return ControllerState(
            batch_size=jnp.asarray(decision.batch_size, jnp.int32),
            lr_scale=jnp.asarray(scale, jnp.float32),
            adversarial_fraction=jnp.where(samples < adversarial.until, fraction, 0.0).astype(jnp.float32),
            observe_at=observe_at,
            measure=measuring & (observe_at == measure_at),
            rule=decision.memory,
        )

    def init() -> ControllerState:
        rate = Rate(coupling, initial, maximum, jnp.ones((), jnp.float32))
        return decide(Count.of(0), rule.init(rate), None)

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        samples = Count.of(observation.samples)
        rate = Rate(coupling, initial, maximum, decayed(samples) * observation.lr_scale)
        return decide(samples, rule.update(observation._replace(samples=samples), state, rate), state)

    return Controller(init, update, rule.measures, rule.batch_sizes, options)
