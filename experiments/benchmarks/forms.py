"""Several forms of one loss, the same numbers: what their gradient and products take, in time and memory."""

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments import provenance
from hessabs import curvature, trees
from hessabs.training.look.results import markdown

FUNCTIONS = ("gradient", "hessian, recomputed", "hessian, linearised")


def compare(forms: Mapping[str, Callable[..., Any]], params: Any, batch: Any, rounds: int) -> dict[str, Any]:
    """Time the functions of each loss in turn; medians in ms, and the bytes that XLA or the operator holds."""
    vector = trees.normal_like(jax.random.key(1), params)
    product = jax.jit(lambda operator, v: operator(v))
    runs: dict[tuple[str, str], Any] = {}
    memory: dict[str, dict[str, int]] = {}
    for form, loss_fn in forms.items():
        kept = curvature.hessian(loss_fn, params, batch, linearize=True)
        again = curvature.hessian(loss_fn, params, batch)
        gradient = jax.jit(jax.grad(loss_fn))
        calls = {
            "gradient": (gradient, params, batch),
            "hessian, recomputed": (product, again, vector),
            "hessian, linearised": (product, kept, vector),
        }
        held = {"hessian, linearised": sum(x.nbytes for x in jax.tree.leaves(kept))}
        for name, (function, *arguments) in calls.items():
            analysis: Any = function.lower(*arguments).compile().memory_analysis()
            memory.setdefault(form, {})[name] = int(analysis.temp_size_in_bytes) + held.get(name, 0)
            runs[form, name] = functools.partial(function, *arguments)
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[key].append(1e3 * (time.perf_counter() - started))
    return {
        "ms": {form: {name: statistics.median(times[form, name]) for name in FUNCTIONS} for form in forms},
        "memory": memory,
        "origin": f"commit {provenance.commit()[:12]}, {rounds} rounds; {provenance.hardware()}; "
        f"jax {jax.__version__}",
    }


def main(path: str, title: str, note: str, what: str, measure: Callable[[int], dict[str, Any]]) -> None:
    """Measure as the command line says, and write a script's .json and .md beside it."""
    parser = argparse.ArgumentParser(description=f"{title}.")
    parser.add_argument("--rounds", type=int, default=3)
    script = pathlib.Path(path)
    found = measure(parser.parse_args().rounds)
    script.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    head = f"`python experiments/benchmarks/{script.name}`; {note}"
    page = "\n".join([f"# {title}", "", head, "", *_table(found, what), "", found["origin"], ""])
    script.with_suffix(".md").write_text(page)
    print(page)


def _table(found: Mapping[str, Any], what: str) -> list[str]:
    first, *_ = found["ms"]
    rows = [[what, *(t for name in FUNCTIONS for t in (f"{name}, ms", f"of {first}", "MiB"))]]
    for form, ms in found["ms"].items():
        memory = found["memory"][form]
        cells = (
            (f"{ms[name]:.1f}", f"{ms[name] / found['ms'][first][name]:.2f}", f"{memory[name] / 2**20:.0f}")
            for name in FUNCTIONS
        )
        rows.append([form, *(text for cell in cells for text in cell)])
    return markdown(rows)
