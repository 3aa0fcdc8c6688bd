"""From settings, as the command line and the experiments give them, to the parts of a run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hessabs.batch_size import Bounds, Controller, Plan, methods
from hessabs.batch_size import settings as rules
from hessabs.data.text import describe
from hessabs.training import factories, fields
from hessabs.training.objectives.named import ObjectiveSettings, make_objective, resolve_objective
from hessabs.training.optimizers import (
    LEARNING_RATE,
    Optimizer,
    OptimizerSettings,
    check_optimizer,
    make_optimizer,
)
from hessabs.training.schedules import Schedule, ScheduleSettings, check_schedule, of_settings
from hessabs.training.settings import RunSettings, check_run
from hessabs.training.task import Task
from hessabs.training.tasks.named import TaskSettings, check_unread, make_named


class MethodSettings(NamedTuple):
    """Which rule."""

    method: rules.MethodName = "absa"


RULE_SETTINGS: tuple[Any, ...] = (
    MethodSettings,
    rules.PlanSettings,
    *rules.METHODS.values(),
    OptimizerSettings,
    ScheduleSettings,
)
"""What a plan needs: every setting of rule, optimiser and schedule is a field of one of these."""

SETTINGS: tuple[Any, ...] = (TaskSettings, *RULE_SETTINGS, ObjectiveSettings, RunSettings)
"""Every setting of a run is a field of one of these."""


class RuleParts(NamedTuple):
    """How the batch and the learning rate go."""

    run: rules.PlanSettings  # resolved
    method: rules.Method  # resolved
    rule: Controller
    optimizer: Optimizer
    schedule: Schedule
    record: dict[str, Any]  # every setting that made them
    plans: Callable[..., Bounds]  # whole_updates -> what is planned
    schedule_of: Callable[[int], Schedule]  # from the examples of an epoch
    notes: list[str]  # what the user should hear

    def rates(self, plan: Plan) -> list[float]:
        """List the learning rates of the last update in each epoch of a plan."""
        schedule = self.schedule_of(plan.epochs[-1].samples // len(plan.epochs))
        return [self.optimizer.lr * row.lr_scale * schedule(row.last_update) for row in plan.epochs]


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
    # What can be refused without the data is refused before the data is read.
    chosen = _choose(given)
    run = chosen.run
    fraction = run.adversarial_fraction
    objective = resolve_objective(_read(ObjectiveSettings, given), chosen.name, fraction, given)
    settings = _read(RunSettings, given)
    check_run(settings)
    if objective.robust != "absa" or fraction is None:
        fraction = 0.2 if objective.robust == "absa" else 0.0
        chosen = chosen._replace(run=run._replace(adversarial_fraction=fraction))
    if run.remainder == "fill":
        raise ValueError("`remainder` must be drop or keep for a training run; fill is for a plan.")

    if task is None:
        check_unread(given)
        task = make_named(_read(TaskSettings, given))
    num_examples = len(task.train)
    made = _make(chosen, given, num_examples, task.name, task.num_classes)
    settings = settings._replace(hessian_batch_size=min(settings.hessian_batch_size, num_examples))
    options = {
        "epochs": made.run.epochs,
        "micro_batch_size": made.run.micro_batch_size,
        "remainder": made.run.remainder,
        "objective": make_objective(objective, made.run.adversarial_fraction or 0.0),
        "schedule": made.schedule,
        "settings": settings,
        "record": {**made.record, **objective._asdict()},
    }
    notes = made.notes
    if "text" in task.settings:
        notes.insert(0, describe(task.name, task.settings["text"]))
    return Parts(task, made.optimizer, made.rule, options, notes)


def read_rule(given: Mapping[str, Any], num_examples: int) -> RuleParts:
    """Make rule, optimiser and schedule from settings by name, without data, for a plan."""
    return _make(_choose(given), given, num_examples)


class _Chosen(NamedTuple):
    name: str
    method: rules.Method
    run: rules.PlanSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings


def _read(kind: Any, given: Mapping[str, Any]) -> Any:
    settings = kind(**{name: given[name] for name in kind._fields if name in given})
    fields.check(settings)
    return settings


def _choose(given: Mapping[str, Any]) -> _Chosen:
    name = _read(MethodSettings, given).method
    method, run = methods.choose(name, given), _read(rules.PlanSettings, given)
    methods.check(run, method)
    optimizer, schedule = _read(OptimizerSettings, given), _read(ScheduleSettings, given)
    check_optimizer(optimizer, given)
    if name == "gg" and schedule.schedule != "step":
        raise ValueError(
            f"`method` gg grows where `schedule` step would fall, got {schedule.schedule}: seesaw grows as any "
            "schedule falls."
        )
    check_schedule(schedule, given)
    if schedule.schedule != "step":
        run = run._replace(lr_decay_epochs=())
    return _Chosen(name, method, run, optimizer, schedule)


def _make(
    chosen: _Chosen,
    given: Mapping[str, Any],
    num_examples: int,
    dataset: str | None = None,
    num_classes: int | None = None,
) -> RuleParts:
    run, method = methods.resolve(chosen.run, chosen.method, num_examples, dataset=dataset)
    coupling = getattr(method, "lr_coupling", None)
    first: Any = {"batch_size": run.batch_size, "num_classes": num_classes}
    optimizer = make_optimizer(chosen.optimizer, lr_coupling=coupling, **first)
    if coupling == "linear" and "lr_coupling" not in given and optimizer.coupling != coupling:
        coupling = optimizer.coupling  # that of its kind
        method = method._replace(lr_coupling=coupling)  # type: ignore[call-arg]
        optimizer = make_optimizer(chosen.optimizer, lr_coupling=coupling, **first)
    schedule, is_fb = chosen.schedule, chosen.name == "fb"
    warmup = 5 if schedule.warmup_epochs is None else schedule.warmup_epochs
    shown = schedule._replace(warmup_epochs=warmup if is_fb else schedule.warmup_epochs)
    if is_fb:  # its warm-up is the rule's, up to the scaled rate
        schedule = schedule._replace(warmup_epochs=0)

    def schedule_of(per_epoch: int) -> Schedule:
        return of_settings(schedule, epochs=run.epochs, per_epoch=per_epoch)

    outer = schedule_of(methods.per_epoch(run, num_examples))
    pace: Any = {"lr": optimizer.lr, "warmup_epochs": warmup}
    record: dict[str, Any] = {"method": chosen.name}
    lr = optimizer.lr if optimizer.rate_name == LEARNING_RATE else chosen.optimizer.lr
    for part in (run, method, chosen.optimizer._replace(lr=lr), shown):
        record |= part._asdict()
    if fields.is_factory(chosen.optimizer.optimizer):
        record["optimizer"] = factories.describe(chosen.optimizer.optimizer)
    return RuleParts(
        run=run,
        method=method,
        rule=methods.make_rule(run, method, num_examples, **pace, lr_schedule=outer),
        optimizer=optimizer,
        schedule=outer,
        record=record,
        plans=functools.partial(
            methods.make_plans, chosen.run, method, num_examples, **pace, schedule_of=schedule_of
        ),
        schedule_of=schedule_of,
        notes=methods.never_reached(run, method, warmup if is_fb else 0),
    )
