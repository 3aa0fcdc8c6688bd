"""Theorem 2 on l2-regularised logistic regression: the bound, the measured gap, and controls that break it.

    python -m experiments.theorem2.run

writes results.json and theorem2.png beside this file (two minutes on two CPU cores). The theorem: with batches
b_t and steps b_t * eta0, 0 < eta0 <= 1 / (L_g (M_v + B_max)),

    E[L(theta_{t+1})] - L* <= prod_{k=0}^{t} (1 - b_k eta0 c_s) (L(theta_0) - L* - C) + C,
    C = eta0 L_g M / (2 c_s).

All four constants are rigorous here: c_s = mu; L_g = lambda_max(X'X) / (4 n) + mu; the gradient of one sample
is (sigmoid - y) x plus the regulariser's, which is the same for all, so M = mean ||x||^2 and M_v = 0. The
batches come from hessabs.batch_size, so that what is tested is the coupling of step and batch that the library
makes.

Differs from the slides: the product has t + 1 factors, one for each update (they print t).

References:
  Yao et al. (2018), arXiv:1810.01021, Theorem 2.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.provenance import commit, hardware
from hessabs.batch_size import Controller, Observation, constant, fixed_growth

HERE = pathlib.Path(__file__).parent
COMMAND = "python -m experiments.theorem2.run"


class Problem(NamedTuple):
    """A regularised logistic regression and its constants."""

    inputs: np.ndarray  # (n, d)
    labels: np.ndarray  # (n,), 0 or 1
    optimum: np.ndarray  # (d,)
    lowest: float  # L*
    strong_convexity: float  # c_s
    smoothness: float  # L_g
    noise: float  # M


class Setting(NamedTuple):
    """How large the experiment is."""

    num_examples: int = 512
    dimension: int = 20
    regularization: float = 0.1
    first_batch: int = 2
    largest_batch: int = 64
    doubling: int = 150  # updates between growths
    steps: int = 1500
    repetitions: int = 300
    seed: int = 0


def make_problem(setting: Setting) -> Problem:
    """Draw a data set, find its optimum by Newton's method, and compute the constants of the theorem."""
    random = np.random.default_rng(setting.seed)
    inputs = random.normal(size=(setting.num_examples, setting.dimension)) / np.sqrt(setting.dimension)
    truth = random.normal(size=setting.dimension) * 3
    labels = (random.random(setting.num_examples) < sigmoid(inputs @ truth)).astype(float)
    mu = setting.regularization
    optimum = np.zeros(setting.dimension)
    for _ in range(50):
        p = sigmoid(inputs @ optimum)
        gradient = inputs.T @ (p - labels) / len(labels) + mu * optimum
        hessian = (inputs.T * (p * (1 - p))) @ inputs / len(labels) + mu * np.eye(setting.dimension)
        optimum = optimum - np.linalg.solve(hessian, gradient)
    assert np.linalg.norm(gradient) < 1e-12, "Newton's method did not converge"
    curvature = np.linalg.eigvalsh(inputs.T @ inputs)[-1] / (4 * len(labels))
    problem = Problem(inputs, labels, optimum, 0.0, mu, curvature + mu, np.mean(np.sum(inputs**2, axis=1)))
    return problem._replace(lowest=loss(problem, optimum[None])[0])


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-z)) without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))


def loss(problem: Problem, params: np.ndarray) -> np.ndarray:
    """Return L for params of shape (repetitions, d)."""
    logits = params @ problem.inputs.T
    fit = np.mean(np.logaddexp(0, logits) - problem.labels * logits, axis=1)
    return fit + problem.strong_convexity / 2 * np.sum(params**2, axis=1)


def largest_step(problem: Problem, setting: Setting) -> float:
    """Return the largest eta0 that the theorem allows."""
    return 1 / (problem.smoothness * setting.largest_batch)


