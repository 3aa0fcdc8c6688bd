"""From settings, as the command line and the experiments give them, to the parts of a run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hessabs.batch_size import Controller, methods
from hessabs.batch_size import settings as rules
from hessabs.training import fields
from hessabs.training.objectives.named import (
    ObjectiveSettings,
    make_objective,
    refuse_unread,
    resolve_objective,
)
from hessabs.training.optimizers import Optimizer, OptimizerSettings, make_optimizer
from hessabs.training.schedules import ScheduleSettings, check_schedule, of_settings
from hessabs.training.settings import RunSettings
from hessabs.training.task import Task
from hessabs.training.tasks.named import TaskSettings, make_named


class MethodSettings(NamedTuple):
    """Which rule."""

    method: rules.MethodName = "absa"


SETTINGS: tuple[Any, ...] = (
    TaskSettings,
    MethodSettings,
    rules.PlanSettings,
    *rules.METHODS.values(),
    OptimizerSettings,
    ScheduleSettings,
    ObjectiveSettings,
    RunSettings,
)
"""Every setting of a run is a field of one of these."""


class Parts(NamedTuple):
    """What ``hessabs.training.fit`` takes."""

    task: Task
    optimizer: Optimizer
    rule: Controller
    options: dict[str, Any]  # its keyword arguments
    notes: list[str]  # what the user should hear


def assemble(given: Mapping[str, Any], task: Task | None = None) -> Parts:
    """Make the parts of a run from settings by name.

    Args:
      given: The settings that were given, those that were given their default too; the others have theirs.
      task: What is learnt; None makes it from the settings.

    Returns:
      ``Parts``: ``fit(parts.task, parts.optimizer, parts.rule, **parts.options)`` trains.

    Raises:
      ValueError: If a setting is unknown, out of its range, not read by what was chosen, or does not fit the
        data, in one line.

    Example:
      >>> parts = assemble({"method": "gg", "epochs": 3, "lr_decay_epochs": (1, 2)})
      >>> parts.task.name, parts.options["epochs"], parts.options["record"]["method"]
      ('digits', 3, 'gg')
    """
    known = fields.declared(*SETTINGS)
    for name in given:
        if name not in known:
            raise ValueError(f"there is no setting `{name}`{fields.nearest(name, known)}.")

    def read(kind: Any) -> Any:
        settings = kind(**{name: given[name] for name in kind._fields if name in given})
        fields.check_types(settings)
        return settings

    # What can be refused without the data is refused before the data is read.
    name = read(MethodSettings).method
    method, run = methods.choose(name, given), read(rules.PlanSettings)
    methods.check(run, method)
    objective = resolve_objective(read(ObjectiveSettings), name, run.adversarial_fraction)
    refuse_unread(given, objective)
    settings, chosen, schedule = read(RunSettings), read(OptimizerSettings), read(ScheduleSettings)
    if objective.robust == "absa" and run.adversarial_fraction is None:
        run = run._replace(adversarial_fraction=0.2)
    check_schedule(schedule)
    if schedule.schedule != "step":
        if "lr_decay_epochs" in given:
            raise ValueError(
                f"`lr_decay_epochs` is read with schedule=step, and not with schedule={schedule.schedule}; "
                "leave it out."
            )
        run = run._replace(lr_decay_epochs=())
    if run.remainder == "fill":
        raise ValueError("`remainder` must be drop or keep for a training run; fill is for a plan.")

    task = make_named(read(TaskSettings)) if task is None else task
    num_examples = len(task.train)
    run, method = methods.resolve(run, method, num_examples, dataset=task.name)
    per_epoch = methods.per_epoch(run, num_examples)
    coupling = given.get("lr_coupling")
    optimizer = make_optimizer(
        chosen, batch_size=run.batch_size, lr_coupling=coupling, num_classes=task.num_classes
    )
    if coupling is None and getattr(method, "lr_coupling", None) == "linear":
        method = method._replace(lr_coupling=optimizer.coupling)  # type: ignore[call-arg]
    warmup = 5 if schedule.warmup_epochs is None else schedule.warmup_epochs
    rule = methods.make_rule(run, method, num_examples, lr=optimizer.lr, warmup_epochs=warmup)
    if name == "fb":
        schedule = schedule._replace(warmup_epochs=0)  # its warm-up is the rule's, up to the scaled rate
    settings = settings._replace(hessian_batch_size=min(settings.hessian_batch_size, num_examples))
    resolved: dict[str, Any] = {}
    for part in (run, method, chosen._replace(lr=optimizer.lr), schedule, objective, settings):
        resolved |= part._asdict()
    return Parts(
        task,
        optimizer,
        rule,
        {
            "epochs": run.epochs,
            "micro_batch_size": run.micro_batch_size,
            "remainder": run.remainder,
            "objective": make_objective(objective, run.adversarial_fraction or 0.0),
            "schedule": of_settings(schedule, epochs=run.epochs, per_epoch=per_epoch),
            "settings": settings,
            "record": {
                "method": name,
                **resolved,
                "warmup_epochs": warmup if name == "fb" else schedule.warmup_epochs,
            },
        },
        methods.never_reached(run, method),
    )
