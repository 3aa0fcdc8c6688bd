"""Everything that a training run is told: one field, one flag of ``hessabs train``."""

import math
from typing import Annotated, NamedTuple, get_args

from hessabs.batch_size.methods import METHODS
from hessabs.batch_size.options import Coupling
from hessabs.data import AUGMENTATIONS
from hessabs.models import MODELS
from hessabs.training import machine, robust
from hessabs.training.mesh import num_devices

GRADIENT_METHODS = ("gns", "norm_test")
"""Methods that compare the gradients of the micro-batches of an update, so they need two at least."""

UNCOUPLED_METHODS = ("bl", "gg", "cyclical")
"""Methods whose learning rate does not follow the batch unless ``lr_coupling`` says so."""


class Config(NamedTuple):
    """The settings of a run. A field that is None is decided by ``resolve`` from the others and the data."""

    dataset: Annotated[str, "data set: digits (embedded), or a TFDS name such as fashion_mnist or cifar10"] = (
        "digits"
    )
    data_dir: Annotated[str | None, "folder of prepared TFDS data sets; default: TFDS's own"] = None
    train_split: Annotated[str, "split to train on, or several joined by +, such as train+extra"] = "train"
    image_size: Annotated[
        int | None,
        "side of the images of a set that does not fit memory: they are decoded when they are used, by grain; "
        "default: images as they are, in memory",
    ] = None
    augment: Annotated[
        str,
        f"augmentation of the training images: {', '.join(AUGMENTATIONS)} (with image_size); the same for an "
        "example of an epoch whatever else changes",
    ] = "none"
    data_workers: Annotated[int, "processes that decode images, with image_size; 0: threads of this one"] = 0
    model: Annotated[str, f"network: {', '.join(sorted(MODELS))}"] = "mlp"
    method: Annotated[
        str,
        "bl: one batch size; fb: one batch size, linear scaling and warm-up; gg: growth instead of "
        "learning-rate decay; abs, absa: growth where the top Hessian eigenvalue falls, absa with adversarial "
        "examples; cyclical; gns: gradient noise scale; norm_test; stability: the largest stable step; "
        "timer: the patience of abs alone; fixed: at grow_epochs",
    ] = "absa"
    epochs: Annotated[int, "passes over the training set"] = 90
    batch_size: Annotated[int, "examples per update at the start"] = 128
    max_batch_size: Annotated[
        int | None,
        "most examples per update, a multiple of batch_size; fb: always; "
        "default: 128 times batch_size, or as many times as fit the data set",
    ] = None
    micro_batch_size: Annotated[
        int | None,
        "examples a device handles at once, a divisor of batch_size; batch norm sees these (ghost batch norm); "
        "default: batch_size, or 128 where that divides it; gns, norm_test: half of batch_size at most",
    ] = None
    micro_batch: Annotated[
        str,
        "fixed: a device always handles micro_batch_size examples at once (ghost batch norm); auto: it takes "
        "1, 2, 4, ... micro-batches as one while the batch grows, up to max_micro_batch_size, and batch norm "
        "sees them as one",
    ] = "fixed"
    max_micro_batch_size: Annotated[
        int | None,
        "micro_batch=auto: most examples at once, micro_batch_size times a power of two; default: what fits "
        "the device's memory, on the CPU its caches",
    ] = None
    devices: Annotated[
        int | None, "devices over which every batch is split; default: 1, or all of several processes"
    ] = None
    mesh: Annotated[str | None, "devices, written as data=N; default: as devices says"] = None
    lr: Annotated[float, "learning rate of the first batch size; it grows with the batch"] = 0.1
    lr_decay_epochs: Annotated[
        tuple[int, ...], "epochs after which the learning rate decays, comma-separated; empty for none"
    ] = (30, 60, 80)
    lr_decay: Annotated[float, "factor of each decay, in (0, 1]"] = 0.2
    momentum: Annotated[float, "momentum of SGD, in [0, 1)"] = 0.9
    weight_decay: Annotated[float, "l2 penalty on every param"] = 0.0
    measure_every: Annotated[int | None, "examples between eigenvalue measurements (n); default: an epoch"] = (
        None
    )
    eigenvalue_decrease: Annotated[float, "fall of the eigenvalue at which the batch grows (alpha)"] = 2.0
    growth_factor: Annotated[float | None, "growth of the batch (beta); default: 2, gg: 1 / lr_decay"] = None
    patience: Annotated[
        int,
        "measurements (timer: epochs) without growth after which the batch grows anyway (kappa); 0 for never",
    ] = 10
    grow_epochs: Annotated[tuple[int, ...], "epochs after which the batch grows, comma-separated (fixed)"] = ()
    lr_coupling: Annotated[
        str | None,
        "how the learning rate follows the batch: linear, sqrt or none; default: none for gg and cyclical, "
        "else linear; bl has one batch",
    ] = None
    warmup_epochs: Annotated[int, "epochs of warm-up (fb)"] = 5
    cycle_epochs: Annotated[int, "epochs in a cycle (cyclical)"] = 10
    threshold: Annotated[float, "bound on eigenvalue times learning rate (stability)"] = 1.25
    noise_scale: Annotated[float, "batch size in gradient noise scales (gns)"] = 1.0
    tolerance: Annotated[float, "tolerance of the test (norm_test)"] = 1.0
    robust: Annotated[
        str | None,
        "none; absa: a fraction of each micro-batch is attacked; pgd: all of it; trades: clean loss and "
        "divergence nearby; free: replays; sam: worst params nearby; default: absa for method absa, else none",
    ] = None
    attack: Annotated[
        str | None,
        "inner attack of robust absa, pgd, trades: fgsm, l2grad, bim, mi_fgsm, pgd, apgd, fhsm, l2hess; "
        "default: fgsm for absa, else pgd",
    ] = None
    attack_steps: Annotated[int, "gradient steps (fhsm, l2hess: Hessian products) of the inner attack"] = 10
    attack_step_size: Annotated[
        float | None, "step of bim, mi_fgsm, pgd and of robust free; default: their own, free: epsilon"
    ] = None
    trades_beta: Annotated[float, "weight of the divergence (trades)"] = 6.0
    free_replays: Annotated[
        int, "passes over each micro-batch in a row (free); an epoch sees so many times fewer images"
    ] = 4
    sam_rho: Annotated[float, "L2 norm of the step to the worst params (sam)"] = 0.05
    adversarial_fraction: Annotated[
        float | None, "part of each micro-batch that absa attacks (gamma); default: 0.2 for robust absa, else 0"
    ] = None
    fraction_decrease: Annotated[
        float, "divides the adversarial fraction when the batch grows (omega); 1 to keep it"
    ] = 2.0
    adversarial_epochs: Annotated[
        int | None, "epochs after which adversarial examples end (tau); default: half of the epochs"
    ] = None
    epsilon: Annotated[
        float,
        "size of the adversarial perturbation in training, in pixel values of [0, 1], l-infinity; "
        "l2grad, l2hess: l2 norm of the whole image",
    ] = 0.005
    hessian_batch_size: Annotated[
        int, "training images, drawn once, on which the eigenvalue is measured; fewer if the set is smaller"
    ] = 512
    hessian_iters: Annotated[int, "most Hessian-vector products per measurement"] = 10
    hessian_rtol: Annotated[float, "relative residual at which a measurement is good enough"] = 1e-2
    fgsm_epsilon: Annotated[
        float, "size of the FGSM and PGD perturbations that test the trained network, in pixel values of [0, 1]"
    ] = 0.02
    pgd_steps: Annotated[int, "steps of the PGD attack that tests the trained network; 0 for no such test"] = 0
    validation_examples: Annotated[
        int, "training images, the same for every seed, that are held out and only evaluated at the end"
    ] = 0
    keep_remainder: Annotated[
        bool,
        "train on an epoch's incomplete last micro-batch too, with exact weights (the paper skips it)",
    ] = False
    track: Annotated[
        str,
        "measured at the end of every epoch, comma-separated: eigenvalue, gradient_norm (total), "
        "last_layer_eigenvalue; empty for none",
    ] = ""
    seed: Annotated[int, "seed of the initial params and of the order of the data"] = 0


