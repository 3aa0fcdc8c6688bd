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
    from hessabs.training import durability, files, joining, processes
    from hessabs.training.assemble import SETTINGS, assemble
    from hessabs.training.callbacks import CallbackError, CallbackSettings, make_callbacks
    from hessabs.training.interruption import Interrupted
    from hessabs.training.look.results import summary_table
    from hessabs.training.loop import fit

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with its traceback
    values = config_flags(
        *SETTINGS, CallbackSettings, durability.Durability, files.RunFolder, joining.Processes
    )
    try:
        if parse(values, "train", argv):
            return 0
        if values.workdir is None:
            raise ValueError("`workdir` is required: name the folder for the results with --workdir.")
        folder = pathlib.Path(values.workdir)
        options = read_config(durability.Durability, values)
        durability.check(options)
        if options.resume and values.overwrite:
            raise ValueError(
                "--resume goes on with the run in workdir, --overwrite loses it: pass one of them."
            )
        if values.devices or values.mesh:
            joining.take_turns()
        joining.join(values.coordinator, values.num_processes, values.process_id)
        with joining.noticed():
            processes.on_first(
                lambda: files.check_workdir(folder, overwrite=values.overwrite or options.resume)
            )
            named = set().union(*(given(kind, values) for kind in SETTINGS))
            parts = assemble({name: values[name].value for name in named})
            callbacks = make_callbacks(values.callbacks, folder)
        for line in parts.notes if processes.is_first() else ():
            say(line)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return refuse(error)
    try:
        with joining.noticed():
            result = fit(
                parts.task,
                parts.optimizer,
                parts.rule,
                workdir=folder,
                durability=options,
                callbacks=callbacks,
                **parts.options,
            )
    except (FloatingPointError, ValueError, OSError, CallbackError) as error:
        return refuse(error)
    except Interrupted as error:
        refuse(error)
        return 128 + error.signum
    if processes.is_first():
        print(summary_table({result.summary["method"]: result.summary}))
        print(f"curves: {folder / files.CURVES}")
    return 0
