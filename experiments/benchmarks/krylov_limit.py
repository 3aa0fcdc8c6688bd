"""Products that ``eigsh`` takes, beside the fewest that any Krylov method can, and those of warm starts.

    python experiments/benchmarks/krylov_limit.py --data_dir DIR [--problems mlp,cnn,char]

The limit is a Krylov process in float64 on the same operator from the same start, with all of its vectors kept
and orthogonalised twice, looked at after each product: the first at which the residuals of all wanted pairs are
small. It does not know whether it has missed one. ``eigsh`` looks less often, and then begins its check, whose
products stand apart.
The other table is of ``power_iteration`` from the last eigenvector, as training measures, after so many updates
of SGD. Counts, no times. Writes krylov_limit.json and krylov_limit.md beside this file.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks import curvature_problem, transformer_problem
from hessabs import curvature, trees
from hessabs.curvature import krylov
from hessabs.training.look.results import markdown

_HERE = pathlib.Path(__file__).parent
_RTOL = 1e-3
_PAIRS = {"mlp": (1, 5, 20), "cnn": (1, 5), "char": (1, 5)}
_UPDATES = (1, 10, 100)  # between two measurements
_RATES = (0.05, 0.005)  # of those updates
_MEASURED = 1e-2  # residual of training's own measurements


def limit(product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, k: int) -> int:
    """Count the products until all residuals of the largest k pairs are small."""
    basis, alphas, betas = [start / np.linalg.norm(start)], [], []
    while True:
        new = product(basis[-1])
        alphas.append(float(new @ basis[-1]))
        for _ in range(2):
            for vector in basis:
                new -= (vector @ new) * vector
        betas.append(float(np.linalg.norm(new)))
        projected = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
        values, vectors = np.linalg.eigh(projected)
        residuals = betas[-1] * np.abs(vectors[-1, -k:])
        if len(alphas) >= k and (residuals <= _RTOL * np.abs(values[-k:])).all():
            return len(alphas)
        basis.append(new / betas[-1])


def cold(operator: Any, params: Any, pairs: tuple[int, ...]) -> list[dict[str, Any]]:
    """Count the products of ``eigsh`` and the limit."""
    rows = []
    start = trees.normal_like(jax.random.key(1), params)
    flat, unravel = ravel_pytree(start)
    call = jax.jit(lambda operator, v: operator(v))

    def product(vector: np.ndarray) -> np.ndarray:
        return np.array(ravel_pytree(call(operator, unravel(jnp.asarray(vector, jnp.float32))))[0], np.float64)

    for k in pairs:
        begun: list[int] = []  # products before each state of the check

        def look(state: krylov.KrylovState, begun: list[int] = begun) -> None:
            now = krylov.standing(state)
            if now.waiting[1]:
                begun.append(now.num_matvecs - 1)

        found = curvature.eigsh(operator, start, k, rtol=_RTOL, save=look)
        if not found.converged.all():
            raise SystemExit(f"no {k} pairs in {found.num_matvecs} products")
        fewest = limit(product, np.asarray(flat, np.float64), k)
        rows.append({"k": k, "limit": fewest, "before check": begun[0], "all": found.num_matvecs})
        print(rows[-1], flush=True)
    return rows


def warm(loss_fn: Any, params: Any, batches: Any, batch: Any) -> list[dict[str, Any]]:
    """Count the products of a measurement from the last eigenvector."""

    @jax.jit
    def step(params: Any, batch: Any, lr: float) -> Any:
        gradient = jax.grad(loss_fn)(params, batch)
        return jax.tree.map(lambda x, g: (x - lr * g).astype(x.dtype), params, gradient)

    before = curvature.power_iteration(
        curvature.hessian(loss_fn, params, batch, linearize=True),
        trees.normal_like(jax.random.key(2), params),
        max_iters=500,
        rtol=1e-3,
    )
    rows = []
    for lr, count in itertools.product(_RATES, _UPDATES):
        moved = params
        for i in range(count):
            moved = step(moved, batches(i), lr)
        operator = curvature.hessian(loss_fn, moved, batch, linearize=True)
        after = curvature.power_iteration(operator, before.eigenvector, max_iters=100, rtol=_MEASURED)
        cosine = abs(float(trees.vdot(before.eigenvector, after.eigenvector)))
        rows.append({"lr": lr, "updates": count, "products": int(after.num_iters), "cosine": cosine,
                     "before": float(before.eigenvalue), "after": float(after.eigenvalue)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def page(results: dict[str, Any]) -> str:
    """Write the tables."""
    cold_rows = [["problem", "pairs", "limit", "before the check", "of the limit", "with the check"]]
    warm_rows = [
        ["problem", "rate", "updates between", "products", "cosine of the eigenvectors", "eigenvalues"]
    ]
    for name, found in results.items():
        for row in found["cold"]:
            counts = (row["k"], row["limit"], row["before check"])
            ratio = f"{row['before check'] / row['limit']:.2f}"
            cold_rows.append([name, *map(str, counts), ratio, str(row["all"])])
        for row in found["warm"]:
            values = f"{row['before']:.3g}, {row['after']:.3g}"
            warm_rows.append(
                [
                    name,
                    f"{row['lr']:g}",
                    str(row["updates"]),
                    str(row["products"]),
                    f"{row['cosine']:.4f}",
                    values,
                ]
            )
    lines = [
        "# Products, beside the fewest",
        "",
        "`python experiments/benchmarks/krylov_limit.py --data_dir DIR`",
        "",
        f"Pairs to a relative residual of {_RTOL:g}. The check tells that no pair was missed, which the"
        " limit does not know.",
        "",
        *markdown(cold_rows),
        "",
        f"Measurements as in training, `power_iteration` to {_MEASURED:g} from the last eigenvector,"
        " after updates of SGD:",
        "",
        *markdown(warm_rows),
        "",
    ]
    return "\n".join([*lines, *(f"{name}: {found['origin']}\n" for name, found in results.items())])


def main() -> None:
    """Count for the problems and write the page."""
    parser = argparse.ArgumentParser(description="Products of eigsh beside the limit.")
    parser.add_argument("--data_dir", required=True, help="folder of prepared TFDS data sets")
    parser.add_argument("--problems", default=",".join(_PAIRS))
    options = parser.parse_args()
    kept = _HERE / "krylov_limit.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.problems.split(","):
        if name == "char":
            _, loss_fn, params, batch = transformer_problem.build(transformer_problem.PROBLEMS["char"])
            batches = lambda i, batch=batch: batch  # noqa: E731
        else:
            images = curvature_problem.load(options.data_dir)
            loss_fn, params, batch = curvature_problem.problem(name, images, 512)

            def batches(i: int, images: Any = images) -> Any:
                part = slice((200 + i) * 128, (201 + i) * 128)
                return {n: jnp.asarray(x[part]) for n, x in images.items()}

        operator = curvature.hessian(loss_fn, params, batch, linearize=True)
        results[name] = {
            "cold": cold(operator, params, _PAIRS[name]),
            "warm": warm(loss_fn, params, batches, batch),
            "origin": f"commit {provenance.commit()[:12]}; {provenance.hardware()}; jax {jax.__version__}",
        }
        kept.write_text(json.dumps(results, indent=1) + "\n")
        kept.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
