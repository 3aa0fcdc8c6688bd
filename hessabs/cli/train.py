"""``hessabs train``: train a network with a batch size that follows the curvature."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
from absl import flags

from hessabs.cli.flags import given, read_config, refuse
from hessabs.data import catalog
from hessabs.training import durability, files, joining, processes
from hessabs.training.assemble import SETTINGS as RUN
from hessabs.training.assemble import Parts, assemble
from hessabs.training.callbacks import CallbackError, CallbackSettings, make_callbacks
from hessabs.training.interruption import Interrupted
from hessabs.training.look.results import summary_table
from hessabs.training.loop import fit


class Download(NamedTuple):
    """Where a data set may come from."""

    no_download: Annotated[
        bool,
        "refuse a TFDS set that is not prepared; default: TFDS downloads and prepares it (extra `prepare`)",
    ] = False


SETTINGS = (*RUN, Download, CallbackSettings, durability.Durability, files.RunFolder, joining.Processes)


def main(values: flags.FlagValues) -> int:
    """Train; the exit status is 128 + N after signal N (130: Ctrl-C, 143: SIGTERM) when the run is saved."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, with its traceback
    if not values.workdir:  # an empty one is a variable of the shell that is not set
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
        given_values = {name: values[name].value for name in named}
        parts = assemble(given_values) if values.no_download else _assemble(given_values)
        callbacks = make_callbacks(values.callbacks, folder)
    for line in parts.notes if processes.is_first() else ():
        files.say(line)
    try:
        with joining.noticed():
            result = fit(
                parts.task,
                parts.optimizer,
                parts.rule,
                overwrite=values.overwrite,
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


def _assemble(given: Mapping[str, Any]) -> Parts:
    """Make the parts of a run; its data set is prepared first if it is not yet, and can be here."""
    try:
        return assemble(given)
    except catalog.NotPreparedError:
        # Several processes would write one folder at once, or would not all write theirs.
        if not catalog.can_prepare() or jax.process_count() > 1:
            raise
    name = given["dataset"]

    def announce(place: pathlib.Path) -> None:
        files.say(
            f"{name!r} is not prepared yet: TFDS downloads it and prepares it in {place}, which may take "
            "minutes (--no_download refuses that)."
        )

    catalog.prepare(name, given.get("data_dir"), announce=announce)
    return assemble(given)
