"""``hessabs attack``: the accuracy of a network that was trained under attacks, by epsilon."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from hessabs.cli.flags import config_flags, parse, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: Its flags.

    Returns:
      The exit status: 0, or 2 for input that cannot be used.
    """
    from hessabs.training.analysis.attack import Options, attack, stem

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
        record = attack(workdir, options)
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    print("attack           epsilon   accuracy   mean relative   max relative   ms per image")
    for row in record["rows"]:
        numbers = f"{row['epsilon']:9.4g} {100 * row['accuracy']:9.2f}% {row['mean_relative']:15.4g}"
        print(
            f"{row['attack']:14s} {numbers} {row['max_relative']:14.4g} {1000 * row['seconds_per_image']:14.4g}"
        )
    for message in record["warnings"]:
        print(f"warning: {message}", file=sys.stderr)
    print(f"attack: {workdir / stem(options)}.json")
    return 0
