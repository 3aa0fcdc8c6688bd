"""The command line: ``hessabs train``, ``hessabs plan`` and ``hessabs spectrum``.

Every flag of a command is a field of its config, so that a script, a test and a shell say the same thing.
Input that cannot be used ends in one line on standard error and exit status 2.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

_USAGE = """usage: hessabs COMMAND [--flag=value ...]

commands:
  train     train a network with a batch size that follows the curvature
  plan      batch size, learning rate and updates by epoch, without training
  spectrum  the Hessian eigenvalues of a network that was trained

`hessabs COMMAND --help` lists the flags of a command."""

_KINDS = {"comma separated list of strings": "N,N,...", "bool": "true|false"}


def run() -> None:
    """Run the command line of this process and exit."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run a command.

    Args:
      argv: The command and its flags, without the name of the program.

    Returns:
      The exit status: 0, or 2 for input that cannot be used.
    """
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": _train,
        "plan": _plan,
        "spectrum": _spectrum,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] not in commands:
        return _refuse(f"unknown command {argv[0]!r}; the commands are: {', '.join(commands)}.")
    return commands[argv[0]](argv[1:])


def _train(argv: Sequence[str]) -> int:
    from hessabs.training import metrics
    from hessabs.training.config import Config
    from hessabs.training.loop import train
    from hessabs.training.report import table
    from hessabs.training.setup import set_up

    values = _config_flags(Config)
    flags.DEFINE_string(
        "workdir", None, "folder for metrics.jsonl, summary.json, curves.png and the params", flag_values=values
    )
    flags.DEFINE_bool("overwrite", False, "lose the run that workdir already holds", flag_values=values)
    try:
        if _parse(values, "train", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder for the results with --workdir.")
        workdir = pathlib.Path(values.workdir)
        metrics.check_workdir(workdir, overwrite=values.overwrite)
        run = set_up(_config(Config, values))
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return _refuse(error)
    try:
        summary = train(run, workdir).summary
    except (FloatingPointError, OSError) as error:
        return _refuse(error)
    print(table({summary["method"]: summary}))
    print(f"curves: {workdir / metrics.CURVES}")
    return 0


def _plan(argv: Sequence[str]) -> int:
    from hessabs.batch_size import methods, picture
    from hessabs.planning import StepSeconds, measure_seconds, report

    values = _config_flags(methods.Settings)
    for name, text in (
        ("t_comp", "seconds of computation per update"),
        ("t_comm", "seconds of communication per update"),
        ("t_hess", "seconds per measurement"),
    ):
        flags.DEFINE_float(name, None, text, flag_values=values)
    flags.DEFINE_bool(
        "measure_times", False, "measure t_comp and t_hess here, on one device (t_comm: 0)", flag_values=values
    )
    flags.DEFINE_string("dataset", "digits", "data set of measure_times", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of its TFDS data set", flag_values=values)
    flags.DEFINE_string("model", "mlp", "network of measure_times", flag_values=values)
    flags.DEFINE_string("output", None, "file for a picture, plan.png say", flag_values=values)
    try:
        if _parse(values, "plan", argv):
            return 0
        settings = _config(methods.Settings, values)
        bounds = methods.make_plans(settings)
        whole = methods.make_plans(methods.as_trained(settings), whole_updates=True)
        times = None
        if values.measure_times:
            times = measure_seconds(settings, values.dataset, values.data_dir, values.model)
        elif values.t_comp is not None:
            times = StepSeconds(values.t_comp, values.t_comm or 0.0, values.t_hess or 0.0)
        print(report(settings, bounds, whole, times))
        if values.output is not None:
            picture.draw_plans(bounds, settings.lr, f"{settings.method}, {settings.epochs} epochs").savefig(
                values.output
            )
            print(f"picture: {values.output}")
    except (flags.Error, ValueError, OSError) as error:
        return _refuse(error)
    return 0


def _spectrum(argv: Sequence[str]) -> int:
    from hessabs.training.spectrum import SPECTRUM, Options, spectrum

    values = _config_flags(Options)
    flags.DEFINE_string("workdir", None, "folder of a finished run; the results go there", flag_values=values)
    try:
        if _parse(values, "spectrum", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder of a finished run with --workdir.")
        workdir = pathlib.Path(values.workdir)
        fields: dict[str, Any] = {name: values[name].value for name in Options._fields}
        record = spectrum(workdir, Options(**fields))
    except (flags.Error, ValueError, OSError) as error:
        return _refuse(error)
    print("matrix                 number   eigenvalue   residual")
    for row in record["eigenvalues"]:
        mark = "" if row["converged"] else "  (not converged)"
        numbers = f"{row['number']:6d} {row['eigenvalue']:12.6g} {row['residual']:10.1e}"
        print(f"{row['matrix']:22s} {numbers}{mark}")
    print(f"spectrum: {workdir / SPECTRUM}")
    return 0


def _config_flags(config_type: Any) -> flags.FlagValues:
    """Define a flag for each field of a config, apart from absl's global flags."""
    from hessabs.training.config import field_help, field_types

    values = flags.FlagValues()
    helps, types = field_help(config_type), field_types(config_type)
    for name, default in config_type._field_defaults.items():
        if types[name] is bool:
            flags.DEFINE_bool(name, default, helps[name], flag_values=values)
        elif types[name] is int:
            flags.DEFINE_integer(name, default, helps[name], flag_values=values)
        elif types[name] is float:
            flags.DEFINE_float(name, default, helps[name], flag_values=values)
        elif types[name] is tuple:
            flags.DEFINE_list(name, [str(item) for item in default], helps[name], flag_values=values)
        else:
            flags.DEFINE_string(name, default, helps[name], flag_values=values)
    return values


def _config(config_type: Any, values: flags.FlagValues) -> Any:
    fields: dict[str, Any] = {name: values[name].value for name in config_type._fields}
    try:
        decays = tuple(int(epoch) for epoch in fields["lr_decay_epochs"] if epoch.strip())
    except ValueError:
        raise ValueError(
            f"`lr_decay_epochs` must be whole numbers separated by commas, got "
            f"{','.join(fields['lr_decay_epochs'])!r}."
        ) from None
    return config_type(**{**fields, "lr_decay_epochs": decays})


def _parse(values: flags.FlagValues, command: str, argv: Sequence[str]) -> bool:
    """Parse flags; for --help print them and return True."""
    if {"-h", "--help", "-help"} & set(argv):
        print(f"usage: hessabs {command} [--flag=value ...]\n")
        for name in values:
            flag = values[name]
            kind = _KINDS.get(flag.flag_type(), flag.flag_type())
            default = "" if flag.default is None else f" (default: {_as_typed(flag.default)})"
            print(f"  --{name}={kind}\n      {flag.help}{default}")
        return True
    rest = values([command, *argv])[1:]
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; every setting is a flag, --name=value.")
    return False


def _as_typed(default: Any) -> str:
    if isinstance(default, list):
        return ",".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _refuse(error: object) -> int:
    print("hessabs: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    run()
