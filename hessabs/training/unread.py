"""Settings that change nothing: those that a run does not read, and epochs that it does not reach."""

from collections.abc import Collection

from hessabs.batch_size.methods import READ_BY, Settings
from hessabs.training import robust
from hessabs.training.config import Config
from hessabs.training.robust.inner import ITERATED

_ROBUST = {  # which kinds of robust training read a field
    "epsilon": ("absa", "pgd", "trades", "free"),
    "trades_beta": ("trades",),
    "free_replays": ("free",),
    "sam_rho": ("sam",),
    "fraction_decrease": ("absa",),
    "adversarial_epochs": ("absa",),
}
_EPOCHS = {  # which methods read the epochs of a field
    "lr_decay_epochs": None,
    "grow_epochs": READ_BY["grow_epochs"],
    "warmup_epochs": READ_BY["warmup_epochs"],
}


def refuse_unread(given: Collection[str], config: Config) -> None:
    """Refuse a setting that was asked for and changes nothing.

    Args:
      given: The names of the fields that were given, those that were given their default too.
      config: The settings of a run, not resolved; ``check`` has passed them.

    Raises:
      ValueError: Naming the setting, and which method reads it.

    Example:
      >>> refuse_unread({"threshold"}, Config(method="absa", threshold=9.0))
      Traceback (most recent call last):
      ...
      ValueError: `threshold` is read with method=stability, and not with method=absa; leave it out.
    """
    refuse_for_method(given, config.method)
    resolved = robust.resolve(config)
    for name in sorted(given):
        _require(name, "robust", resolved.robust, _ROBUST.get(name))
    if "attack_steps" in given:
        _require("attack_steps", "attack", resolved.attack, ITERATED)
    if "data_workers" in given and config.image_size is None:
        raise ValueError("`data_workers` is read with image_size alone, and there is none; leave it out.")
    if "lr_decay" in given and not config.lr_decay_epochs and config.method != "gg":
        raise ValueError("`lr_decay` is read with lr_decay_epochs, and there are none; leave it out.")


def refuse_for_method(given: Collection[str], method: str) -> None:
    """Refuse a setting of a batch-size rule that the rule does not read.

    Args:
      given: The names of the fields that were given.
      method: The name of the rule.

    Raises:
      ValueError: Naming the setting, and which method reads it.
    """
    for name in sorted(given):
        _require(name, "method", method, READ_BY.get(name))


def never_reached(config: Config | Settings) -> list[str]:
    """Say which epochs of the schedules lie beyond the end of a run.

    Args:
      config: The settings of a run.

    Returns:
      A sentence for each schedule with such epochs.

    Example:
      >>> never_reached(Config(method="bl", epochs=70))
      ['`lr_decay_epochs` 80: the run ends before, after epochs=70.']
    """
    lines = []
    for name, methods in _EPOCHS.items():
        value = getattr(config, name)
        epochs = value if isinstance(value, tuple) else (value,)
        late = [epoch for epoch in epochs if epoch >= config.epochs]
        if late and (methods is None or config.method in methods):
            shown = ",".join(map(str, late))
            lines.append(f"`{name}` {shown}: the run ends before, after epochs={config.epochs}.")
    return lines


def _require(name: str, field: str, value: str | None, readers: Collection[str] | None) -> None:
    if readers is not None and value not in readers:
        raise ValueError(
            f"`{name}` is read with {field}={', '.join(readers)}, and not with {field}={value or 'none'}; "
            "leave it out."
        )
