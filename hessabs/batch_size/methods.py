"""The rules by the names that the slides and the command line give them, with epochs for their unit of time."""

from typing import Annotated, Any, NamedTuple

from hessabs.batch_size.bounds import Bounds, growth_bounds
from hessabs.batch_size.controller import Controller
from hessabs.batch_size.cyclical import cyclical
from hessabs.batch_size.growth import batch_growth, fixed_growth, timer
from hessabs.batch_size.hessian import hessian_adaptive
from hessabs.batch_size.noise import gradient_noise_scale, norm_test
from hessabs.batch_size.planner import epoch_examples
from hessabs.batch_size.schedules import constant, linear_scaling
from hessabs.batch_size.stability import stability_limited

METHODS = ("bl", "fb", "gg", "abs", "absa", "cyclical", "gns", "norm_test", "stability", "timer", "fixed")

READ_BY: dict[str, tuple[str, ...]] = {
    "max_batch_size": tuple(name for name in METHODS if name != "bl"),
    "growth_factor": ("gg", "abs", "absa", "cyclical", "gns", "stability", "timer", "fixed"),
    "grow_epochs": ("fixed",),
    "lr_coupling": tuple(name for name in METHODS if name != "bl"),
    "warmup_epochs": ("fb",),
    "cycle_epochs": ("cyclical",),
    "measure_every": ("abs", "absa", "gns", "norm_test", "stability"),
    "eigenvalue_decrease": ("abs", "absa"),
    "patience": ("abs", "absa", "timer"),
    "threshold": ("stability",),
    "noise_scale": ("gns",),
    "tolerance": ("norm_test",),
    "fraction_decrease": tuple(name for name in METHODS if name not in ("bl", "fb", "cyclical")),
}
"""Which methods read a setting; one that is not here is read by all."""


class Settings(NamedTuple):
    """The settings of a planned run: one field, one flag of ``hessabs plan``."""

    method: Annotated[
        str,
        "bl: one batch size; fb: one batch size, linear scaling and warm-up; gg: growth instead of "
        "learning-rate decay; abs, absa: growth where the top Hessian eigenvalue falls, absa with adversarial "
        "examples; cyclical; gns: gradient noise scale; norm_test; stability: the largest stable step; "
        "timer: the patience of abs alone; fixed: at grow_epochs",
    ] = "absa"
    num_examples: Annotated[int | None, "examples in the training set"] = None
    epochs: Annotated[int, "passes over the training set"] = 90
    batch_size: Annotated[int, "examples per update at the start; bl: always"] = 128
    max_batch_size: Annotated[
        int | None, "most examples per update, a multiple of batch_size; fb: always; default: batch_size"
    ] = None
    micro_batch_size: Annotated[int | None, "examples that are handled at once; default: batch_size"] = None
    lr: Annotated[float, "learning rate of the first batch size"] = 0.1
    lr_decay_epochs: Annotated[
        tuple[int, ...], "epochs after which the learning rate decays, comma-separated; empty for none"
    ] = (30, 60, 80)
    lr_decay: Annotated[float, "factor of each decay, in (0, 1]"] = 0.2
    growth_factor: Annotated[float | None, "growth of the batch; default: 2, gg: 1 / lr_decay"] = None
    grow_epochs: Annotated[tuple[int, ...], "epochs after which the batch grows, comma-separated (fixed)"] = ()
    lr_coupling: Annotated[
        str | None,
        "how the learning rate follows the batch: linear, sqrt or none; default: none for gg and cyclical, "
        "else linear; bl has one batch",
    ] = None
    warmup_epochs: Annotated[int, "epochs of warm-up (fb)"] = 5
    cycle_epochs: Annotated[int, "epochs in a cycle (cyclical)"] = 10
    measure_every: Annotated[int | None, "examples between measurements; default: an epoch"] = None
    eigenvalue_decrease: Annotated[float, "fall of the eigenvalue at which the batch grows (abs, absa)"] = 2.0
    patience: Annotated[
        int, "measurements (timer: epochs) without growth after which the batch grows anyway; 0 for never"
    ] = 10
    threshold: Annotated[float, "bound on eigenvalue times learning rate (stability)"] = 1.25
    noise_scale: Annotated[float, "batch size in gradient noise scales (gns)"] = 1.0
    tolerance: Annotated[float, "tolerance of the test (norm_test)"] = 1.0
    adversarial_fraction: Annotated[
        float | None, "fraction replaced by adversarial examples; default: 0.2 for absa, else 0"
    ] = None
    fraction_decrease: Annotated[float, "divides that fraction when the batch grows; 1 to keep it"] = 2.0
    adversarial_epochs: Annotated[
        int | None, "epochs after which adversarial examples end; default: half of the epochs"
    ] = None
    remainder: Annotated[
        str | None,
        "examples that fill no micro-batch: drop, keep, or fill (count a full one); default: keep for bl and "
        "fb, else drop, as the slides count",
    ] = None


def per_epoch(settings: Settings) -> int:
    """Count the examples of an epoch.

    Args:
      settings: The settings of a planned run.

    Returns:
      The examples that count, by ``remainder``.

    Raises:
      ValueError: If the number of examples is missing or too small, or ``remainder`` unknown.

    Example:
      >>> per_epoch(Settings(method="gg", num_examples=50_000))
      49920
    """
    if settings.num_examples is None:
        raise ValueError("`num_examples` is required: the examples in the training set.")
    size = _micro_batch_size(settings)
    if not 1 <= size <= settings.num_examples:
        raise ValueError(f"`batch_size` must lie in [1, num_examples={settings.num_examples}], got {size}.")
    return epoch_examples(settings.num_examples, size, _remainder(settings))


