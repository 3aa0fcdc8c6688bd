"""The rules by the names that the slides and the command line give them, with epochs for their unit of time."""

import bisect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from hessabs.batch_size.bounds import Bounds, growth_bounds
from hessabs.batch_size.controller import Controller
from hessabs.batch_size.cyclical import cyclical
from hessabs.batch_size.growth import batch_growth, fixed_growth, inverse, peak, seesaw, timer
from hessabs.batch_size.hessian import hessian_adaptive
from hessabs.batch_size.noise import gradient_noise_scale, norm_test
from hessabs.batch_size.planner import Remainder, epoch_examples
from hessabs.batch_size.ramp import ramp
from hessabs.batch_size.rule import Coupling, with_adversarial, with_coupling, with_decay
from hessabs.batch_size.settings import METHODS, Method, PlanSettings
from hessabs.batch_size.sizes import check_batch_sizes, check_micro_batch_size, default_micro_batch_size
from hessabs.batch_size.stability import stability_limited
from hessabs.batch_size.table import constant, linear_scaling
from hessabs.checks import refuse_unread, require_one_of, require_ranges

AnyMethod = TypeVar("AnyMethod", bound=Method)

_NAMES = {kind: name for name, kind in METHODS.items()}
_READ_WITH = {
    setting: [name for name, kind in METHODS.items() if setting in kind._fields]
    for setting in dict.fromkeys(itertools.chain(*(kind._fields for kind in METHODS.values())))
}
_NOISE = ("gns", "ramp")  # their measurements are free, and averaged


def name_of(method: Method) -> str:
    """Return the name of a method, as ``--method`` takes it."""
    return _NAMES[type(method)]


def choose(name: str, given: Mapping[str, Any]) -> Method:
    """Choose a method by its name, with the settings that were given, and refuse those that it does not read.

    ``given`` is what the user said, defaults said explicitly too; settings of no method may be among them.

    >>> choose("timer", {"patience": 3, "seed": 1}).patience
    3
    >>> choose("absa", {"threshold": 9.0})
    Traceback (most recent call last):
    ...
    ValueError: `threshold` is read with method=stability, and not with method=absa; leave it out.
    """
    if name not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    fields = METHODS[name]._fields
    refuse_unread(given, _READ_WITH, method=name)
    if "lr_decay" in given and given.get("lr_decay_epochs") == () and name != "gg":
        raise ValueError("`lr_decay` is read with lr_decay_epochs, and there are none; leave it out.")
    return METHODS[name](**{setting: value for setting, value in given.items() if setting in fields})


def check(run: PlanSettings, method: Method) -> None:
    """Raise ``ValueError``, in one line, where settings are wrong, whatever the data."""
    values = {**run._asdict(), **method._asdict()}
    require_ranges(run)
    require_ranges(method)
    require_one_of((*get_args(Coupling), None), lr_coupling=values.get("lr_coupling"))
    require_one_of((*get_args(Remainder), None), remainder=run.remainder)
    initial, largest, micro = run.batch_size, values.get("max_batch_size"), run.micro_batch_size
    if largest is not None:
        if largest < initial:
            raise ValueError(f"`max_batch_size` must be at least batch_size={initial}, got {largest}.")
        if largest % initial:
            raise ValueError(
                f"`max_batch_size` must be a multiple of batch_size={initial}, got {largest}; "
                f"the nearest below is {largest // initial * initial}."
            )
    compared = compares_parts(method)
    size = default_micro_batch_size(initial, compared=compared) if micro is None else micro
    check_micro_batch_size(initial, size, name_of(method) if compared else None)
    if name_of(method) == "timer" and values["patience"] == 0:
        raise ValueError("`patience` must be at least 1 epoch for the timer, got 0.")
    if name_of(method) == "fixed" and not values["grow_epochs"]:
        raise ValueError("`grow_epochs` must name the epochs after which a fixed schedule grows, got none.")


def compares_parts(method: Method) -> bool:
    """Tell whether a method compares the micro-batches of an update: it needs two at least, equally large."""
    return name_of(method) in (*_NOISE, "norm_test")


