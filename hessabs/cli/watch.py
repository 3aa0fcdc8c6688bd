"""``hessabs watch``: the curves of runs in the terminal, while they train or afterwards."""

import pathlib
from typing import Annotated, NamedTuple

from absl import flags

from hessabs.cli.flags import read_config, refuse
from hessabs.training.look.watch import watch


class Options(NamedTuple):
    """Which runs are shown, and how long."""

    workdir: Annotated[str | None, "folder of a run, which may be running"] = None
    compare: Annotated[tuple[str, ...], "folders of runs to put beside it"] = ()
    once: Annotated[bool, "show what is there now and end; so it is where the output is no terminal"] = False


SETTINGS = (Options,)


def main(values: flags.FlagValues) -> int:
    """Show the runs until none is running; the exit status is 130 after Ctrl-C."""
    options = read_config(Options, values)
    if not options.workdir:
        raise ValueError("`workdir` is required: name the folder of a run with --workdir.")
    try:
        watch([pathlib.Path(name) for name in (options.workdir, *options.compare)], follow=not options.once)
    except KeyboardInterrupt:
        refuse("no longer watching; what is running goes on.")
        return 130
    return 0
