"""Eigenvalues of a transformer in bfloat16, activations alone and with their params, beside float32.

    python experiments/benchmarks/low_precision.py

The character network and tokens of ``transformer_problem.py``. Writes low_precision.md beside
this file.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks.transformer_problem import PROBLEMS, build
from hessabs import curvature, trees
from hessabs.training.look.results import markdown

_PAIRS, _RTOL = 5, 1e-2


def main() -> None:
    """Measure and write the page."""
    _, exact, params, batch = build(PROBLEMS["char"])
    _, rough, _, _ = build(PROBLEMS["char"], jnp.bfloat16)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rows = [["", "eigenvalues", "largest distance from float32", "largest residual"]]
    want: np.ndarray | None = None
    for name, loss_fn, at in (
        ("float32", exact, params),
        ("activations in bfloat16", rough, params),
        ("activations and params in bfloat16", rough, rounded),
    ):
        start = trees.normal_like(jax.random.key(1), at)
        operator = curvature.hessian(loss_fn, at, batch, linearize=True)
        found = curvature.eigsh(operator, start, _PAIRS, rtol=_RTOL)
        if not found.converged.all():
            raise SystemExit(f"{name}: no pairs to {_RTOL:g} in {found.num_matvecs} products")
        want = found.eigenvalues if want is None else want
        distance = 100 * np.abs(found.eigenvalues / want - 1).max()
        values = ", ".join(f"{value:.5g}" for value in found.eigenvalues)
        rows.append([name, values, f"{distance:.2f} %", f"{found.residuals.max():.1e}"])
    lines = [
        "# Eigenvalues in bfloat16",
        "",
        f"`python experiments/benchmarks/low_precision.py`; {PROBLEMS['char']}; top {_PAIRS} to {_RTOL:g}.",
        "",
        *markdown(rows),
        "",
        f"commit {provenance.commit()[:12]}; {provenance.hardware()}; jax {jax.__version__}",
        "",
    ]
    pathlib.Path(__file__).with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
