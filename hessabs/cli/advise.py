"""``hessabs advise``: a rate, a first batch and how it may grow, from minutes of trials on this machine."""

import pathlib
import shlex

from absl import flags

from hessabs.cli.flags import given, read_config
from hessabs.training import files
from hessabs.training.look.advise import Advice, Options, advise, report
from hessabs.training.look.pictures import draw_advice
from hessabs.training.optimizers import OptimizerSettings, check_optimizer
from hessabs.training.tasks.named import TaskSettings, make_named

SETTINGS = (TaskSettings, OptimizerSettings, Options)


def main(values: flags.FlagValues) -> int:
    """Try, and print what to begin with and the command for it."""
    options, optimizer = read_config(Options, values), read_config(OptimizerSettings, values)
    check_optimizer(optimizer, given(OptimizerSettings, values))
    task = make_named(read_config(TaskSettings, values))
    files.say(f"trials of {task.name} for about {options.minutes:g} minutes, and some compilation")
    found = advise(task, optimizer, epochs=options.epochs, minutes=options.minutes, seed=options.seed)
    print(report(found, _command(values, found)))
    if options.output is not None:
        with files.usable("output", pathlib.Path(options.output)):
            draw_advice(options.output, found)
        print(f"picture: {options.output}")
    return 0


def _command(values: flags.FlagValues, advice: Advice) -> str:
    typed = given(TaskSettings, values) | given(OptimizerSettings, values)
    chosen = {
        **{name: values[name].value for name in sorted(typed)},
        **advice.settings,
        "workdir": "runs/advised",
    }
    return "hessabs train " + " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in chosen.items())
