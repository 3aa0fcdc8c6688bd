"""Speed of the curvature tools, and the peers on the same weights and batch.

    python experiments/benchmarks/curvature.py --images DIR [--rounds 7]

DIR holds train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz (Fashion-MNIST). Writes curvature.md beside
this file. Everything is timed in turn in one process, medians of the rounds, after one run that compiles. Needs
the peers: torch (CPU), pyhessian, hessian-eigenthings, curvlinops-for-pytorch, scipy, matfree, laplax.
"""

import functools
import gzip
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks import curvature_peers as peers
from hessabs import curvature, models, trees
from hessabs.curvature import krylov

_IMAGES = flags.DEFINE_string("images", None, "folder of Fashion-MNIST's idx archives", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "timed runs of each")
_RTOL = 1e-3


def main(argv: Sequence[str]) -> None:
    """Measure and write the tables."""
    del argv
    data = load(pathlib.Path(_IMAGES.value))
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    lines = [
        "# Speed of the curvature tools",
        "",
        f"`python experiments/benchmarks/curvature.py --rounds {_ROUNDS.value}`; {provenance.hardware()}; "
        f"jax {jax.__version__}; {versions}; commit {provenance.commit()}",
        "",
    ]
    for section in (product_costs, data_set_product, lanczos_step, eigenpairs):
        for part in section(data):
            lines += part
            print("\n".join(part), flush=True)
            (pathlib.Path(__file__).parent / "curvature.md").write_text("\n".join(lines).rstrip() + "\n")


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
    kept = sum(x.nbytes for x in linearised.args[1].residuals) / 1e6
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
    flat, shape = trees.ravel(params)
    operator = curvature.hessian(loss_fn, params, batch, linearize=True)
    rng = np.random.default_rng(0)
    steps: list[list[float]] = []
    products: list[float] = []
    for _ in range(_ROUNDS.value):
        state = krylov.start(rng.standard_normal((1, flat.size)).astype(np.float32), 41, np)
        steps.append([])
        for j in range(40):
            begin = time.perf_counter()
            product = np.asarray(krylov.multiply(operator, shape, state.basis[j]))
            between = time.perf_counter()
            state = krylov.store(state, product)
            steps[-1].append(time.perf_counter() - between)
            products.append(between - begin)
    source, target = np.ones((40, flat.size), np.float32), np.ones((40, flat.size), np.float32)
    copies = in_turn({"copy": lambda: np.copyto(target, source)})["copy"]
    bandwidth = 2 * source.nbytes / median(copies)
    medians = [statistics.median(step) for step in zip(*steps, strict=True)]
    rows = np.arange(1, 41)
    num_read = 2 * (np.minimum(rows, 2) + rows) * flat.size * 4
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


