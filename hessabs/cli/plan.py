"""``hessabs plan``: batch size, learning rate and updates by epoch, without training."""

import pathlib
from typing import Annotated, NamedTuple

from absl import flags

from hessabs.batch_size import methods
from hessabs.cli.flags import given, read_config
from hessabs.training import files
from hessabs.training.assemble import RULE_SETTINGS, read_rule
from hessabs.training.look.pictures import draw_plans
from hessabs.training.look.plan import StepSeconds, measure_seconds, num_examples, report
from hessabs.training.tasks.named import TaskSettings, make_named


class Options(NamedTuple):
    """What is planned beside the settings of the run."""

    num_examples: Annotated[
        int | None, "examples in the training set; default: those of --dataset", "be at least 1"
    ] = None
    t_comp: Annotated[float | None, "seconds of computation per update", "be at least 0 seconds"] = None
    t_comm: Annotated[float | None, "seconds of communication per update", "be at least 0 seconds"] = None
    t_hess: Annotated[float | None, "seconds per measurement", "be at least 0 seconds"] = None
    measure_times: Annotated[bool, "measure t_comp and t_hess here, on one device (t_comm: 0)"] = False
    output: Annotated[str | None, "file for a picture, plan.png say"] = None


_COUNTED = {"dataset", "data_dir", "train_split", "sequence_length", "validation_examples"}
SETTINGS = (*RULE_SETTINGS, TaskSettings, Options)


def main(values: flags.FlagValues) -> int:
    """Print the plan, and draw it if a file is named."""
    options = read_config(Options, values)
    task_settings, of_task = read_config(TaskSettings, values), given(TaskSettings, values)
    by_name = "dataset" in of_task
    if options.num_examples is None and not by_name:
        raise ValueError(
            "`num_examples` is required: the examples in the training set; or `dataset`, its name."
        )
    if options.num_examples is not None and by_name:
        raise ValueError(
            f"`num_examples` and `dataset` both say how many training examples there are, got "
            f"{options.num_examples} and {task_settings.dataset}: leave one out."
        )
    for flag, is_there, names in (
        ("measure_times", options.measure_times, of_task - (_COUNTED if by_name else set())),
        ("t_comp", options.t_comp is not None, given(Options, values) & {"t_comm", "t_hess"}),
    ):
        for name in () if is_there else sorted(names):
            also = f"--dataset or --{flag}" if name in _COUNTED else f"--{flag}"
            raise ValueError(f"`{name}` is read with {also}; pass that too, or leave it out.")
    examples = num_examples(task_settings) if options.num_examples is None else options.num_examples
    named = set().union(*(given(kind, values) for kind in RULE_SETTINGS))
    rule = read_rule({name: values[name].value for name in named}, examples)
    bounds, whole = rule.plans(whole_updates=False), rule.plans(whole_updates=True)
    times = None
    if options.measure_times:
        task = make_named(task_settings)
        times = measure_seconds(task, rule.run.micro_batch_size or rule.run.batch_size)
    elif options.t_comp is not None:
        times = StepSeconds(options.t_comp, options.t_comm or 0.0, options.t_hess or 0.0)
    print(report(bounds, whole, rule.rates, times))
    for line in rule.notes:
        files.say(line)
    if options.output is not None:
        title = f"{methods.name_of(rule.method)}, {rule.run.epochs} epochs"
        with files.usable("output", pathlib.Path(options.output)):
            draw_plans(options.output, bounds, rule.rates, title)
        print(f"picture: {options.output}")
    return 0
