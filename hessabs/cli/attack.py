"""``hessabs attack``: the accuracy of a network that was trained under attacks, by epsilon."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from hessabs.cli.flags import config_flags, given, parse, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: Its flags.

    Returns:
      The exit status: 0, or 2 for input that cannot be used.
    """
    from hessabs.training import metrics
    from hessabs.training.analysis.attack import Options, attack, stem
    from hessabs.training.analysis.attack_menu import readers

    values = config_flags(Options)
    flags.DEFINE_string("workdir", None, "folder of a finished run; the results go there", flag_values=values)
    try:
        if parse(values, "attack", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder of a finished run with --workdir.")
        workdir = pathlib.Path(values.workdir)
        fields: dict[str, Any] = {name: values[name].value for name in Options._fields}
        options = Options(**fields)
        for option in given(Options, values) & {"steps", "restarts", "queries"}:
            if not {name.strip() for name in options.attack.split(",")} & set(readers(option)):
                raise ValueError(
                    f"`{option}` is read by the attacks {', '.join(readers(option))}, and not by "
                    f"{options.attack}; leave it out."
                )
        with metrics.usable("workdir", workdir):
            record = attack(workdir, options)
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    print("attack           epsilon   accuracy   mean relative   max relative   ms per image   compiling s")
    for row in record["rows"]:
        numbers = f"{row['epsilon']:9.4g} {100 * row['accuracy']:9.2f}% {row['mean_relative']:15.4g}"
        times = f"{1000 * row['seconds_per_image']:14.4g} {row['seconds_compile']:13.1f}"
        print(f"{row['attack']:14s} {numbers} {row['max_relative']:14.4g} {times}")
    for message in record["warnings"]:
        print(f"warning: {message}", file=sys.stderr)
    print(f"attack: {workdir / stem(options)}.json")
    return 0
