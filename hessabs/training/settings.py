"""How a run is made beside its task, optimiser, rule and objective: one field, one flag of ``train``."""

from typing import Annotated, Literal, NamedTuple

from hessabs.training import fields

TRACKED = ("eigenvalue", "gradient_norm", "last_layer_eigenvalue")


class RunSettings(NamedTuple):
    """The settings of a run that change what it computes, and those that say how it uses its machine."""

    seed: Annotated[int, "seed of the initial params and of the order of the data", "be at least 0"] = 0
    micro_batch: Annotated[
        Literal["fixed", "auto"],
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
    mesh: Annotated[
        str | None,
        "devices by axis: data=N, or data=N,model=M, which splits the params over M devices besides; default: "
        "as devices says",
    ] = None
    hessian_batch_size: Annotated[
        int,
        "training examples, drawn once, on which the eigenvalue is measured; fewer if the set is smaller",
        "be at least 1",
    ] = 512
    hessian_iters: Annotated[int, "most Hessian-vector products per measurement", "be at least 1"] = 10
    hessian_rtol: Annotated[
        float, "relative residual at which a measurement is good enough", "be at least 0 and finite"
    ] = 1e-2
    track: Annotated[
        str,
        "measured at the end of every epoch, comma-separated: eigenvalue, gradient_norm (total), "
        "last_layer_eigenvalue; empty for none",
    ] = ""
    ema: Annotated[
        int | None,
        "half-life in examples of a moving average of the params, evaluated and saved, too; default: none",
        "be at least 1",
    ] = None
    fgsm_epsilon: Annotated[
        float,
        "size of the FGSM and PGD perturbations that test the trained network, in units of its inputs",
        "be at least 0 and finite",
    ] = 0.02
    pgd_steps: Annotated[
        int, "steps of the PGD attack that tests the trained network; 0 for no such test", "be at least 0"
    ] = 0

    @property
    def tracked(self) -> tuple[str, ...]:
        """What is measured at the end of every epoch."""
        return tuple(part.strip() for part in self.track.split(",") if part.strip())


def check_run(settings: RunSettings) -> None:
    """Check the fields that need nothing else to be checked: a ValueError in one line."""
    fields.check(settings)
    for name in settings.tracked:
        if name not in TRACKED:
            raise ValueError(f"`track` must name some of {', '.join(TRACKED)}, got {name!r}.")
    if settings.max_micro_batch_size is not None and settings.micro_batch == "fixed":
        raise ValueError(
            f"`max_micro_batch_size` is a bound for --micro_batch=auto, got {settings.max_micro_batch_size} "
            "with fixed; pass --micro_batch=auto, or leave it out."
        )
