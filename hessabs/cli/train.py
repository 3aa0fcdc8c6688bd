"""``hessabs train``: train a network with a batch size that follows the curvature."""

import logging
import pathlib
from collections.abc import Sequence

from absl import flags

from hessabs.cli.flags import config_flags, given, parse, read_config, refuse, say


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: Its flags.

    Returns:
      The exit status: 0, 2 for input that cannot be used, or 128 + N after signal N (130 for Ctrl-C, 143 for
      SIGTERM) when the run is saved.
    """
    from hessabs.cpu import heap
    from hessabs.training import metrics, unread
    from hessabs.training.config import Config, check
    from hessabs.training.devices import lost, processes, sharing
    from hessabs.training.loop import train
    from hessabs.training.reports.report import table
    from hessabs.training.saving import durability
    from hessabs.training.saving.interruption import Interrupted
    from hessabs.training.setup import set_up

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with its traceback
    values = config_flags(Config, durability.Durability)
    flags.DEFINE_string(
        "workdir", None, "folder for metrics.jsonl, summary.json, curves.png and the params", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0, for several processes; detect: from the cluster's environment",
        flag_values=values,
    )
    flags.DEFINE_integer("num_processes", None, "number of processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "lose the run that workdir already holds", flag_values=values)
    try:
        if parse(values, "train", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder for the results with --workdir.")
        workdir = pathlib.Path(values.workdir)
        options = read_config(durability.Durability, values)
        durability.check(options)
        if options.resume and values.overwrite:
            raise ValueError(
                "--resume goes on with the run in workdir, --overwrite loses it: pass one of them."
            )
        config = read_config(Config, values)
        heap.limit()
        if values.devices or values.mesh:
            processes.take_turns()
        processes.join(values.coordinator, values.num_processes, values.process_id)
        with lost.noticed():
            sharing.on_first(
                lambda: metrics.check_workdir(workdir, overwrite=values.overwrite or options.resume)
            )
            check(config)
            unread.refuse_unread(given(Config, values), config)
            run = set_up(config)
        for line in unread.never_reached(run.config) if processes.is_first() else ():
            say(line)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return refuse(error)
    try:
        with lost.noticed():
            summary = train(run, workdir, options).summary
    except (FloatingPointError, ValueError, OSError) as error:
        return refuse(error)
    except Interrupted as error:
        refuse(error)
        return 128 + error.signum
    if not processes.is_first():
        return 0
    print(table({summary["method"]: summary}))
    print(f"curves: {workdir / metrics.CURVES}")
    return 0
