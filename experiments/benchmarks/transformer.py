"""Curvature of transformers: our products and eigenpairs, and the peers on the same weights and tokens.

    python experiments/benchmarks/transformer.py [--rounds 7] [--problems char,wide]

``char`` is the character network of this library with 4 layers of width 128 on 8 sequences of 128 tokens of 96;
``wide`` has 50,304 tokens, as GPT-2, and 2 layers of width 256 on 2 sequences; ``nanogpt``, for an accelerator,
is nanoGPT's network for characters on 16 sequences of 256. XLA and PyTorch are each in a process of their own,
which sleeps while the other runs, both in full float32; each function runs once a round, in turn; medians.
Needs torch, curvlinops-for-pytorch, hessian-eigenthings and scipy, and writes transformer.json and
transformer.md (transformer_gpu on a GPU) beside this file.
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks import transformer_peers as peers
from experiments.benchmarks.transformer_problem import PROBLEMS, Problem, build
from hessabs import curvature, trees

_LONG = 30.0  # seconds: what takes longer is timed once, after the run that compiles
_HERE = pathlib.Path(__file__).parent
_Runs = dict[str, Callable[[], Any]]


OF_GRADIENTS = {
    "hessian, recomputed": "gradient, XLA",
    "hessian, linearised": "gradient, XLA",
    "gauss_newton, linearised": "gradient, XLA",
    "fisher, linearised": "gradient, XLA",
    "curvlinops, Hessian": "gradient, PyTorch",
    "curvlinops, GGN": "gradient, PyTorch",
    "hessian-eigenthings, Hessian": "gradient, PyTorch",
}
"""Products, and the gradient that each is a multiple of."""


def ours(problem: Problem, arrays: Any) -> _Runs:
    """Make our functions by name."""
    (model_fn, loss_fn), whole, *_ = build(problem)
    params, batch, vector = jax.tree.map(jnp.asarray, arrays)
    gradient = jax.jit(jax.grad(whole))
    product = jax.jit(lambda operator, v: operator(v))
    operators = {
        "hessian, recomputed": curvature.hessian(whole, params, batch),
        "hessian, linearised": curvature.hessian(whole, params, batch, linearize=True),
        "gauss_newton, linearised": curvature.gauss_newton(model_fn, loss_fn, params, batch, linearize=True),
        "fisher, linearised": curvature.fisher(model_fn, params, batch, linearize=True),
    }

    def top() -> Any:
        operator = curvature.hessian(whole, params, batch, linearize=True)
        found = curvature.eigsh(operator, vector, 5, rtol=1e-3)
        return {"products": found.num_matvecs, "values": found.eigenvalues, "residual": found.residuals.max()}

    def memory() -> Any:
        def temporary(function: Any, *args: Any) -> int:
            analysis: Any = jax.jit(function).lower(*args).compile().memory_analysis()
            return int(analysis.temp_size_in_bytes)

        kept = sum(x.nbytes for x in jax.tree.leaves(operators["hessian, linearised"]))
        return {
            "gradient": temporary(jax.grad(whole), params, batch),
            "hessian, recomputed": temporary(
                lambda p, b, v: curvature.hessian(whole, p, b)(v), params, batch, vector
            ),
            "hessian, linearised": temporary(product, operators["hessian, linearised"], vector) + kept,
        }

    return {
        "gradient, XLA": lambda: gradient(params, batch),
        **{name: functools.partial(product, operator, vector) for name, operator in operators.items()},
        "top 5, ours": top,
        "memory": memory,
    }


def _serve(pipe: Any, kind: str, problem: Problem, arrays: Any) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")  # as PyTorch's default is
    runs, read = (ours(problem, arrays), lambda x: x) if kind == "ours" else peers.runs(problem, arrays)
    pipe.send(list(runs))
    while (name := pipe.recv()) is not None:
        started = time.perf_counter()
        answer = jax.block_until_ready(runs[name]())
        seconds = time.perf_counter() - started
        pipe.send((seconds, jax.tree.map(np.asarray, read(answer))))


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    """Time everything on one problem."""
    _, _, params, batch = build(problem)
    arrays = jax.tree.map(np.asarray, (params, batch, trees.normal_like(jax.random.key(1), params)))
    context = multiprocessing.get_context("spawn")
    places: dict[str, Any] = {}
    for kind in ("ours", "peers"):
        here, there = context.Pipe()
        context.Process(target=_serve, args=(there, kind, problem, arrays), daemon=True).start()
        there.close()  # a process that dies is told by the pipe
        places |= dict.fromkeys(here.recv(), here)

    def run(name: str) -> tuple[float, Any]:
        places[name].send(name)
        return places[name].recv()

    memory = run("memory")[1]
    times: dict[str, list[float]] = {}
    # The peers take minutes for the eigenpairs of a wide vocabulary.
    wide = problem.vocabulary > 1000
    timed = [name for name in places if name != "memory" and not (wide and name.startswith("top"))]
    first = {name: run(name) for name in timed}  # compiles
    answers = {name: answer for name, (_, answer) in first.items()}
    for number in range(rounds):
        for name, (seconds, _) in first.items():
            most = rounds if not name.startswith("top") else 3 if seconds < _LONG else 1
            if number < most:
                times.setdefault(name, []).append(run(name)[0])
    for pipe in set(places.values()):
        pipe.send(None)
    want = np.asarray(trees.ravel(answers["hessian, recomputed"])[0], np.float64)
    apart = {}
    for name in ("hessian, linearised", "curvlinops, Hessian", "hessian-eigenthings, Hessian"):
        got = np.asarray(trees.ravel(answers[name])[0], np.float64)
        apart[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return {
        "problem": str(problem),
        "params": sum(x.size for x in jax.tree.leaves(params)),
        "ms": {name: 1e3 * statistics.median(values) for name, values in times.items()},
        "apart": apart,
        "top": {
            name: {key: np.asarray(value).tolist() for key, value in answers[name].items()}
            for name in answers
            if name.startswith("top")
        },
        "memory": {name: int(value) for name, value in memory.items()},
        "origin": f"commit {provenance.commit()[:12]}, {rounds} rounds; {provenance.hardware()}; "
        f"jax {jax.__version__}; {peers.versions()}",
    }


def page(results: dict[str, Any]) -> str:
    """Draw the page."""
    lines = ["# Curvature of transformers", "", "`python experiments/benchmarks/transformer.py`", ""]
    for name, found in results.items():
        ms = found["ms"]
        lines += [f"## {name}: {found['problem']}", "", f"{found['params']:,} params.", ""]
        lines += ["| | ms | of the gradient beside it | apart from ours, recomputed |", "|---|---|---|---|"]
        for what, value in ms.items():
            if not what.startswith("top"):
                gradient = OF_GRADIENTS.get(what)
                ratio = f"{value / ms[gradient]:.2f}" if gradient else ""
                apart = f"{found['apart'][what]:.1e}" if what in found["apart"] else ""
                lines.append(f"| {what} | {value:.1f} | {ratio} | {apart} |")
        if found["top"]:
            lines += [
                "",
                "| top 5 to 1e-3 | seconds | products | largest residual | values |",
                "|---|---|---|---|---|",
            ]
        for what, answer in found["top"].items():
            values = ", ".join(f"{value:.4g}" for value in answer["values"])
            residual = f"{answer['residual']:.1e}" if "residual" in answer else "not said"
            lines.append(
                f"| {what.removeprefix('top 5, ')} | {ms[what] / 1e3:.2f} | {answer.get('products', '')} "
                f"| {residual} | {values} |"
            )
        memory = ", ".join(f"{what} {value / 2**20:.0f} MiB" for what, value in found["memory"].items())
        lines += ["", f"Memory beside params and tokens, as XLA says: {memory}.", "", found["origin"], ""]
    return "\n".join(lines)


def main() -> None:
    """Measure the problems and write the page."""
    parser = argparse.ArgumentParser(description="Curvature of transformers, and the peers.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--problems", default="char,wide")
    options = parser.parse_args()
    kept = _HERE / f"transformer{provenance.platform_suffix()}.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.problems.split(","):
        results[name] = measure(PROBLEMS[name], options.rounds)
        kept.write_text(json.dumps(results, indent=1) + "\n")
        kept.with_suffix(".md").write_text(page(results))
        print(page({name: results[name]}), flush=True)


if __name__ == "__main__":
    main()
