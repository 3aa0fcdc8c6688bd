"""From a task, an optimiser, a rule and an objective to everything a loop needs; complaints come from here."""

import functools
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import ScheduleFreeState

from hessabs import attacks, loops, trees
from hessabs.batch_size import Controller, Count, Observation, sizes
from hessabs.batch_size.counting import NEVER
from hessabs.batch_size.rule import coupling_of, fraction_of
from hessabs.checks import require
from hessabs.data import Position, Reader, Source, epoch_order, fingerprint, micro_batches_per_epoch, reader
from hessabs.jaxprs import digest, is_used
from hessabs.training import across
from hessabs.training.average_state import Refresh, make_refresh
from hessabs.training.evaluation import Evaluation, make_evaluation
from hessabs.training.measure import Measure, Track, make_measure, make_track
from hessabs.training.mesh import (
    DATA,
    data_size,
    default_partition,
    make_mesh,
    own_rows,
    place,
    read_mesh,
    shardings,
)
from hessabs.training.objectives import Objective, Share
from hessabs.training.optimizers import Optimizer, as_optimizer, with_plain_keys
from hessabs.training.resident import make_gather
from hessabs.training.settings import RunSettings, check_run
from hessabs.training.step import (
    Functions,
    Reads,
    TrainState,
    init_state,
    jit_functions,
    make_functions,
    what_reads,
)
from hessabs.training.task import Task, adds_up, check_bounds, check_task
from hessabs.transforms import AdaptiveBatchSizeState
from hessabs.typing import Params

PLAIN, DEFAULTS = Objective(), RunSettings()
_HESSIAN_DRAW = 2**31 - 1  # the "epoch" whose order draws the examples of the eigenvalue measurements
_FINAL_HESSIAN_ITERS = 30
_CHECKED = 8  # examples on which a task is tried

Remainder = Literal["drop", "keep"]
"""An epoch's incomplete last micro-batch: left out, as in the paper, or trained on, with exact weights."""

Schedule = Callable[[int], float]
"""``schedule(examples so far) -> factor on the learning rate``."""