def resolve(
    run: PlanSettings, method: AnyMethod, num_examples: int, *, dataset: str | None = None
) -> tuple[PlanSettings, AnyMethod]:
    """Check the settings of a run and decide those that are None: every default rule is written here.

    >>> run, method = resolve(PlanSettings(batch_size=32), choose("absa", {}), 1000)
    >>> method.max_batch_size, run.micro_batch_size, run.adversarial_fraction, run.adversarial_epochs
    (992, 32, 0.2, 45)
    """
    check(run, method)
    name, initial, micro = name_of(method), run.batch_size, run.micro_batch_size
    check_batch_sizes(initial, getattr(method, "max_batch_size", None) or initial, num_examples, dataset)
    default = default_micro_batch_size(initial, compared=compares_parts(method))
    fraction, until = run.adversarial_fraction, run.adversarial_epochs
    run = run._replace(
        micro_batch_size=default if micro is None else micro,
        remainder=run.remainder or "drop",
        adversarial_fraction=(0.2 if name == "absa" else 0.0) if fraction is None else fraction,
        adversarial_epochs=run.epochs // 2 if until is None else until,
    )
    defaults: dict[str, Any] = {
        "max_batch_size": min(128, num_examples // initial) * initial,
        "lr_coupling": "none" if name in ("gg", "cyclical") else "linear",
        "growth_factor": inverse(run.lr_decay) if name == "gg" else 2.0,
        "fraction_decrease": 1.0 if name in _NOISE else 2.0,
        "noise_scale": 2.0 if name == "ramp" else 1.0,
        "measure_every": max(1, per_epoch(run, num_examples) // (256 if name in _NOISE else 1)),
    }
    unset = {name: value for name, value in defaults.items() if getattr(method, name, 0) is None}
    filled: Any = method._replace(**unset)
    return run, filled


def per_epoch(run: PlanSettings, num_examples: int) -> int:
    """Count the examples of an epoch of resolved settings."""
    return epoch_examples(num_examples, run.micro_batch_size or run.batch_size, run.remainder or "drop")


def make_rule(
    run: PlanSettings,
    method: Method,
    num_examples: int,
    *,
    lr: float = 0.1,
    warmup_epochs: float = 5,
    lr_schedule: Callable[[int], float] | None = None,
) -> Controller:
    """Make the rule of a method from settings, resolved or not; its epochs are turned into examples.

    ``lr`` is the learning rate at the first batch size (read by stability), ``warmup_epochs`` are those of fb,
    ``lr_schedule`` is the outer schedule by examples (read by seesaw and ramp; None for a rate that stays).

    >>> int(make_rule(PlanSettings(), choose("fb", {"max_batch_size": 640}), 50_000).init().batch_size)
    640
    """
    run, method = resolve(run, method, num_examples)
    epoch, fraction = per_epoch(run, num_examples), run.adversarial_fraction or 0.0
    decays = [point * epoch for point in run.lr_decay_epochs]
    warmup = round(warmup_epochs * epoch)
    rule = _plain_rule(run, method, epoch, decays, lr, warmup, lr_schedule or (lambda samples: 1.0))
    if name_of(method) != "gg":
        rule = with_decay(rule, decays, run.lr_decay)
    coupling, decrease = getattr(method, "lr_coupling", None), getattr(method, "fraction_decrease", 1.0)
    if coupling is not None:
        rule = with_coupling(rule, coupling)
    if not fraction:  # then the rule does not depend on how long the run is
        return rule
    return with_adversarial(rule, fraction, decrease=decrease, until=(run.adversarial_epochs or 0) * epoch)


def _plain_rule(
    run: PlanSettings,
    method: Method,
    epoch: int,
    decays: list[int],
    lr: float,
    warmup: int,
    lr_schedule: Callable[[int], float],
) -> Controller:
    own: Any = method  # its fields, whichever they are
    first = run.batch_size
    match name_of(method):
        case "bl":
            return constant(first)
        case "fb":
            return linear_scaling(own.max_batch_size, base_batch_size=first, warmup=warmup)
        case "norm_test":
            every = own.measure_every
            return norm_test(first, own.max_batch_size, measure_every=every, tolerance=own.tolerance)
    growing = {"initial": first, "maximum": own.max_batch_size, "growth_factor": own.growth_factor}
    measuring = {**growing, "measure_every": getattr(own, "measure_every", None)}

    def falling(samples: int) -> float:
        return lr_schedule(samples) * run.lr_decay ** bisect.bisect_right(decays, samples)

    match name_of(method):
        case "gg":
            return batch_growth(**growing, lr_decay_at=decays, lr_decay=run.lr_decay)
        case "cyclical":
            return cyclical(**growing, cycle=own.cycle_epochs * epoch)
        case "timer":
            return timer(**growing, every=own.patience * epoch)
        case "fixed":
            return fixed_growth(**growing, grow_at=[point * epoch for point in own.grow_epochs])
        case "seesaw":
            return seesaw(**growing, lr_schedule=falling, total=run.epochs * epoch)
        case "ramp":
            return ramp(**measuring, lr_schedule=falling, total=run.epochs * epoch, scale=own.noise_scale)
        case "gns":
            # Not before about as many measurements as it averages, if there are 256 in an epoch.
            start = max(peak(falling, run.epochs * epoch), epoch // 32)
            return gradient_noise_scale(**measuring, scale=own.noise_scale, start=start)
        case "stability":
            return stability_limited(**measuring, lr=lr, threshold=own.threshold)
    fall, patience = own.eigenvalue_decrease, own.patience or None
    return hessian_adaptive(**measuring, eigenvalue_decrease=fall, patience=patience)


def make_plans(
    run: PlanSettings,
    method: Method,
    num_examples: int,
    *,
    whole_updates: bool = False,
    lr: float = 0.1,
    warmup_epochs: float = 5,
    schedule_of: Callable[[int], Callable[[int], float]] | None = None,
) -> Bounds:
    """Plan the run of a method: between which bounds it lies, both the same for a rule that measures nothing.

    ``whole_updates`` are those of a training run, see ``plan``. Otherwise they are counted as in the slides: by
    default in micro-batches of ``batch_size``, and for bl and fb with the remainder of an epoch.
    ``schedule_of`` makes the outer schedule from the examples of an epoch, which are others then.

    >>> make_plans(PlanSettings(), choose("gg", {"max_batch_size": 640}), 50_000).fewest.updates
    16380
    """
    if not whole_updates:
        slides: Remainder = "keep" if name_of(method) in ("bl", "fb") else "drop"
        micro = None if compares_parts(method) else run.batch_size
        run = run._replace(micro_batch_size=run.micro_batch_size or micro, remainder=run.remainder or slides)
    run, method = resolve(run, method, num_examples)
    outer = None if schedule_of is None else schedule_of(per_epoch(run, num_examples))
    return growth_bounds(
        make_rule(run, method, num_examples, lr=lr, warmup_epochs=warmup_epochs, lr_schedule=outer),
        num_examples=num_examples,
        epochs=run.epochs,
        micro_batch_size=run.micro_batch_size,
        remainder=run.remainder or "drop",
        whole_updates=whole_updates,
        decrease=getattr(method, "eigenvalue_decrease", 2.0),
    )


def never_reached(run: PlanSettings, method: Method, warmup_epochs: float = 0) -> list[str]:
    """Say which epochs of the schedules lie beyond the end of a run, and whether a rule's warm-up does.

    >>> never_reached(PlanSettings(epochs=70), choose("bl", {}))
    ['`lr_decay_epochs` 80: the run ends before, after epochs=70.']
    """
    lines = []
    for name in ("lr_decay_epochs", "grow_epochs"):
        value = {**run._asdict(), **method._asdict()}.get(name, ())
        late = [epoch for epoch in value if epoch >= run.epochs]
        if late:
            shown = ",".join(map(str, late))
            lines.append(f"`{name}` {shown}: the run ends before, after epochs={run.epochs}.")
    if warmup_epochs > run.epochs:
        lines.append(
            f"`warmup_epochs` {warmup_epochs:g}: the run ends before, after epochs={run.epochs}, and never has "
            "its whole rate."
        )
    return lines