def check(config: Config) -> None:
    """Check the fields that need no data to be checked.

    Args:
      config: The settings of a run.

    Raises:
      ValueError: In one line, what was got and what to do.

    Example:
      >>> check(Config(lr=-1.0))
      Traceback (most recent call last):
      ...
      ValueError: `lr` must be positive and finite, got -1.0.
    """
    if config.method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {config.method!r}.")
    if config.model not in MODELS:
        raise ValueError(f"`model` must be one of {', '.join(sorted(MODELS))}, got {config.model!r}.")
    if config.augment not in AUGMENTATIONS:
        raise ValueError(f"`augment` must be one of {', '.join(AUGMENTATIONS)}, got {config.augment!r}.")
    if config.augment == "resized_crop" and config.image_size is None:
        raise ValueError("`augment` resized_crop needs `image_size`, the side of the crops; got none.")
    _require(config.data_workers >= 0, "data_workers", "be at least 0", config)
    for name in ("epochs", "batch_size", "hessian_batch_size", "hessian_iters"):
        _require(getattr(config, name) >= 1, name, "be at least 1", config)
    for name in ("max_batch_size", "micro_batch_size", "measure_every"):
        value = getattr(config, name)
        _require(value is None or value >= 1, name, "be at least 1", config)
    _require(config.lr > 0 and math.isfinite(config.lr), "lr", "be positive and finite", config)
    _require(0 < config.lr_decay <= 1, "lr_decay", "lie in (0, 1]", config)
    _require(0 <= config.momentum < 1, "momentum", "lie in [0, 1)", config)
    for name in ("weight_decay", "epsilon", "fgsm_epsilon", "hessian_rtol"):
        value = getattr(config, name)
        _require(value >= 0 and math.isfinite(value), name, "be at least 0 and finite", config)
    _require(1 < config.eigenvalue_decrease < math.inf, "eigenvalue_decrease", "be above 1", config)
    growth = config.growth_factor
    _require(growth is None or 1 < growth < math.inf, "growth_factor", "be above 1", config)
    for name in ("warmup_epochs", "cycle_epochs"):
        _require(getattr(config, name) >= 1, name, "be at least 1", config)
    for name in ("threshold", "noise_scale", "tolerance"):
        _require(0 < getattr(config, name) < math.inf, name, "be positive and finite", config)
    _require(1 <= config.fraction_decrease < math.inf, "fraction_decrease", "be at least 1", config)
    for name in ("patience", "pgd_steps", "validation_examples", "seed"):
        _require(getattr(config, name) >= 0, name, "be at least 0", config)
    fraction = config.adversarial_fraction
    _require(fraction is None or 0 <= fraction <= 1, "adversarial_fraction", "lie in [0, 1]", config)
    until = config.adversarial_epochs
    _require(until is None or until >= 0, "adversarial_epochs", "be at least 0", config)
    for name in ("lr_decay_epochs", "grow_epochs"):
        epochs = getattr(config, name)
        ascending = all(epoch > 0 for epoch in epochs) and list(epochs) == sorted(set(epochs))
        _require(ascending, name, "be positive epochs in ascending order", config)
    if config.method == "fixed" and not config.grow_epochs:
        raise ValueError("`grow_epochs` must name the epochs after which a fixed schedule grows, got none.")
    robust.check(config)
    _require(
        config.lr_coupling in (None, *get_args(Coupling)), "lr_coupling", "be linear, sqrt or none", config
    )
    largest = config.max_batch_size
    if config.method != "bl" and largest is not None:
        if largest < config.batch_size:
            raise ValueError(
                f"`max_batch_size` must be at least batch_size={config.batch_size}, got {largest}."
            )
        if largest % config.batch_size:
            raise ValueError(
                f"`max_batch_size` must be a multiple of batch_size={config.batch_size}, got {largest}; "
                f"the nearest below is {largest // config.batch_size * config.batch_size}."
            )
    micro = config.micro_batch_size
    if micro is not None and config.batch_size % micro:
        raise ValueError(f"`micro_batch_size` must divide batch_size={config.batch_size}, got {micro}.")
    machine.check(config, fixed=config.method in GRADIENT_METHODS)
    if config.method in GRADIENT_METHODS and (config.batch_size == 1 or micro == config.batch_size):
        raise ValueError(
            f"`micro_batch_size` must be below batch_size={config.batch_size} for {config.method}, which "
            f"compares micro-batches, got {micro or 1}."
        )


