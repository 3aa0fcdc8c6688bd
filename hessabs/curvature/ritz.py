"""Eigenpairs of the projected problem: which are wanted, how good they are, and whether one may be missing."""

import math
from typing import Literal, NamedTuple

import numpy as np

from hessabs.curvature import basis, krylov

Which = Literal["LA", "SA", "LM", "BE"]
Step = Literal["go on", "restart", "widen", "check", "believe", "give up"]
_DOUBT = 0.05  # largest probability of a miss at which a gap counts as shown
_LEAST_CHECK = 4  # products of a check that shows nothing sooner


class Wanted(NamedTuple):
    """What a call asks for."""

    which: Which
    k: int
    rtol: float
    num_vectors: int  # rows of the basis besides a block
    max_matvecs: int
    coarseness: float = 0.0  # of the vectors that are multiplied, where it is no float32


class Ritz(NamedTuple):
    """Eigenpairs of an operator projected on rows of a basis."""

    values: np.ndarray  # shape (found,), float64: the wanted ones, in order
    coefficients: np.ndarray  # shape (rows multiplied or waiting, found): of the vectors in the basis
    residuals: np.ndarray  # shape (found,): absolute
    floor: float  # what is lost in the rounding of the arithmetic


def solve(state: krylov.KrylovState, wanted: Wanted, rows: np.ndarray) -> Ritz:
    """Solve the problem projected on some rows that were multiplied; no pairs if a number is not finite."""
    count = int(state.multiplied)
    columns = np.asarray(state.projected, np.float64)[:, rows]
    if not rows.size or not np.isfinite(columns).all():
        return Ritz(np.array([]), np.zeros((count, 0)), np.array([]), 0.0)
    square = columns[rows]
    values, vectors = np.linalg.eigh((square + square.T) / 2)
    chosen = _select(values, wanted.which, wanted.k)
    error = columns @ vectors[:, chosen]
    error[rows] -= vectors[:, chosen] * values[chosen]
    coefficients = np.zeros((count, len(chosen)))
    coefficients[rows] = vectors[:, chosen]
    eps = float(np.finfo(basis.measure(state.basis)[2]).eps)
    floor = max(10 * eps, wanted.coarseness) * float(np.abs(values).max())
    return Ritz(values[chosen], coefficients, np.linalg.norm(error, axis=0), floor)


def tolerance(values: np.ndarray, ritz: Ritz, wanted: Wanted) -> np.ndarray:
    """Return the largest residuals of eigenvalues, or differences between them, that are as good as none."""
    return np.maximum(wanted.rtol * np.abs(values), ritz.floor)


def judge(state: krylov.KrylovState, ritz: Ritz, wanted: Wanted) -> Step:
    """Say what a check has shown so far: a Lanczos process from a random vector orthogonal to what was found.

    Its extreme Ritz values tell of what was missed. After m products the top one lies within
    ``(log(1.648 sqrt(n) / doubt) / (2 m - 1))^2`` of the spread from the largest eigenvalue, but for the given
    probability (Kuczynski and Wozniakowski 1992, theorem 4.1).

    ``"restart"``: an eigenvalue lies beyond the last wanted one, and the vectors of all such have converged, or
    cannot within the room. ``"believe"``: none does, which the bound shows, or a Ritz vector that converged to
    another; or the products of the check are used up, half as many as there were before.
    """
    now = krylov.standing(state)
    count, built, after = now.multiplied, now.built, now.waiting[1]
    number = count - after
    if number == 0:
        return "believe" if count == built else "go on"
    columns = np.asarray(state.projected, np.float64)[after:built, after:count]
    values, vectors = np.linalg.eigh((columns[:number] + columns[:number].T) / 2)
    residuals = np.linalg.norm(columns[number:] @ vectors, axis=0)
    small = residuals <= tolerance(values, ritz, wanted)
    share = (math.log(1.648 * math.sqrt(basis.measure(state.basis)[1]) / _DOUBT) / (2 * number - 1)) ** 2
    beyond, shown = np.zeros(number, bool), True
    for sign, edge in _edges(ritz.values, wanted.which):
        limit, signed = edge + float(tolerance(np.array(edge), ritz, wanted)), sign * values
        beyond |= signed > limit
        proven = share < 1 and limit - signed.max() >= share * (limit - signed.min())
        shown &= bool(small[signed.argmax()]) or proven
    last = now.room <= 0 or count == built
    if beyond.any():
        return "restart" if last or small[beyond].all() else "go on"
    used = number >= max(_LEAST_CHECK, (now.num_matvecs - number) // 2)
    return "believe" if shown or last or used else "go on"


def _edges(values: np.ndarray, which: Which) -> list[tuple[int, float]]:
    # Times the sign, no eigenvalue but those found may lie above the edge.
    if which == "LA":
        return [(1, values[-1])]
    if which == "SA":
        return [(-1, -values[-1])]
    if which == "LM":
        return [(1, abs(values[-1])), (-1, abs(values[-1]))]
    top = len(values) - len(values) // 2
    return [(1, values[top - 1]), *([(-1, -values[top])] if top < len(values) else [])]


def _select(values: np.ndarray, which: Which, number: int) -> np.ndarray:
    order = np.argsort(-np.abs(values), kind="stable") if which == "LM" else np.arange(len(values))[::-1]
    number = min(number, len(values))
    if which == "SA":
        return order[::-1][:number]
    if which == "BE":
        return np.concatenate([order[: number - number // 2], order[len(order) - number // 2 :]])
    return order[:number]