def make_controller(settings: Settings) -> Controller:
    """Make the rule that a method's name stands for.

    Args:
      settings: The settings of a planned run.

    Returns:
      A ``Controller``.

    Raises:
      ValueError: If a setting is out of its range.

    Example:
      >>> rule = make_controller(Settings(method="fb", num_examples=50_000, max_batch_size=640))
      >>> int(rule.init().batch_size)
      640
    """
    s, epoch = settings, per_epoch(settings)
    initial, maximum = s.batch_size, s.batch_size if s.max_batch_size is None else s.max_batch_size
    if s.method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {s.method!r}.")
    if s.num_examples is not None and maximum > s.num_examples and s.method != "bl":
        raise ValueError(
            f"`max_batch_size` must not exceed the data set, got {maximum} of {s.num_examples} examples."
        )
    if maximum % initial and s.method not in ("bl", "fb"):
        raise ValueError(
            f"`max_batch_size` must be a multiple of batch_size={initial}, for `hessabs train` takes whole "
            f"micro-batches, got {maximum}; the nearest below is {maximum // initial * initial}."
        )
    if s.patience < 0:
        raise ValueError(f"`patience` must be at least 0, got {s.patience}.")
    if s.method == "timer" and s.patience == 0:
        raise ValueError("`patience` must be at least 1 epoch for the timer, got 0.")
    if s.method == "fixed" and not s.grow_epochs:
        raise ValueError("`grow_epochs` must name the epochs after which a fixed schedule grows, got none.")
    until = s.epochs // 2 if s.adversarial_epochs is None else s.adversarial_epochs
    fraction = s.adversarial_fraction
    if fraction is None:
        fraction = 0.2 if s.method == "absa" else 0.0
    shared: dict[str, Any] = {
        "lr_decay_at": [point * epoch for point in s.lr_decay_epochs],
        "lr_decay": s.lr_decay,
        "adversarial_fraction": fraction,
        # Without adversarial examples the rule does not depend on how long the run is.
        "adversarial_until": until * epoch if fraction else None,
    }
    if s.lr_coupling is not None and s.method != "bl":
        shared["lr_coupling"] = s.lr_coupling
    growing = {**shared, "fraction_decrease": s.fraction_decrease}
    factor = 2.0 if s.growth_factor is None else s.growth_factor
    every = epoch if s.measure_every is None else s.measure_every
    patience = s.patience or None
    match s.method:
        case "bl":
            return constant(initial, **shared)
        case "fb":
            return linear_scaling(maximum, base_batch_size=initial, warmup=s.warmup_epochs * epoch, **shared)
        case "gg":
            return batch_growth(initial, maximum, growth_factor=s.growth_factor, **growing)
        case "cyclical":
            cycle = s.cycle_epochs * epoch
            return cyclical(initial, maximum, cycle=cycle, growth_factor=factor, **shared)
        case "timer":
            return timer(initial, maximum, every=s.patience * epoch, growth_factor=factor, **growing)
        case "fixed":
            points = [point * epoch for point in s.grow_epochs]
            return fixed_growth(initial, maximum, grow_at=points, growth_factor=factor, **growing)
        case "gns":
            return gradient_noise_scale(
                initial, maximum, measure_every=every, scale=s.noise_scale, growth_factor=factor, **growing
            )
        case "norm_test":
            return norm_test(initial, maximum, measure_every=every, tolerance=s.tolerance, **growing)
        case "stability":
            return stability_limited(
                initial,
                maximum,
                lr=s.lr,
                measure_every=every,
                threshold=s.threshold,
                growth_factor=factor,
                **growing,
            )
    return hessian_adaptive(
        initial,
        maximum,
        measure_every=every,
        eigenvalue_decrease=s.eigenvalue_decrease,
        growth_factor=factor,
        patience=patience,
        **growing,
    )


def make_plans(settings: Settings, *, whole_updates: bool = False) -> Bounds:
    """Plan the run of a method: between which bounds it lies, both the same for a rule that measures nothing.

    Args:
      settings: The settings of a planned run.
      whole_updates: As in ``plan``.

    Returns:
      The plans with the fewest and the most updates.

    Raises:
      ValueError: If a setting is out of its range.

    Example:
      >>> make_plans(Settings(method="gg", num_examples=50_000, max_batch_size=640)).fewest.updates
      16380
    """
    controller = make_controller(settings)
    return growth_bounds(
        controller,
        num_examples=settings.num_examples or 0,
        epochs=settings.epochs,
        micro_batch_size=_micro_batch_size(settings),
        remainder=_remainder(settings),
        whole_updates=whole_updates,
        decrease=settings.eigenvalue_decrease,
    )


def as_trained(settings: Settings) -> Settings:
    """Fill in the micro-batch and the remainder as ``hessabs train`` does where they are not given.

    Args:
      settings: The settings of a planned run.

    Returns:
      The settings with neither left to decide.

    Example:
      >>> as_trained(Settings(method="bl", batch_size=640)).micro_batch_size
      128
    """
    micro = settings.micro_batch_size
    if micro is None:
        micro = 128 if settings.batch_size % 128 == 0 else settings.batch_size
    return settings._replace(micro_batch_size=micro, remainder=settings.remainder or "drop")


def _remainder(settings: Settings) -> Any:
    return settings.remainder or ("keep" if settings.method in ("bl", "fb") else "drop")


def _micro_batch_size(settings: Settings) -> int:
    return settings.batch_size if settings.micro_batch_size is None else settings.micro_batch_size
