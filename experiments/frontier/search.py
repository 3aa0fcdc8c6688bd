"""Which run of a frontier is next: rates by factors of two until the best has worse ones on both sides.

The choice is made on the held-out metric of the first seed; the chosen rate then runs with the other seeds. A
rule has the rate that was chosen for its first batch with the same optimiser and budget: it is not tuned.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from experiments.frontier.problems import Point, Problem, label, points, rate, settings
from experiments.table import Run

_REACH = 12  # factors of two from the start that are looked at


class Wanted(NamedTuple):
    """A run to be done."""

    name: str  # LABEL/seedN
    settings: dict[str, Any]


def value(problem: Problem, run: Run) -> float:
    """Return the metric of a run, larger is better; of one that diverged, the worst."""
    if "diverged" in run.summary:
        return -float("inf")
    return problem.sign * float(run.summary[problem.metric])


def tried(problem: Problem, point: Point, runs: Mapping[str, Run]) -> dict[int, float]:
    """Return what the rates of a constant batch came to with the first seed, by exponent."""
    seed = problem.seeds[0]
    names = {k: f"{label(point, rate(problem, point, k))}/seed{seed}" for k in range(-_REACH, _REACH + 1)}
    return {k: value(problem, runs[name]) for k, name in names.items() if name in runs}


def chosen(problem: Problem, point: Point, runs: Mapping[str, Run]) -> float | None:
    """Return the rate of a point, None while the search goes on; the optimiser's own where it finds it."""
    if point.optimizer in problem.untuned:
        return 1.0
    if point.rule != "constant":
        first = point._replace(rule="constant")
        return chosen(problem, first, runs)
    found = tried(problem, point, runs)
    return None if _open(found) else rate(problem, point, max(found, key=lambda k: found[k]))


def _open(found: Mapping[int, float]) -> list[int]:
    """Return the exponents that are still to be tried."""
    missing = [k for k in (0, 1, -1) if k not in found]
    if missing:
        return missing
    best = max(found, key=lambda k: found[k])
    if abs(best) == _REACH:
        raise ValueError(
            f"the best rate is still {_REACH} factors of two from the start: mend `lr` in problems.py"
        )
    return [k for k in (best - 1, best + 1) if k not in found]


def wanted(problem: Problem, runs: Mapping[str, Run]) -> Iterator[Wanted]:
    """Yield what is to be done next, the most wanted first; what waits for another run is left out."""
    for point in points(problem):
        lr = chosen(problem, point, runs)
        if lr is None and point.rule == "constant":
            todo = [(rate(problem, point, k), problem.seeds[0]) for k in _open(tried(problem, point, runs))]
        else:
            todo = [] if lr is None else [(lr, seed) for seed in problem.seeds]
        for rate_, seed in todo:
            name = f"{label(point, rate_)}/seed{seed}"
            if name not in runs:
                yield Wanted(name, settings(problem, point, rate_, seed))


class Place(NamedTuple):
    """What a point came to."""

    point: Point
    lr: float
    runs: list[Run]  # by seed


def places(problem: Problem, runs: Mapping[str, Run]) -> list[Place]:
    """Return the points whose rate has been chosen, with the runs that are done."""
    found = []
    for point in points(problem):
        lr = chosen(problem, point, runs)
        names = [] if lr is None else [f"{label(point, lr)}/seed{seed}" for seed in problem.seeds]
        done = [runs[name] for name in names if name in runs]
        if lr is not None and done:
            found.append(Place(point, lr, done))
    return found
