"""``hessabs plan``: batch size, learning rate and updates by epoch, without training."""

import pathlib
from collections.abc import Sequence

from absl import flags

from hessabs.cli.flags import config_flags, define_number, given, parse, read_config, refuse, say


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: Its flags.

    Returns:
      The exit status: 0, or 2 for input that cannot be used.
    """
    from hessabs.batch_size import methods, picture
    from hessabs.planning import StepSeconds, measure_seconds, report
    from hessabs.training import files, unread

    values = config_flags(methods.Settings)
    for name, text in (
        ("t_comp", "seconds of computation per update"),
        ("t_comm", "seconds of communication per update"),
        ("t_hess", "seconds per measurement"),
    ):
        define_number(name, None, text, values)
    flags.DEFINE_bool(
        "measure_times", False, "measure t_comp and t_hess here, on one device (t_comm: 0)", flag_values=values
    )
    flags.DEFINE_string("dataset", "digits", "data set of measure_times", flag_values=values)
    flags.DEFINE_string("data_dir", None, "folder of its TFDS data set", flag_values=values)
    flags.DEFINE_string("model", "mlp", "network of measure_times", flag_values=values)
    flags.DEFINE_string("output", None, "file for a picture, plan.png say", flag_values=values)
    try:
        if parse(values, "plan", argv):
            return 0
        settings = read_config(methods.Settings, values)
        bounds = methods.make_plans(settings)
        unread.refuse_for_method(given(methods.Settings, values), settings.method)
        _refuse_without(values, "measure_times", values.measure_times, ("dataset", "data_dir", "model"))
        _refuse_without(values, "t_comp", values.t_comp is not None, ("t_comm", "t_hess"))
        whole = methods.make_plans(methods.as_trained(settings), whole_updates=True)
        times = None
        if values.measure_times:
            times = measure_seconds(settings, values.dataset, values.data_dir, values.model)
        elif values.t_comp is not None:
            times = StepSeconds(values.t_comp, values.t_comm or 0.0, values.t_hess or 0.0)
        print(report(settings, bounds, whole, times))
        for line in unread.never_reached(settings):
            say(line)
        if values.output is not None:
            title = f"{settings.method}, {settings.epochs} epochs"
            with files.usable("output", pathlib.Path(values.output)):
                picture.draw_plans(bounds, settings.lr, title).savefig(values.output)
            print(f"picture: {values.output}")
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    return 0


def _refuse_without(values: flags.FlagValues, flag: str, holds: bool, names: Sequence[str]) -> None:
    for name in names:
        if values[name].present and not holds:
            raise ValueError(f"`{name}` is read with --{flag} alone; pass that too, or leave it out.")
