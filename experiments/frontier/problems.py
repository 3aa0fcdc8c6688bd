"""What the frontier is drawn on: the tasks, their optimisers, batches, rates and budgets, and the rules."""

import math
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """A task and the grid of its constant batches."""

    title: str
    base: dict[str, Any]  # settings that all its runs share
    lr: dict[str, float]  # optimiser -> the rate at `reference`, from which the search starts
    reference: int  # examples per update
    batches: tuple[int, ...]
    budgets: tuple[int, ...]  # epochs, the first ones done first
    rule_budgets: tuple[int, ...]  # epochs of the runs with a rule
    first: int = 128  # batch of a rule at the start
    largest: int = 16384  # batch up to which a rule may grow
    metric: str = "validation_accuracy"  # of a summary; chooses the rate
    target: float = 90.0  # of the metric: Shallue et al. (2019) count the updates to 10 % validation error
    untuned: tuple[str, ...] = ("prodigy",)  # optimisers that find their rate: with its factor 1
    seeds: tuple[int, ...] = (0, 1, 2)  # the first chooses, the others report its choice

    @property
    def optimizers(self) -> list[str]:
        """All optimisers, the tuned ones first."""
        return [*self.lr, *self.untuned]

    @property
    def sign(self) -> int:
        """1 where the metric is to be large, -1 where it is to be small."""
        return -1 if "loss" in self.metric else 1


_IMAGES = {
    "dataset": "fashion_mnist",
    "validation_examples": 10_000,
    "micro_batch": "auto",
    "epsilon": 0.02,
    "pgd_steps": 20,
}
_KEPT = {"adversarial_fraction": 0.2}
_CLEAN = {"adversarial_fraction": 0.0, "epsilon": None, "fgsm_epsilon": 0.02}

_MLP = Problem(
    "MLP on Fashion-MNIST, a fifth of every batch adversarial to the end",
    {**_IMAGES, "model": "mlp", **_KEPT},
    {"sgd": 0.2, "adamw": 0.0015, "muon": 0.0025, "nesterov": 0.2},
    512,
    (128, 256, 512, 1024, 2048, 8192, 16384),
    (10, 30, 90),
    (30, 90),
)

PROBLEMS = {
    "mlp": _MLP,
    "mlp_clean": _MLP._replace(
        title="MLP on Fashion-MNIST, no adversarial examples",
        base={**_IMAGES, "model": "mlp", **_CLEAN},
        rule_budgets=(30,),
    ),
    "c1_small": Problem(
        "Small CNN on Fashion-MNIST, a fifth of every batch adversarial to the end",
        {**_IMAGES, "model": "c1_small", "micro_batch": "fixed", "micro_batch_size": 256, **_KEPT},
        {"sgd": 0.1, "muon": 0.005},
        512,
        (256, 2048, 8192),
        (10,),
        (10,),
        first=256,
        target=91.0,
    ),
    "text": Problem(
        "Character transformer on the source of Python's standard library, nats a character",
        {
            "dataset": "stdlib",
            "model": "char_transformer_small",
            "validation_examples": 2_000,
            "micro_batch_size": 16,
            "clip": 1.0,
            "weight_decay": 0.1,
            "hessian_batch_size": 32,
        },
        {"adamw": 0.006, "muon": 0.01},
        64,
        (16, 64, 128, 256),
        (1, 3),
        (1,),
        first=16,
        largest=1024,
        metric="validation_loss",
        target=1.6,
    ),
}

RULES: dict[str, dict[str, Any]] = {
    "fb": {"method": "fb"},
    "gg": {"method": "gg"},
    "abs": {"method": "abs"},
    "stability": {"method": "stability", "lr_coupling": "linear"},
    "stability_sqrt": {"method": "stability", "lr_coupling": "sqrt"},
    "noise_scale": {"method": "gns"},
    "norm_test": {"method": "norm_test"},
    "timer": {"method": "timer"},
    "seesaw": {"method": "seesaw"},
    "ramp": {"method": "ramp"},
}
"""Rules with their defaults, at the rate of the first batch. With adversarial examples ``abs`` is ABSA."""

FROM_ALL = ("seesaw", "ramp")  # they claim to save updates wherever they begin


class Point(NamedTuple):
    """A place on the frontier: what has a rate to be chosen, or a rule that has none."""

    optimizer: str
    batch_size: int
    epochs: int
    rule: str = "constant"


def points(problem: Problem) -> list[Point]:
    """List the constant batches, the rules that begin at each of them, then the others; cheap budgets first."""
    found = []
    for epochs in problem.budgets:
        for optimizer in problem.optimizers:
            found += [Point(optimizer, batch, epochs) for batch in reversed(problem.batches)]
            first = [batch for batch in problem.batches if batch < problem.largest]
            found += [Point(optimizer, batch, epochs, rule) for rule in FROM_ALL for batch in first]
        for optimizer in problem.lr if epochs in problem.rule_budgets else ():
            found += [Point(optimizer, problem.first, epochs, rule) for rule in RULES if rule not in FROM_ALL]
    return found


def rate(problem: Problem, point: Point, exponent: int) -> float:
    """Return the rate that lies so many factors of two from the square root of the batch."""
    around = problem.lr[point.optimizer] * math.sqrt(point.batch_size / problem.reference)
    return float(f"{around * 2.0**exponent:.3g}")


def settings(problem: Problem, point: Point, lr: float, seed: int) -> dict[str, Any]:
    """Return the settings of a run: linear decay to zero after a warm-up of a tenth of the budget."""
    run = {
        **problem.base,
        "optimizer": point.optimizer,
        "batch_size": point.batch_size,
        "epochs": point.epochs,
        "lr": lr,
        "seed": seed,
        "method": "bl",
    }
    if run.get("adversarial_fraction"):
        run["adversarial_epochs"] = point.epochs
    if run.get("micro_batch") == "auto":
        run["micro_batch_size"] = min(point.batch_size, 1024)
    rule: dict[str, Any] = {}
    if point.rule != "constant":
        kept = {"fraction_decrease": 1.0} if run.get("adversarial_fraction") else {}
        rule = {"max_batch_size": problem.largest, **kept, **RULES[point.rule]}
        if rule["method"] in ("gns", "norm_test", "ramp"):  # they compare the micro-batches of an update
            rule |= {"micro_batch": "fixed", "micro_batch_size": point.batch_size // 2}
    if rule.get("method") == "gg":  # grows where the rate would fall
        ends = sorted({max(1, round(point.epochs * part)) for part in (1 / 3, 2 / 3, 8 / 9)})
        return {**run, **rule, "lr_decay_epochs": tuple(ends)}
    if rule.get("method") == "fb":
        rule = {**rule, "warmup_epochs": point.epochs / 10}
    return {**run, "schedule": "linear", "warmup_epochs": point.epochs / 10, **rule}


def label(point: Point, lr: float) -> str:
    """Name a run without its seed."""
    rule = "" if point.rule == "constant" else f"-{point.rule}"
    return f"{point.optimizer}{rule}-b{point.batch_size}-e{point.epochs}-lr{lr:g}"
