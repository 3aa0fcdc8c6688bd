"""Speed of the curvature tools, and the peers on the same weights and batch.

    python experiments/benchmarks/curvature.py --data_dir DIR [--rounds 7] [--parts product,dataset,step,mlp-5]

DIR holds Fashion-MNIST as TFDS prepares it. Each part (``mlp-5``: the
top 5 pairs of the MLP) replaces its results in curvature.json beside this file and draws curvature.md anew:
parts may be measured one by one. Tools are timed in turn, medians of the rounds, after one run that compiles;
in the contests each in a process of its own, which sleeps while another runs, so that the thread pools of
XLA, PyTorch and OpenBLAS do not take the processor from each other. Needs the peers: torch, pyhessian,
hessian-eigenthings, curvlinops-for-pytorch, scipy, matfree, laplax.

Where JAX uses a GPU, PyTorch is put on it too, and the files are curvature_gpu.json and curvature_gpu.md. There
the peers are set to full float32 as well (the products of TF32 do not reach the residual that is asked for).
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks import curvature_contest as contest
from experiments.benchmarks import curvature_peers as peers
from experiments.benchmarks.curvature_problem import load, problem
from hessabs import curvature, trees
from hessabs.curvature import basis, krylov

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder with Fashion-MNIST as TFDS prepares it", required=True
)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed runs of each")
_PARTS = flags.DEFINE_list("parts", None, "parts to measure; None for all")
_HERE = pathlib.Path(__file__).parent
CONTESTS = tuple(f"{name}-{k}" for name in ("mlp", "cnn") for k in (1, 5, 20))


def main(argv: Sequence[str]) -> None:
    """Measure the parts and write the tables."""
    del argv
    data = load(_DATA_DIR.value)
    sections = {"product": product_costs, "dataset": data_set_product, "step": lanczos_step}
    chosen = _PARTS.value or [*sections, *CONTESTS]
    for part in chosen:
        if part not in (*sections, *CONTESTS):
            raise SystemExit(f"--parts must name some of {', '.join((*sections, *CONTESTS))}, got {part}.")
    kept = _HERE / f"curvature{provenance.platform_suffix()}.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for part in chosen:
        if part in sections:
            lines = [line for some in sections[part](data) for line in some]
        else:
            lines = contest.table(data, part, _ROUNDS.value)
        what = f"`--parts {part} --rounds {_ROUNDS.value}`, commit {provenance.commit()[:12]}"
        results[part] = {"lines": lines, "what": what}
        print("\n".join(lines), flush=True)
        kept.write_text(json.dumps(results, indent=1) + "\n")
        kept.with_suffix(".md").write_text(page(results, [*sections, *CONTESTS]))


def page(results: dict[str, Any], order: Sequence[str]) -> str:
    """Draw the page of all results."""
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    lines = [
        "# Speed of the curvature tools",
        "",
        f"`python experiments/benchmarks/curvature.py --data_dir DIR`; {provenance.hardware()}; jax "
        f"{jax.__version__}; {versions}",
        "",
    ]
    for part in order:
        if part in results:
            lines += [*results[part]["lines"], results[part]["what"] + ".", ""]
    return "\n".join(lines)


def product_costs(data: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Cost of a Hessian-vector product, in gradients of the same loss and batch."""
    yield [
        "## A product, in gradients of the same loss and batch",
        "",
        "| network | batch | gradient, ms | linearised | recomputed | residuals kept, MB | linearising, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, size in (("mlp", 512), ("mlp", 2000), ("cnn", 512), ("resnet20", 128)):
        yield [f"| {name} | {size:,} | {' | '.join(product_cost(*problem(name, data, size)))} |"]
    yield [""]


def product_cost(loss_fn: Any, params: Any, batch: Any) -> list[str]:
    """The columns of one network."""
    gradient = jax.jit(jax.grad(loss_fn))
    linearised: Any = curvature.hessian(loss_fn, params, batch, linearize=True)
    recomputed = curvature.hessian(loss_fn, params, batch)
    vector = trees.normal_like(jax.random.key(1), params)
    times = in_turn(
        {
            "gradient": lambda: gradient(params, batch),
            "linearised": lambda: linearised(vector),
            "recomputed": lambda: recomputed(vector),
            "linearise": lambda: curvature.hessian(loss_fn, params, batch, linearize=True),
        }
    )
    ratios = [
        statistics.median(a / b for a, b in zip(times[kind], times["gradient"], strict=True))
        for kind in ("linearised", "recomputed")
    ]
    kept = sum(x.nbytes for x in linearised.rest[0].residuals) / 1e6
    return [
        f"{1e3 * median(times['gradient']):.1f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{kept:.0f}",
        f"{1e3 * median(times['linearise']):.1f}",
    ]


def data_set_product(data: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Time per image and memory of a product over the whole data set."""
    loss_fn, params, batch = problem("mlp", data, 2000)
    starts = range(0, len(data["label"]), 2000)
    batches = [{name: array[i : i + 2000] for name, array in data.items()} for i in starts]
    whole = curvature.dataset_hessian(loss_fn, params, batches)
    single = curvature.hessian(loss_fn, params, batch)
    vector = trees.normal_like(jax.random.key(1), params)
    few = curvature.dataset_hessian(loss_fn, params, batches[:3])
    few(vector)
    before = peak_memory()
    times = in_turn({"whole": lambda: whole(vector), "single": lambda: single(vector)})
    per_image = [1e6 * median(times["whole"]) / len(data["label"]), 1e6 * median(times["single"]) / 2000]
    yield [
        "## A product over the whole data set (MLP, batches of 2,000)",
        "",
        f"{len(data['label']):,} images: {per_image[0]:.2f} us per image; a single batch: {per_image[1]:.2f} "
        f"us per image; ratio {per_image[0] / per_image[1]:.3f}. Peak memory after products over 3 batches "
        f"{before:.0f} MB, after products over all {peak_memory():.0f} MB.",
        "",
    ]


def lanczos_step(data: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """The Lanczos step outside the product: what it reads, and how fast."""
    loss_fn, params, batch = problem("mlp", data, 2000)
    form, size = basis.layout(params, host=True), sum(x.size for x in jax.tree.leaves(params))
    operator = curvature.hessian(loss_fn, params, batch, linearize=True)
    rng = np.random.default_rng(0)
    steps: list[list[float]] = []
    products: list[float] = []
    for _ in range(_ROUNDS.value):
        start = rng.standard_normal(size).astype(np.float32)
        state = krylov.start(start, 41, [start])
        steps.append([])
        for j in range(40):
            begin = time.perf_counter()
            product = krylov.multiply(operator, form, state.basis[j])
            between = time.perf_counter()
            state = krylov.store(state, product)
            steps[-1].append(time.perf_counter() - between)
            products.append(between - begin)
    source, target = np.ones((40, size), np.float32), np.ones((40, size), np.float32)
    copies = in_turn({"copy": lambda: np.copyto(target, source)})["copy"]
    bandwidth = 2 * source.nbytes / median(copies)
    medians = [statistics.median(step) for step in zip(*steps, strict=True)]
    rows = np.arange(1, 41)
    num_read = 2 * (np.minimum(rows, 2) + rows) * size * 4
    read = num_read / np.array(medians)
    share = sum(medians) / (sum(medians) + 40 * median(products))
    lines = [
        "## The Lanczos step outside the product (MLP, 2,000 images, 40 vectors)",
        "",
        "Each step reads the two newest vectors twice, then all that were built twice. Bandwidth counts these; "
        f"a copy (bytes read and written, 40 vectors) reaches {bandwidth / 1e9:.1f} GB/s on this machine.",
        "",
        "| vectors built | step, ms | read, GB/s | of the copy bandwidth |",
        "|---|---|---|---|",
    ]
    for j in (1, 5, 10, 20, 40):
        lines.append(
            f"| {j} | {1e3 * medians[j - 1]:.2f} | {read[j - 1] / 1e9:.1f} | {read[j - 1] / bandwidth:.2f} |"
        )
    total = num_read.sum() / sum(medians)
    yield [
        *lines,
        "",
        f"All 40 steps: {total / 1e9:.1f} GB/s, {total / bandwidth:.2f} of the copy bandwidth; {share:.2f} of "
        f"the time of an iteration (product {1e3 * median(products):.1f} ms).",
        "",
    ]


def in_turn(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Time several runs in turn, after one of each that compiles."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(3 * _ROUNDS.value):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - started)
    return times


def median(values: Sequence[float]) -> float:
    """The median, in seconds."""
    return statistics.median(values)


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    app.run(main)
