"""The settings of every method, each declared once: its type, its help, and in whose NamedTuple it stands.

A method's own settings are the fields of its NamedTuple, and no other method reads them; ``PlanSettings`` are
those that a rule needs of any run. Flags of the command line are made of these declarations. What a number must
be stands after its help (``hessabs.checks``).
"""

from typing import Annotated, Literal, NamedTuple, get_args

from hessabs.batch_size.planner import Remainder
from hessabs.batch_size.rule import Coupling

MethodName = Annotated[
    Literal[
        "bl",
        "fb",
        "gg",
        "abs",
        "absa",
        "cyclical",
        "gns",
        "norm_test",
        "stability",
        "timer",
        "fixed",
        "seesaw",
        "ramp",
    ],
    "bl: one batch size; fb: one batch size, linear scaling and warm-up; gg: growth instead of "
    "learning-rate decay; abs, absa: growth where the top Hessian eigenvalue falls, absa with adversarial "
    "examples; cyclical; gns: gradient noise scale; norm_test; stability: the largest stable step; "
    "timer: the patience of abs, without an eigenvalue; fixed: at grow_epochs; seesaw: as the schedule lets "
    "the learning rate fall; ramp: the larger of two noise scales and what seesaw says",
]
MaxBatchSize = Annotated[
    int | None,
    "most examples per update, a multiple of batch_size; fb: always; "
    "default: 128 times batch_size, or as many times as fit the data set",
    "be at least 1",
]
LrCoupling = Annotated[
    Coupling | None,
    "how the learning rate follows the batch: linear, sqrt or none; default: none for gg and cyclical, else "
    "linear for sgd, nesterov, lars and schedule_free with base sgd, sqrt for other optimisers; bl has one "
    "batch",
]
FractionDecrease = Annotated[
    float | None,
    "divides the adversarial fraction when the batch grows (omega); 1 keeps it; default: 2, 1 for gns and "
    "ramp, which grow in many small steps",
    "be at least 1",
]
GrowthFactor = Annotated[float | None, "growth of the batch (beta); default: 2, gg: 1 / lr_decay", "be above 1"]
MeasureEvery = Annotated[
    int | None,
    "examples between measurements (n); default: an epoch, a 256th of one for gns and ramp, whose "
    "measurements are free",
    "be at least 1",
]
EigenvalueDecrease = Annotated[float, "fall of the eigenvalue at which the batch grows (alpha)", "be above 1"]
NoiseScale = Annotated[
    float | None,
    "batch size in gradient noise scales; default: 1 for gns, 2 for ramp",
    "be positive and finite",
]
Patience = Annotated[
    int,
    "measurements (timer: epochs) without growth after which the batch grows anyway (kappa); 0 for never",
    "be at least 0",
]


class PlanSettings(NamedTuple):
    """What a rule needs to know of a run, whatever the method. None is decided by ``resolve``."""

    epochs: Annotated[int, "passes over the training set", "be at least 1"] = 90
    batch_size: Annotated[int, "examples per update at the start", "be at least 1"] = 128
    micro_batch_size: Annotated[
        int | None,
        "examples handled at once, by all devices together, a divisor of batch_size; batch norm sees these "
        "(ghost batch norm); default: batch_size, or 128 where that divides it; gns, norm_test, ramp: half of "
        "batch_size at most",
        "be at least 1",
    ] = None
    remainder: Annotated[
        Remainder | None,
        "examples that fill no micro-batch at the end of an epoch: drop (as the paper), keep (with exact "
        "weights), or, for a plan, fill (count a full one); default: drop",
    ] = None
    lr_decay_epochs: Annotated[
        tuple[int, ...],
        "epochs after which the learning rate decays, comma-separated; empty for none",
        "be positive epochs in ascending order",
    ] = (30, 60, 80)
    lr_decay: Annotated[float, "factor of each decay, in (0, 1]", "lie in (0, 1]"] = 0.2
    adversarial_fraction: Annotated[
        float | None,
        "part of each micro-batch that is attacked (gamma); default: 0.2 for absa, else 0",
        "lie in [0, 1]",
    ] = None
    adversarial_epochs: Annotated[
        int | None,
        "epochs after which adversarial examples end (tau); default: half of the epochs",
        "be at least 0",
    ] = None


class Bl(NamedTuple):
    """The baseline: one batch size."""


class Fb(NamedTuple):
    """One large batch, linear scaling and warm-up."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None


class Gg(NamedTuple):
    """Growth instead of learning-rate decay."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None


class Abs(NamedTuple):
    """Growth where the top Hessian eigenvalue falls."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None
    measure_every: MeasureEvery = None
    eigenvalue_decrease: EigenvalueDecrease = 2.0
    patience: Patience = 10


class Absa(Abs):
    """ABS with adversarial examples."""

    __slots__ = ()


class Cyclical(NamedTuple):
    """Growth within a cycle, again and again."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    growth_factor: GrowthFactor = None
    cycle_epochs: Annotated[int, "epochs in a cycle", "be at least 1"] = 10


class Gns(NamedTuple):
    """The batch follows the gradient noise scale."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None
    measure_every: MeasureEvery = None
    noise_scale: NoiseScale = None


class NormTest(NamedTuple):
    """Growth where the noise of the gradient fails the norm test."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    measure_every: MeasureEvery = None
    tolerance: Annotated[float, "tolerance of the test", "be positive and finite"] = 1.0


class Stability(NamedTuple):
    """The largest batch whose step is stable."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None
    measure_every: MeasureEvery = None
    threshold: Annotated[float, "bound on eigenvalue times learning rate", "be positive and finite"] = 1.25


class Timer(NamedTuple):
    """The patience of ABS, without an eigenvalue."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None
    patience: Patience = 10


class Fixed(NamedTuple):
    """Growth at given epochs."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None
    grow_epochs: Annotated[
        tuple[int, ...],
        "epochs after which the batch grows, comma-separated",
        "be positive epochs in ascending order",
    ] = ()


class Seesaw(NamedTuple):
    """Growth as the schedule lets the learning rate fall."""

    max_batch_size: MaxBatchSize = None
    lr_coupling: LrCoupling = None
    fraction_decrease: FractionDecrease = None
    growth_factor: GrowthFactor = None


class Ramp(Gns):
    """The larger of some noise scales and what seesaw says."""

    __slots__ = ()


Method = Bl | Fb | Gg | Abs | Absa | Cyclical | Gns | NormTest | Stability | Timer | Fixed | Seesaw | Ramp

_NAMES = get_args(get_args(MethodName)[0])
METHODS: dict[str, type[Method]] = dict(zip(_NAMES, get_args(Method), strict=True))
