"""``hessabs train``: train a network with a batch size that follows the curvature."""

import logging
import pathlib

from absl import flags

from hessabs.cli.flags import given, read_config, refuse
from hessabs.training import durability, files, joining, processes
from hessabs.training.assemble import SETTINGS as RUN
from hessabs.training.assemble import assemble
from hessabs.training.callbacks import CallbackError, CallbackSettings, make_callbacks
from hessabs.training.interruption import Interrupted
from hessabs.training.look.results import summary_table
from hessabs.training.loop import fit

SETTINGS = (*RUN, CallbackSettings, durability.Durability, files.RunFolder, joining.Processes)


def main(values: flags.FlagValues) -> int:
    """Train; the exit status is 128 + N after signal N (130: Ctrl-C, 143: SIGTERM) when the run is saved."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with its traceback
    if values.workdir is None:
        raise ValueError("`workdir` is required: name the folder for the results with --workdir.")
    folder = pathlib.Path(values.workdir)
    options = read_config(durability.Durability, values)
    durability.check(options)
    if options.resume and values.overwrite:
        raise ValueError("--resume goes on with the run in workdir, --overwrite loses it: pass one of them.")
    if values.devices or values.mesh:
        joining.take_turns()
    joining.join(values.coordinator, values.num_processes, values.process_id)
    with joining.noticed():
        processes.on_first(lambda: files.check_workdir(folder, overwrite=values.overwrite or options.resume))
        named = set().union(*(given(kind, values) for kind in RUN))
        parts = assemble({name: values[name].value for name in named})
        callbacks = make_callbacks(values.callbacks, folder)
    for line in parts.notes if processes.is_first() else ():
        files.say(line)
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
    except (FloatingPointError, CallbackError) as error:
        return refuse(error)
    except Interrupted as error:
        refuse(error)
        return 128 + error.signum
    if processes.is_first():
        print(summary_table({result.summary["method"]: result.summary}))
        print(f"curves: {folder / files.CURVES}")
    return 0
