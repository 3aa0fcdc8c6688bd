"""Products of a language model with a large vocabulary: its logits whole, or a chunk of tokens at a time.

    python experiments/benchmarks/large_vocabulary.py [--rounds N]

The wide network of ``transformer_problem.py``, its embedding tied, with eight times the tokens; functions run
in turn, medians. Writes large_vocabulary.json and large_vocabulary.md beside this file.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.benchmarks import forms
from experiments.benchmarks.transformer_problem import PROBLEMS, build, hidden
from hessabs.curvature import linear_cross_entropy

_PROBLEM = PROBLEMS["wide"]._replace(sequences=8, length=256)
_CHUNKS = (512, 128)


def measure(rounds: int) -> dict[str, Any]:
    """Time the gradient and the products with and without chunks."""
    _, whole, params, batch = build(_PROBLEM)
    names = [f"_Layer_{i}" for i in range(_PROBLEM.layers)]

    def make(size: int) -> Any:
        def loss_fn(params: Any, batch: Any) -> jax.Array:
            stacked = {
                **params,
                "layers": jax.tree.map(lambda *x: jnp.stack(x), *(params[name] for name in names)),
            }
            h = hidden(_PROBLEM, stacked, batch["x"], remat=False, scan=False)
            kernel = params["embed"]["embedding"].T
            return linear_cross_entropy(h, kernel, batch["y"], chunk_size=size)

        np.testing.assert_allclose(loss_fn(params, batch), whole(params, batch), rtol=1e-5)
        return loss_fn

    losses = {"logits whole": whole, **{f"{size} tokens at a time": make(size) for size in _CHUNKS}}
    return forms.compare(losses, params, batch, rounds)


if __name__ == "__main__":
    logits, embedding = (
        4 * rows * _PROBLEM.vocabulary / 2**20
        for rows in (_PROBLEM.sequences * _PROBLEM.length, _PROBLEM.width)
    )
    note = (
        f"{_PROBLEM}; the logits are {logits:.0f} MiB, the params {embedding:.0f} MiB of embedding and little "
        "else. Memory is what a function holds beside params, vector and result, and for linearised products "
        "what the operator keeps."
    )
    forms.main(__file__, "A large vocabulary", note, "cross-entropy", measure)
