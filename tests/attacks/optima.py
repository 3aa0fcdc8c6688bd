"""Where a linear loss is highest in a ball cut by bounds: NumPy and SciPy, in float64."""

import numpy as np
from scipy.optimize import linprog


def farthest(w, x, epsilon, norm, bounds):
    """The best point for the loss ``w . x``, for one example."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    low, high = (np.full(len(x), -np.inf), np.full(len(x), np.inf)) if bounds is None else (
        np.minimum(bounds[0], x), np.maximum(bounds[1], x)
    )  # fmt: skip
    if norm == "linf":
        return np.clip(x + epsilon * np.sign(w), low, high)
    if norm == "l1":
        up, down = (np.minimum(room, epsilon) for room in (high - x, x - low))
        limits = [(0, limit) for limit in (*up, *down)]
        found = linprog(np.concatenate([-w, w]), np.ones((1, 2 * len(w))), [epsilon], bounds=limits).x
        return x + found[: len(w)] - found[len(w) :]
    least, most = 0.0, 1e9  # of the multiple of w, by bisection
    for _ in range(200):
        middle = (least + most) / 2
        moved = np.clip(x + middle * w, low, high)
        least, most = (middle, most) if np.linalg.norm(moved - x) < epsilon else (least, middle)
    return moved