def batches(controller: Controller, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """List the batch size and the learning-rate scale of each update of a rule."""
    state, samples, sizes, scales = controller.init(), 0, [], []
    for _ in range(steps):
        sizes.append(int(state.batch_size))
        scales.append(float(state.lr_scale))
        samples += sizes[-1]
        if samples >= int(state.observe_at):
            state = controller.update(Observation(samples), state)
    return np.array(sizes), np.array(scales)


def schedules(setting: Setting) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Make the three schedules: batch sizes, and steps in units of eta0."""
    first, largest, steps = setting.first_batch, setting.largest_batch, setting.steps
    growths = int(np.log2(largest // first))
    grow_at = [setting.doubling * first * (2**k - 1) for k in range(1, growths + 1)]
    rules = {
        f"constant {first}": constant(first),
        f"growing {first} to {largest}": fixed_growth(first, largest, grow_at=grow_at),
        f"constant {largest}": constant(largest),
    }
    made = {}
    for name, rule in rules.items():
        sizes, scales = batches(rule, steps)
        made[name] = sizes, sizes[0] * scales
    return made


def descend(
    problem: Problem, start: np.ndarray, sizes: np.ndarray, steps: np.ndarray, repetitions: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run SGD with replacement; return mean and standard error of L - L* after the ``checked`` updates."""
    random = np.random.default_rng(seed)
    params = np.tile(start, (repetitions, 1))
    means, errors, wanted = [], [], set(checked(len(sizes)))
    for update, (size, step) in enumerate(zip(sizes, steps, strict=True), start=1):
        chosen = random.integers(len(problem.labels), size=(repetitions, size))
        x = problem.inputs[chosen]
        residual = sigmoid(np.einsum("rbd,rd->rb", x, params)) - problem.labels[chosen]
        gradient = np.einsum("rb,rbd->rd", residual, x) / size + problem.strong_convexity * params
        params = params - step * gradient
        if update in wanted:
            gaps = loss(problem, params) - problem.lowest
            means.append(gaps.mean())
            errors.append(gaps.std(ddof=1) / np.sqrt(repetitions))
    return np.array(means), np.array(errors)


def checked(steps: int) -> np.ndarray:
    """List the updates after which the gap is measured: each of the first 200, then every fifth."""
    updates = np.arange(1, steps + 1)
    return updates[(updates <= 200) | (updates % 5 == 0)]


def bound(problem: Problem, gap: float, steps: np.ndarray, eta0: float, inflation: float = 1.0) -> np.ndarray:
    """Return the bound after the updates that ``checked`` lists, c_s inflated where a control asks for it.

    A factor that the inflation makes negative counts as zero, its limit: no gap contracts by more.
    """
    convexity = problem.strong_convexity * inflation
    floor = eta0 * problem.smoothness * problem.noise / (2 * convexity)
    contraction = np.cumprod(np.maximum(1 - steps * convexity, 0))[checked(len(steps)) - 1]
    return contraction * (gap - floor) + floor


def steps_to(values: np.ndarray, target: float, steps: int) -> int | None:
    """Return the first checked update after which a curve is at or below a target, or None."""
    below = np.flatnonzero(values <= target)
    return int(checked(steps)[below[0]]) if len(below) else None


def experiment(setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all; return (the results, the curves of the picture)."""
    problem = make_problem(setting)
    random = np.random.default_rng(setting.seed + 1)
    start = random.normal(size=setting.dimension)
    start *= 8 / np.linalg.norm(start)
    gap = float(loss(problem, start[None])[0] - problem.lowest)
    results: dict[str, Any] = {
        "constants": {
            "c_s": problem.strong_convexity,
            "L_g": problem.smoothness,
            "M": problem.noise,
            "M_v": 0.0,
            "L(theta_0) - L*": gap,
            "largest eta0": largest_step(problem, setting),
        },
        "runs": [],
        "controls": [],
        "floors": [],
    }
    curves: dict[str, Any] = {}
    for fraction in (1.0, 0.2):
        eta0 = fraction * largest_step(problem, setting)
        floor = eta0 * problem.smoothness * problem.noise / (2 * problem.strong_convexity)
        for name, (sizes, units) in schedules(setting).items():
            steps = eta0 * units
            means, errors = descend(problem, start, sizes, steps, setting.repetitions, setting.seed + 2)
            limit = bound(problem, gap, steps, eta0)
            curves[f"{name}, {fraction:g} of the largest eta0"] = means, limit
            results["runs"].append(
                {
                    "batch": name,
                    "fraction of the largest eta0": fraction,
                    "C": floor,
                    "holds": bool(np.all(means - 3 * errors <= limit)),
                    "largest mean / bound": float(np.max(means / limit)),
                    "updates to 10 % of the first gap, measured": steps_to(means, 0.1 * gap, setting.steps),
                    "updates to 10 % of the first gap, bound": steps_to(limit, 0.1 * gap, setting.steps),
                }
            )
            inflation = 3.0 if "growing" in name else 5.0
            wrong = bound(problem, gap, steps, eta0, inflation)
            results["controls"].append(
                {
                    "batch": name,
                    "fraction of the largest eta0": fraction,
                    "c_s inflated by": inflation,
                    "holds": bool(np.all(means - 3 * errors <= wrong)),
                    "largest mean / bound": float(np.max(means / wrong)),
                }
            )
    # The floor: from the optimum, so that nothing but noise lifts the gap, for eight of the times that the
    # bound takes to forget its start.
    for fraction in (1.0, 0.1):
        eta0 = fraction * largest_step(problem, setting)
        for size in (setting.first_batch, 8, 32, setting.largest_batch):
            length = int(8 / (size * eta0 * problem.strong_convexity))
            sizes, steps = np.full(length, size), np.full(length, size * eta0)
            means, _ = descend(problem, problem.optimum, sizes, steps, setting.repetitions, setting.seed + 3)
            late = means[checked(length) > 0.75 * length]
            results["floors"].append(
                {
                    "batch": size,
                    "fraction of the largest eta0": fraction,
                    "updates": length,
                    "mean gap in the last quarter": float(late.mean()),
                    "2 / (2 - b eta0 L_g)": 2 / (2 - size * eta0 * problem.smoothness),
                    "C": eta0 * problem.smoothness * problem.noise / (2 * problem.strong_convexity),
                }
            )
    return results, curves


def draw(curves: dict[str, Any], path: pathlib.Path) -> None:
    """Draw measured gaps and bounds by update."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, part in zip(panels, ("1 of", "0.2 of"), strict=True):
        chosen = {name: pair for name, pair in curves.items() if f", {part}" in name}
        for color, (name, (means, limit)) in enumerate(chosen.items()):
            updates = checked(1 + 5 * len(means))[: len(means)]
            panel.plot(updates, means, color=f"C{color}", label=name.split(",")[0])
            panel.plot(updates, limit, color=f"C{color}", linestyle="--")
        panel.set(xscale="log", yscale="log", xlabel="update", title=f"{part} the largest eta0")
    panels[0].set_ylabel("mean of L - L* (dashed: bound)")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the experiment and write its results."""
    setting = Setting()
    results, curves = experiment(setting)
    written = {
        "command": COMMAND,
        "commit": commit(),
        "hardware": hardware(),
        "setting": setting._asdict(),
        **results,
    }
    (HERE / "results.json").write_text(json.dumps(written, indent=2) + "\n")
    draw(curves, HERE / "theorem2.png")
    for kind in ("runs", "controls", "floors"):
        for row in results[kind]:
            print(kind, *(f"{key}: {value}" for key, value in row.items()), sep=" | ")


if __name__ == "__main__":
    main()
