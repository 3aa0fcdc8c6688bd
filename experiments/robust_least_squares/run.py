"""Robust least squares is regularised least squares: both sides of two theorems, solved apart.

    python -m experiments.robust_least_squares.run

``min_x max_D ||(A + D) x - b||_2`` over perturbations D of the data, against what it is said to equal:

* ``||D||_F <= rho``: ``min_x ||A x - b||_2 + rho ||x||_2`` (El Ghaoui and Lebret 1997, Theorem 3.1).
* every column ``||d_i||_2 <= rho``: ``min_x ||A x - b||_2 + rho ||x||_1``, the lasso with a square root (Xu,
  Caramanis and Mannor 2010, Theorem 1).

The min-max side knows no norm of x. Its inner maximum is found by ascent: the norm of the residual is convex
in D, so each step to the maximiser of its linearisation raises it. Its outer minimum is found by scenarios: the
worst D of each x is kept, and the next x is the best against all that are kept, which bounds the robust value
from below; the value at x bounds it from above. The regularised side is one convex program, certified by the
dual ``max -b.y`` over ``||y||_2 <= 1, ||A'y||_dual <= rho``. All in float64.

References:
  El Ghaoui and Lebret (1997), SIAM J. Matrix Anal. Appl. 18 (4), 1035-1064.
  Xu, Caramanis and Mannor (2010), arXiv:0811.1790.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize

from experiments.provenance import commit, hardware

HERE = pathlib.Path(__file__).parent
COMMAND = "python -m experiments.robust_least_squares.run"

Uncertainty = Literal["frobenius", "columns"]


class Problem(NamedTuple):
    """Data and the size of its uncertainty."""

    matrix: np.ndarray  # (n, d)
    target: np.ndarray  # (n,)
    rho: float


class MinMax(NamedTuple):
    """What the min-max side found."""

    x: np.ndarray  # (d,)
    lower: float  # the best value against the scenarios, as exact as the solver of that
    upper: float  # the robust value of x
    scenarios: int


class Regularised(NamedTuple):
    """What the regularised side found."""

    x: np.ndarray  # (d,)
    value: float
    dual: float  # a lower bound of the optimum


def make_problem(seed: int = 0, n: int = 20, d: int = 4, rho: float = 1.0) -> Problem:
    """Draw a problem whose last coefficient is small: columns of uncertainty then put it to 0."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, d))
    coefficients = np.append(rng.uniform(0.5, 1.5, d - 1), 0.05)
    return Problem(matrix, matrix @ coefficients + 0.5 * rng.normal(size=n), rho)


def worst(problem: Problem, x: np.ndarray, kind: Uncertainty, start: np.ndarray | None = None) -> np.ndarray:
    """Find the worst perturbation of the data by ascent."""
    matrix, target, rho = problem
    perturbation = np.zeros_like(matrix) if start is None else start
    value = -np.inf
    while True:
        residual = (matrix + perturbation) @ x - target
        now = float(np.linalg.norm(residual))
        if now <= value * (1 + 1e-15):
            return perturbation
        value, gradient = now, np.outer(residual, x)
        lengths = np.linalg.norm(gradient, axis=0) if kind == "columns" else np.linalg.norm(gradient)
        perturbation = rho * gradient / np.where(lengths > 0, lengths, 1)


def robust_value(problem: Problem, x: np.ndarray, perturbation: np.ndarray) -> float:
    """The norm of the residual under a perturbation."""
    return float(np.linalg.norm((problem.matrix + perturbation) @ x - problem.target))


def min_max(problem: Problem, kind: Uncertainty, *, rtol: float = 1e-8, max_scenarios: int = 300) -> MinMax:
    """Solve the min-max side."""
    x = np.linalg.lstsq(problem.matrix, problem.target, rcond=None)[0]
    kept: list[np.ndarray] = []
    best, upper, lower = x, np.inf, -np.inf
    while len(kept) < max_scenarios:
        perturbation = worst(problem, x, kind)
        value = robust_value(problem, x, perturbation)
        if value < upper:
            best, upper = x, value
        if upper - lower <= rtol * upper:
            break
        kept.append(problem.matrix + perturbation)
        x, lower = _best_against(np.stack(kept), problem.target, best)
    return MinMax(best, lower, upper, len(kept))


