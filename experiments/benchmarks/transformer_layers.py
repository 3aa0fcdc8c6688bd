"""Products of a transformer whose layers are a loop of Python, rematerialised, scanned, or both.

    python experiments/benchmarks/transformer_layers.py [--rounds 7]

The character network of ``transformer_problem.py``, the same params and tokens; functions run in turn, medians.
Writes transformer_layers.json and transformer_layers.md beside this file.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks.transformer_problem import PROBLEMS, build
from hessabs import curvature, trees
from hessabs.models.transformer import _Layer
from hessabs.training.look.results import markdown

_HERE = pathlib.Path(__file__).parent
_PROBLEM = PROBLEMS["char"]
FORMS = {"loop": (False, False), "remat": (True, False), "scan": (False, True), "remat, scan": (True, True)}
FUNCTIONS = ("gradient", "hessian, recomputed", "hessian, linearised")


def logits(remat: bool, scan: bool, params: Any, tokens: jax.Array) -> jax.Array:
    """Compute what the network of the library does; the layers' params are stacked in ``params["layers"]``."""
    module = _Layer(tokens.shape[1], _PROBLEM.heads, 2 * _PROBLEM.layers, None)

    def layer(h: jax.Array, params: Any) -> tuple[jax.Array, None]:
        return module.apply({"params": params}, h), None  # type: ignore[return-value]

    layer = jax.checkpoint(layer) if remat else layer
    embedding = params["embed"]["embedding"]
    h = (embedding[tokens] + params["position_embed"]).reshape(-1, _PROBLEM.width)
    if scan:
        h, _ = jax.lax.scan(layer, h, params["layers"])
    else:
        for i in range(_PROBLEM.layers):
            h, _ = layer(h, jax.tree.map(lambda x, i=i: x[i], params["layers"]))
    h = nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, h)
    return (h @ embedding.T).reshape(*tokens.shape, -1)


def measure(rounds: int) -> dict[str, Any]:
    """Time the products of each form."""
    (model_fn, _), _, params, batch = build(_PROBLEM)
    names = [f"_Layer_{i}" for i in range(_PROBLEM.layers)]
    stacked = {
        **{name: value for name, value in params.items() if name not in names},
        "layers": jax.tree.map(lambda *x: jnp.stack(x), *(params[name] for name in names)),
    }
    vector = trees.normal_like(jax.random.key(1), stacked)
    product = jax.jit(lambda operator, v: operator(v))
    runs: dict[tuple[str, str], Any] = {}
    memory: dict[str, dict[str, int]] = {}
    for form, (remat, scan) in FORMS.items():
        np.testing.assert_allclose(
            logits(remat, scan, stacked, batch["x"]), model_fn(params, batch), rtol=1e-3, atol=1e-4
        )

        def loss_fn(params: Any, batch: Any, remat: bool = remat, scan: bool = scan) -> jax.Array:
            found = logits(remat, scan, params, batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()

        kept = curvature.hessian(loss_fn, stacked, batch, linearize=True)
        again = curvature.hessian(loss_fn, stacked, batch)
        gradient = jax.jit(jax.grad(loss_fn))
        runs[form, "gradient"] = functools.partial(gradient, stacked, batch)
        runs[form, "hessian, recomputed"] = functools.partial(product, again, vector)
        runs[form, "hessian, linearised"] = functools.partial(product, kept, vector)
        lowered = {
            "gradient": gradient.lower(stacked, batch),
            "hessian, recomputed": product.lower(again, vector),
            "hessian, linearised": product.lower(kept, vector),
        }
        held = {"hessian, linearised": sum(x.nbytes for x in jax.tree.leaves(kept))}
        for name, low in lowered.items():
            analysis: Any = low.compile().memory_analysis()
            memory.setdefault(form, {})[name] = int(analysis.temp_size_in_bytes) + held.get(name, 0)
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[key].append(1e3 * (time.perf_counter() - started))
    return {
        "ms": {form: {name: statistics.median(times[form, name]) for name in FUNCTIONS} for form in FORMS},
        "memory": memory,
        "origin": f"commit {provenance.commit()[:12]}, {rounds} rounds; {provenance.hardware()}; "
        f"jax {jax.__version__}",
    }


def page(found: dict[str, Any]) -> str:
    """Draw the page."""
    rows = [["layers", *(title for name in FUNCTIONS for title in (f"{name}, ms", "of the loop's", "MiB"))]]
    for form in FORMS:
        ms, memory = found["ms"][form], found["memory"][form]
        cells = (
            (f"{ms[name]:.1f}", f"{ms[name] / found['ms']['loop'][name]:.2f}", f"{memory[name] / 2**20:.0f}")
            for name in FUNCTIONS
        )
        rows.append([form, *(text for cell in cells for text in cell)])
    lines = [
        "# Layers that are rematerialised or scanned",
        "",
        f"`python experiments/benchmarks/transformer_layers.py`; {_PROBLEM}.",
        "",
        *markdown(rows),
        "",
        found["origin"],
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description="Layers that are rematerialised or scanned.")
    parser.add_argument("--rounds", type=int, default=7)
    found = measure(parser.parse_args().rounds)
    kept = _HERE / "transformer_layers.json"
    kept.write_text(json.dumps(found, indent=1) + "\n")
    kept.with_suffix(".md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