def resolve(config: Config, num_examples: int) -> Config:
    """Check a config and fill its None fields in, all but ``data_dir`` and ``image_size``.

    Args:
      config: The settings of a run.
      num_examples: Examples in the training set.

    Returns:
      The config with nothing left to decide (but for what an attack or gg decides itself).

    Raises:
      ValueError: As ``check``, and if a batch is larger than the training set.

    Example:
      >>> resolve(Config(batch_size=32), num_examples=1000).max_batch_size
      992
    """
    check(config)
    if config.batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most the {num_examples} training examples of {config.dataset}, "
            f"got {config.batch_size}."
        )
    most = num_examples // config.batch_size
    largest = config.batch_size * min(128, most) if config.max_batch_size is None else config.max_batch_size
    if config.method == "bl":
        largest = config.batch_size
    if largest > num_examples:
        raise ValueError(
            f"`max_batch_size` must be at most the {num_examples} training examples of {config.dataset}, "
            f"got {largest}; the largest multiple of batch_size={config.batch_size} that fits is "
            f"{most * config.batch_size}."
        )
    micro = config.micro_batch_size
    if micro is None:
        micro = 128 if config.batch_size % 128 == 0 else config.batch_size
        if config.method in GRADIENT_METHODS and micro == config.batch_size:
            micro = next(size for size in range(micro // 2, 0, -1) if micro % size == 0)
    machine.check_sizes(config, micro)
    per_epoch = num_examples // micro * micro
    return robust.resolve(config)._replace(
        max_batch_size=largest,
        micro_batch_size=micro,
        devices=num_devices(config.mesh, config.devices),
        mesh=None,
        # How much gg grows by is the rule's to say: the inverse of the decay that it replaces.
        growth_factor=(2.0 if config.growth_factor is None and config.method != "gg" else config.growth_factor),
        lr_coupling=config.lr_coupling or ("none" if config.method in UNCOUPLED_METHODS else "linear"),
        measure_every=config.measure_every or (num_examples if config.keep_remainder else per_epoch),
        adversarial_epochs=(
            config.epochs // 2 if config.adversarial_epochs is None else config.adversarial_epochs
        ),
        hessian_batch_size=min(config.hessian_batch_size, num_examples),
    )


def _require(holds: bool, name: str, what: str, config: Config) -> None:
    if not holds:
        raise ValueError(f"`{name}` must {what}, got {getattr(config, name)}.")