def eigenpairs(data: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Top eigenpairs against the peers, on the same weights and batch of 512 images."""
    yield ["## Top eigenpairs to a relative residual of 1e-3 (512 images)", ""]
    for name in ("mlp", "cnn"):
        loss_fn, params, batch = problem(name, data, 512)
        judge = jax.jit(curvature.hessian(loss_fn, params, batch))
        contest = peers.Contest(name, loss_fn, params, batch)
        gradient = functools.partial(jax.jit(jax.grad(loss_fn)), params, batch)
        pair = in_turn({"jax": gradient, "torch": contest.torch_gradient})
        yield [
            f"**{name}**, {sum(x.size for x in jax.tree.leaves(params)):,} params. A gradient: XLA "
            f"{1e3 * median(pair['jax']):.1f} ms, PyTorch {1e3 * median(pair['torch']):.1f} ms, ratio "
            f"{median(pair['jax']) / median(pair['torch']):.2f}.",
            "",
            "| top | tool | seconds | of ours | products | largest residual | reached | compile, s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for k in (1, 5, 20):
            yield contest_lines(contest, k, loss_fn, params, batch, judge)
        yield [""]


def contest_lines(
    contest: peers.Contest, k: int, loss_fn: Any, params: Any, batch: Any, judge: Callable[[Any], Any]
) -> list[str]:
    """Run every tool on one problem, in turn."""
    v0 = trees.normal_like(jax.random.key(0), params)
    products = {}

    def ours() -> tuple[np.ndarray, Any]:
        operator = curvature.hessian(loss_fn, params, batch, linearize=True)
        result = curvature.eigsh(operator, v0, k, rtol=_RTOL)
        products["hessabs"] = result.num_matvecs
        return result.eigenvalues, result.eigenvectors

    started = time.perf_counter()
    ours()
    first = {"hessabs": time.perf_counter() - started}
    tools = {"hessabs": ours, **contest.tools(k, products["hessabs"])}
    for tool, run in tools.items():
        if tool.startswith(("matfree", "laplax")):  # PyTorch compiles nothing
            started = time.perf_counter()
            run()
            first[tool] = time.perf_counter() - started
    times: dict[str, list[float]] = {tool: [] for tool in tools}
    answers = {}
    for _ in range(_ROUNDS.value):
        for tool, run in tools.items():
            if times[tool] and times[tool][0] > 2:
                continue  # slow ones once
            time.sleep(0.05)  # the thread pool of the one before goes to sleep
            started = time.perf_counter()
            answers[tool] = run()
            times[tool].append(time.perf_counter() - started)
    rows = []
    for tool, (values, vectors) in answers.items():
        worst = max(residual(judge, values[i], jax.tree.map(lambda x, i=i: x[i], vectors)) for i in range(k))
        seconds = median(times[tool])
        note = f"{seconds:.3f}" + (" (one run)" if len(times[tool]) == 1 < _ROUNDS.value else "")
        rows.append(
            f"| {k} | {tool} | {note} | {seconds / median(times['hessabs']):.1f} | {products.get(tool, '')} "
            f"| {worst:.1e} | {'yes' if worst <= _RTOL * 1.01 else 'no'} "
            f"| {max(first.get(tool, 0) - seconds, 0):.1f} |"
        )
    return rows


def residual(judge: Callable[[Any], Any], value: float, vector: Any) -> float:
    """The relative residual of one pair, in float64 but for the product."""
    flat = np.asarray(trees.ravel(vector)[0], np.float64)
    product = np.asarray(trees.ravel(judge(vector))[0], np.float64)
    return float(np.linalg.norm(product - value * flat) / np.linalg.norm(flat) / abs(value))


def problem(name: str, data: dict[str, np.ndarray], size: int) -> tuple[Any, Any, Any]:
    """A network after 200 steps of training, and a batch of images."""
    if name == "resnet20":
        rng = np.random.default_rng(0)
        batch = {
            "image": jnp.asarray(rng.uniform(size=(size, 32, 32, 3)), jnp.float32),
            "label": jnp.asarray(rng.integers(10, size=size), jnp.int32),
        }
        module = models.create("resnet20", 10)
        variables = module.init(jax.random.key(0), batch["image"][:1])

        def loss_of(statistics: Any, params: Any, batch: Any) -> jax.Array:
            logits: Any = module.apply({"params": params, **statistics}, batch["image"], train=False)
            return peers.cross_entropy(logits, batch["label"])

        params = variables.pop("params")
        return jax.tree_util.Partial(loss_of, variables), params, batch
    loss_fn = peers.LOSSES[name]
    params = peers.init(name, jax.random.key(0))
    step = jax.jit(lambda p, b: jax.tree.map(lambda x, g: x - 0.1 * g, p, jax.grad(loss_fn)(p, b)))
    for i in range(200):
        params = step(params, {n: jnp.asarray(x[i * 128 : (i + 1) * 128]) for n, x in data.items()})
    return loss_fn, params, {n: jnp.asarray(x[-size:]) for n, x in data.items()}


def load(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Read Fashion-MNIST's idx archives: images float32 in [0, 1] of shape (n, 28, 28, 1), labels int32."""
    images = gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    image = np.frombuffer(images, np.uint8).reshape(-1, 28, 28, 1)
    return {"image": image.astype(np.float32) / 255, "label": np.frombuffer(labels, np.uint8).astype(np.int32)}


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