class Run(NamedTuple):
    """A run that is ready to go."""

    task: Task
    optimizer: Optimizer
    rule: Controller
    objective: Objective
    schedule: Schedule
    settings: RunSettings
    epochs: int
    micro_batch_size: int  # examples, all devices together
    keeps_remainder: bool  # whether an epoch's incomplete last micro-batch is trained on, too
    epoch_examples: int  # that are trained on in an epoch
    functions: Functions
    perturb: Callable[[TrainState, int, Any, Any], Any] | None  # before `add`, where Python drives the attack
    state: TrainState
    refresh: Refresh  # the state of the model at params that are an average
    evaluate: dict[str, Evaluation]  # at the end of every epoch, by the prefix of its numbers
    final: dict[str, Evaluation]  # at the end, likewise
    measure: Measure  # the top eigenvalue during training
    measure_final: Measure  # the same on the same examples, with more products if it needs them
    track: Track
    mesh: Mesh | None
    reads_micro_batch: bool  # whether the optimiser is given the first micro-batch of each update
    dealt: bool  # whether the examples of a batch are dealt out to the devices, see `mesh.own_rows`
    record: Mapping[str, Any]  # what the run is, for its folder

    @property
    def epoch_micro_batches(self) -> int:
        """Micro-batches of an epoch."""
        return -(-self.epoch_examples // self.micro_batch_size)

    @property
    def mixes_short(self) -> bool:
        """Whether a part of each micro-batch is attacked, the last of an epoch has fewer examples, and so is
        handled by itself.
        """
        return self.objective.fraction is None and self.epoch_examples % self.micro_batch_size > 0

    @property
    def devices(self) -> int:
        """Over how many devices a batch is split."""
        return data_size(self.mesh)

    def read_from(self, position: Position) -> Reader:
        """Return the reader of the training stream from a position on."""
        rows = None
        if self.mesh is not None:
            rows = functools.partial(own_rows, size=self.devices, dealt=self.dealt)
        return reader(
            self.task.train,
            self.micro_batch_size,
            seed=self.settings.seed,
            position=position,
            keep_remainder=self.keeps_remainder,
            replays=self.objective.replays,
            augmentation=self.task.augmentation,
            own_rows=rows,
            gather=make_gather(self.task.train, self.mesh),
            num_workers=self.task.num_workers,
        )

    def micro_batches(self, batch_size: int) -> int:
        """Count the micro-batches of an update, which they must fill: the rate is that of the whole batch."""
        sizes.check_whole_micro_batches("a batch of the rule", batch_size, self.micro_batch_size)
        return batch_size // self.micro_batch_size

    def examples(self, position: Position, count: int) -> int:
        """Count the examples of the micro-batches from a position on: the last of an epoch may have fewer."""
        left = self.epoch_examples - position.index * self.micro_batch_size
        return min(count * self.micro_batch_size, left)


def prepare(
    task: Task,
    optimizer: Any,
    rule: Controller,
    *,
    epochs: int = 1,
    micro_batch_size: int | None = None,
    remainder: Remainder = "drop",
    objective: Objective = PLAIN,
    schedule: Schedule | None = None,
    settings: RunSettings = DEFAULTS,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Build the jitted functions of a run and all that it needs, if its parts fit each other."""
    _check_kind("rule", rule, Controller, "a controller of hessabs.batch_size, constant(128) say")
    _check_kind("objective", objective, Objective, "one of training.objectives, mixing(inner, 0.2) say")
    _check_kind("settings", settings, RunSettings, "RunSettings, RunSettings(ema=50_000) say")
    check_run(settings)
    _check_fraction(objective, rule)
    require("be a whole number of at least 1", epochs=epochs)
    epochs = int(epochs)
    if remainder not in get_args(Remainder):
        raise ValueError(f"`remainder` must be drop or keep, got {remainder!r}.")
    keeps_remainder = remainder == "keep"
    mesh = make_mesh(read_mesh(settings.mesh, settings.devices))
    optimizer = as_optimizer(optimizer)
    optimizer = optimizer._replace(tx=with_plain_keys(optimizer.tx))
    size = _micro_batch_size(rule, micro_batch_size)
    _check_sizes(task, rule, settings, size, objective, mesh, keeps_remainder)
    num_examples = len(task.train)
    per_epoch = micro_batches_per_epoch(num_examples, size, keeps_remainder)
    batch = reader(task.train, size, seed=settings.seed, augmentation=task.augmentation)(1)[0]
    check_task(task, jax.tree.map(lambda x: x[:_CHECKED], batch))

    prepare_on_device = jax.jit(task.prepare)
    prepared = prepare_on_device(batch)
    check_bounds(task, prepared)
    if isinstance(prepared, dict) and "shift" in prepared and task.augmentation == "crop_flip":
        raise ValueError(
            f"`augmentation` crop_flip of the task {task.name} is drawn and not used: let `prepare` apply it "
            "(`hessabs.data.crop_flip`), or leave it out."
        )
    key, memory = jax.random.key(settings.seed), objective.init(task, prepared)
    state = init_state(task, optimizer, key, memory, average=settings.ema is not None)
    if trees.nodes(state.opt_state, AdaptiveBatchSizeState):
        raise ValueError(
            "`optimizer` has a rule of the batch size in it (adaptive_batch_size), which is an argument of its "
            "own in `fit`: fit(task, optimizer, rule)."
        )
    convolves, draws = _trace(task, state, batch)
    dealt = not (state.model_state or draws or objective.per_micro_batch or rule.measures == "gradient")
    if dealt and mesh is not None:  # a contrastive loss, say, is of a whole micro-batch
        few = jax.tree.map(lambda x: np.asarray(x[:_CHECKED]), batch)
        dealt = adds_up(task, state.params, state.model_state, few)
    _check_coupling(optimizer, rule)
    by_python = objective.iterated and mesh is None and convolves and loops.choose(None) == "host"
    reads = what_reads(optimizer, task, state, prepared)
    _check_average(state, rule, reads, schedule)
    functions, attack = make_functions(
        task,
        optimizer,
        objective,
        seed=settings.seed,
        gradient_statistics=rule.measures == "gradient",
        scales_rate=not reads.lr_scale,
        half_life=settings.ema,
        perturbs=not by_python,
        reads_micro_batch=reads.micro_batch,
    )
    one_by_one = settings.micro_batch == "fixed"
    if mesh is None:
        jitted = jit_functions(functions, size, one_by_one=one_by_one)
    else:
        across.check_model_state(state.model_state, task.name)
        places = _places(task, state, mesh)
        state = jax.tree.map(lambda x, where: place(np.asarray(x), where), state, places)
        jitted = across.on_mesh(
            functions, mesh, places, dealt=dealt, micro_batch_size=size, one_by_one=one_by_one
        )

    def perturb(state: TrainState, number: int, batch: Any, fraction: Any) -> Any:
        return attack(state, number, prepare_on_device(batch), fraction, Share(size))

    order = epoch_order(settings.seed, _HESSIAN_DRAW, num_examples)[: settings.hessian_batch_size]
    hessian_batch = {**task.train.take(order), "weight": np.ones(len(order), np.float32)}
    measures = functools.partial(make_measure, task, hessian_batch, rtol=settings.hessian_rtol, mesh=mesh)
    measure_final = measures(max_iters=max(settings.hessian_iters, _FINAL_HESSIAN_ITERS))
    examples = num_examples if keeps_remainder else per_epoch * size

    def factor(samples: int) -> float:
        return 1.0 if schedule is None else float(schedule(samples))

    return Run(
        task=task,
        optimizer=optimizer,
        rule=rule,
        objective=objective,
        schedule=factor,
        settings=settings,
        epochs=epochs,
        micro_batch_size=size,
        keeps_remainder=keeps_remainder,
        epoch_examples=examples,
        functions=jitted,
        perturb=perturb if by_python else None,
        state=state,
        refresh=make_refresh(task, size, seed=settings.seed, mesh=mesh),
        evaluate={"test_": make_evaluation(task, task.test, mesh=mesh)},
        final=_final(task, settings, mesh),
        measure=measures(max_iters=settings.hessian_iters),
        measure_final=measure_final,
        track=make_track(settings.tracked, task, hessian_batch, measure_final, mesh=mesh),
        mesh=mesh,
        reads_micro_batch=reads.micro_batch,
        dealt=dealt,
        record={
            **_describe(task, settings, epochs, size, remainder, record or {}),
            "parts": _parts(rule, objective, state, reads, [factor(k * examples // 2) for k in range(5)]),
        },
    )


def _check_kind(name: str, value: Any, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"`{name}` must be {what}, got {value!r}.")


def _check_fraction(objective: Objective, rule: Controller) -> None:
    said, follows = fraction_of(rule), objective.follows_rule
    if said and not follows:
        raise ValueError(
            f"`rule` says that {said:g} of each batch is adversarial, and `objective` does not follow it: "
            f"objective=mixing(inner, max_fraction={said:g}) of training.objectives, or a rule without "
            "(`hessian_adaptive` for `absa`)."
        )
    if said == 0 and follows:
        raise ValueError(
            "`objective` attacks the fraction of each batch that `rule` says, and the rule says none: "
            "with_adversarial(rule, 0.2), or objectives.attacked(inner) for all of it."
        )
    if said and said > objective.max_fraction:
        raise ValueError(
            f"`rule` begins with an adversarial fraction of {said:g}, above the max_fraction="
            f"{objective.max_fraction:g} of `objective`."
        )


def _check_coupling(optimizer: Optimizer, rule: Controller) -> None:
    initial, maximum = rule.batch_sizes or (1, 1)
    counted, follows = optimizer.decay_coupling, coupling_of(rule)
    if initial < maximum and counted and follows and counted != follows:
        raise ValueError(
            f"The weight decay of `optimizer` follows the batch beside a learning rate that follows it as "
            f"{counted!r}, and that of `rule` is {follows!r}: with_coupling(rule, {counted!r}), or "
            f"make_optimizer(..., lr_coupling={follows!r})."
        )


def _check_average(state: TrainState, rule: Controller, reads: Reads, schedule: Schedule | None) -> None:
    changes = schedule is not None or Count.of(rule.init().observe_at) < NEVER
    if changes and not reads.lr_scale and trees.nodes(state.opt_state, ScheduleFreeState):
        raise ValueError(
            "`optimizer` is a schedule_free, whose average is of the rate that it was made with: where rule or "
            'schedule change the rate, make it with training.make_optimizer("schedule_free", lr=...), which '
            "is told of it."
        )


def _trace(task: Task, state: TrainState, batch: Any) -> tuple[bool, bool]:
    """Tell whether the loss holds a convolution, and whether it depends on its random key."""

    def loss(key: jax.Array, params: Params, model_state: Any, batch: Any) -> Any:
        out = task.loss(params, model_state, task.prepare(batch), key, True)
        return out.mean, out.model_state

    program = jax.make_jaxpr(loss)(jax.random.key(0), state.params, state.model_state, batch)
    return "conv_general_dilated" in str(program), is_used(program, 0)


def _places(task: Task, state: TrainState, mesh: Mesh) -> TrainState:
    specs = (task.partition or default_partition)(mesh, state.params)
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA))
    places = jax.tree.map(lambda _: whole, state)
    like_params = {
        name: shardings(getattr(state, name), state.params, specs, mesh)
        for name in ("params", "opt_state", "average")
    }
    return places._replace(**like_params, memory=jax.tree.map(lambda _: rows, state.memory))


def _final(task: Task, settings: RunSettings, mesh: Mesh | None) -> dict[str, Evaluation]:
    evaluation = functools.partial(make_evaluation, task, mesh=mesh)
    sets: dict[str, Source] = {"": task.test}
    result: dict[str, Evaluation] = {}
    if task.validation is not None:
        sets["validation_"] = task.validation
        result["validation_"] = evaluation(task.validation)
    allowed: Any = {"bounds": task.bounds, "inputs_key": task.inputs_key}
    for prefix, source in sets.items() if task.attackable else ():
        fgsm = attacks.fgsm(settings.fgsm_epsilon, **allowed)
        result[f"{prefix}fgsm_"] = evaluation(source, attack=fgsm)
        if settings.pgd_steps:
            pgd = attacks.pgd(settings.fgsm_epsilon, steps=settings.pgd_steps, **allowed)
            result[f"{prefix}pgd_"] = evaluation(source, attack=pgd, key=jax.random.key(0))
    return result


def _micro_batch_size(rule: Controller, given: int | None) -> int:
    initial = int(rule.init().batch_size) if rule.batch_sizes is None else rule.batch_sizes[0]
    compared = rule.measures == "gradient"
    size = sizes.default_micro_batch_size(initial, compared=compared) if given is None else given
    sizes.check_micro_batch_size(initial, size, "this rule" if compared else None)
    return int(size)


def _check_sizes(
    task: Task,
    rule: Controller,
    settings: RunSettings,
    size: int,
    objective: Objective,
    mesh: Mesh | None,
    keeps_remainder: bool,
) -> None:
    num_examples, devices = len(task.train), data_size(mesh)
    initial, maximum = rule.batch_sizes or (size, size)
    sizes.check_batch_sizes(initial, maximum, num_examples, task.name)
    sizes.check_whole_micro_batches("`max_batch_size`", maximum, size)
    if size % devices:
        raise ValueError(
            f"`micro_batch_size` must be a multiple of the {devices} devices that it is split over, got {size}."
        )
    most = settings.max_micro_batch_size
    if most is not None and (most % size or (most // size).bit_count() != 1):
        raise ValueError(
            f"`max_micro_batch_size` must be micro_batch_size={size} times a power of two, got {most}."
        )
    if settings.micro_batch == "auto" and (objective.per_micro_batch or rule.measures == "gradient"):
        raise ValueError(
            "`micro_batch` must be fixed where micro-batches are compared, or perturbations are those of one, "
            "got auto."
        )
    if keeps_remainder and objective.replays > 1:
        raise ValueError(
            "`remainder` must be drop with robust=free, whose epochs replay whole micro-batches, got keep."
        )


def _describe(
    task: Task, settings: RunSettings, epochs: int, size: int, remainder: str, record: Mapping[str, Any]
) -> dict[str, Any]:
    own = {"name": task.name, "epochs": epochs, "micro_batch_size": size, "remainder": remainder}
    return {
        "config": {**settings._asdict(), **own, **task.settings, **record},
        "data": {
            "number of examples": len(task.train),
            "digest": fingerprint(task.train),
            "classes": None if task.class_names is None else list(task.class_names),
        },
    }


def _parts(
    rule: Controller, objective: Objective, state: TrainState, reads: Reads, factors: list[float]
) -> dict[str, Any]:
    """Tell the parts of a run from others, where nothing else says what they are."""
    observation = Observation(Count.of(0), lr_scale=np.float32(1))
    if rule.measures == "gradient":
        observation = observation._replace(gradient=state.statistics)
    elif rule.measures != "nothing":
        observation = observation._replace(eigenvalue=float("nan"))
    return {
        "made with": ", ".join(f"{name} {metadata.version(name)}" for name in ("hessabs", "jax", "optax")),
        "optimiser": reads.digest,
        "rule": digest(jax.make_jaxpr(rule.update)(observation, rule.init())),
        "objective": [objective.fraction, objective.replays, objective.perturb is None],
        "schedule": factors,
    }
