"""The settings that say how a run uses its machine; its results are the same under all of them."""

from typing import TYPE_CHECKING

from hessabs.attacks import num_replaced
from hessabs.training.devices.mesh import num_devices

if TYPE_CHECKING:
    from hessabs.training.config import Config

MICRO_BATCH = ("fixed", "auto")


def check(config: "Config", *, fixed: bool) -> None:
    """Check the fields of a config that need nothing else to be checked.

    Args:
      config: The settings of a run.
      fixed: Whether its rule compares micro-batches, which must then stay as they are.

    Raises:
      ValueError: In one line, what was got and what to do.
    """
    if config.micro_batch not in MICRO_BATCH:
        raise ValueError(f"`micro_batch` must be one of {', '.join(MICRO_BATCH)}, got {config.micro_batch!r}.")
    if config.micro_batch == "auto" and fixed:
        raise ValueError(
            f"`micro_batch` must be fixed for {config.method}, which compares equal micro-batches, got auto."
        )
    num_devices(config.mesh, config.devices)  # complains
    most = config.max_micro_batch_size
    if most is not None and config.micro_batch == "fixed":
        raise ValueError(
            f"`max_micro_batch_size` is a bound for --micro_batch=auto, got {most} with fixed; pass "
            "--micro_batch=auto, or leave it out."
        )


def check_sizes(config: "Config", micro_batch_size: int) -> None:
    """Check the fields whose range depends on the micro-batch.

    Args:
      config: The settings of a run.
      micro_batch_size: Its micro-batch.

    Raises:
      ValueError: In one line, what was got and what to do.
    """
    devices = num_devices(config.mesh, config.devices)
    if micro_batch_size % devices:
        raise ValueError(
            f"`micro_batch_size` must be a multiple of the {devices} devices, over which it is split, got "
            f"{micro_batch_size}."
        )
    most = config.max_micro_batch_size
    if most is not None and (most % micro_batch_size or (most // micro_batch_size).bit_count() != 1):
        raise ValueError(
            f"`max_micro_batch_size` must be micro_batch_size={micro_batch_size} times a power of two, "
            f"got {most}."
        )


def dealt(config: "Config", devices: int) -> "Config":
    """Give each device its share of the micro-batch, and of those of its examples that may be attacked.

    Args:
      config: Resolved settings.
      devices: Number of devices, to which the examples are dealt one by one.

    Returns:
      The settings of what one device sees.
    """
    whole = config.micro_batch_size or config.batch_size
    share = whole // devices
    attacked = -(-int(num_replaced(config.adversarial_fraction or 0.0, whole)) // devices)
    return config._replace(micro_batch_size=share, adversarial_fraction=attacked / share)