def _best_against(matrices: np.ndarray, target: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float]:
    # min t over (x, t) with ||M_j x - b||^2 <= t^2.
    def gaps(point: np.ndarray) -> np.ndarray:
        residuals = matrices @ point[:-1] - target
        return point[-1] ** 2 - (residuals**2).sum(axis=1)

    def slopes(point: np.ndarray) -> np.ndarray:
        residuals = matrices @ point[:-1] - target
        inner = -2 * np.einsum("jnd,jn->jd", matrices, residuals)
        return np.column_stack([inner, np.full(len(matrices), 2 * point[-1])])

    start = np.append(x, np.linalg.norm(matrices @ x - target, axis=1).max())
    unit = np.append(np.zeros_like(x), 1.0)
    found = optimize.minimize(
        lambda point: point[-1],
        start,
        jac=lambda point: unit,
        constraints={"type": "ineq", "fun": gaps, "jac": slopes},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    ).x[:-1]
    return found, float(np.linalg.norm(matrices @ found - target, axis=1).max())


def regularised(problem: Problem, kind: Uncertainty) -> Regularised:
    """Solve the regularised side, with a dual bound."""
    matrix, target, rho = problem
    d = matrix.shape[1]

    def residual_norm(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        residual = matrix @ x - target
        norm = float(np.linalg.norm(residual))
        return norm, matrix.T @ residual / norm, residual / norm

    def split(parts: np.ndarray) -> tuple[float, np.ndarray]:  # x = p - q, p and q at least 0
        value, slope, _ = residual_norm(parts[:d] - parts[d:])
        return value + rho * float(parts.sum()), np.concatenate([slope, -slope]) + rho

    def ridge(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope, _ = residual_norm(x)
        size = float(np.linalg.norm(x))
        return value + rho * size, slope + rho * x / size

    first = np.linalg.lstsq(matrix, target, rcond=None)[0]
    if kind == "columns":
        start = np.concatenate([np.maximum(first, 0), np.maximum(-first, 0)])
        parts = _minimize(split, start, [(0.0, None)] * (2 * d))
        x = parts[:d] - parts[d:]
        value = residual_norm(x)[0] + rho * float(np.abs(x).sum())
    else:
        x = _minimize(ridge, first, None)
        value = ridge(x)[0]
    _, slope, y = residual_norm(x)
    largest = np.linalg.norm(slope, ord=np.inf if kind == "columns" else 2)
    y = y * min(1.0, rho / float(largest))  # feasible, whatever the solver did
    return Regularised(x, value, float(-target @ y))


def _minimize(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, bounds: Any
) -> np.ndarray:
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 100_000}
    found = optimize.minimize(function, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return np.asarray(found.x)


def compare(problem: Problem, kind: Uncertainty) -> dict[str, Any]:
    """Solve both sides."""
    one, other = min_max(problem, kind), regularised(problem, kind)
    return {
        "uncertainty": kind,
        "min_max": one.upper,
        "min_max_lower": one.lower,
        "scenarios": one.scenarios,
        "regularised": other.value,
        "regularised_lower": other.dual,
        "difference": abs(one.upper - other.value),
        "x_min_max": one.x.tolist(),
        "x_regularised": other.x.tolist(),
        "x_difference": float(np.abs(one.x - other.x).max()),
    }


def main() -> None:
    """Solve three problems under both uncertainties and write results.json."""
    kinds: tuple[Uncertainty, ...] = ("frobenius", "columns")
    rows = [{"seed": seed, **compare(make_problem(seed), kind)} for seed in range(3) for kind in kinds]
    record = {"command": COMMAND, "commit": commit(), "hardware": hardware(), "rows": rows}
    (HERE / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    for row in rows:
        print(
            f"seed {row['seed']}, {row['uncertainty']:9}: min-max {row['min_max']:.9f}, regularised "
            f"{row['regularised']:.9f}, difference {row['difference']:.1e}, of x {row['x_difference']:.1e}, "
            f"{row['scenarios']} scenarios"
        )


if __name__ == "__main__":
    main()
