"""Products of a transformer whose layers are a loop of Python, rematerialised, scanned, or both.

    python experiments/benchmarks/transformer_layers.py [--rounds N]

The character network of ``transformer_problem.py``, the same params and tokens; functions run in turn, medians.
Writes transformer_layers.json and transformer_layers.md beside this file.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.benchmarks import forms
from experiments.benchmarks.transformer_problem import PROBLEMS, build, hidden

_PROBLEM = PROBLEMS["char"]
FORMS = {"loop": (False, False), "remat": (True, False), "scan": (False, True), "remat, scan": (True, True)}


def measure(rounds: int) -> dict[str, Any]:
    """Time the products of each form."""
    (model_fn, _), _, params, batch = build(_PROBLEM)
    names = [f"_Layer_{i}" for i in range(_PROBLEM.layers)]
    stacked = {
        **{name: value for name, value in params.items() if name not in names},
        "layers": jax.tree.map(lambda *x: jnp.stack(x), *(params[name] for name in names)),
    }

    def logits(params: Any, batch: Any, remat: bool, scan: bool) -> jax.Array:
        h = hidden(_PROBLEM, params, batch["x"], remat=remat, scan=scan)
        return h @ params["embed"]["embedding"].T

    def make(remat: bool, scan: bool) -> Any:
        np.testing.assert_allclose(
            logits(stacked, batch, remat, scan), model_fn(params, batch), rtol=1e-3, atol=1e-4
        )

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            found = logits(params, batch, remat, scan)
            return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()

        return loss_fn

    return forms.compare({name: make(*form) for name, form in FORMS.items()}, stacked, batch, rounds)


if __name__ == "__main__":
    forms.main(__file__, "Layers that are rematerialised or scanned", f"{_PROBLEM}.", "layers", measure)
