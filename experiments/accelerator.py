"""What the library does on one accelerator: correctness, speed and precision, in at most eight minutes.

    python experiments/accelerator.py [--seconds 480] [--sections products,pgd] [--networks mlp]
        [--data_dir DIR] [--out DIR]

One command, no network. Each section stops at its part of the time and writes what it has: results.json and
README.md in experiments/results/accelerator/DEVICE, of which a section that is measured again replaces its own
part. A section that fails says so there, and the next begins. Without ``--data_dir`` (Fashion-MNIST as TFDS
prepares it) images are random, and runs train on the embedded digits. On an accelerator compilation takes most
of the time, so a third of it goes into compiling everything ahead, side by side, into a cache (JAX's, or a
folder that is thrown away); what is timed is timed alone. Matrix products are the vendor's unless XLA_FLAGS
says something: XLA takes minutes to choose among its own. On the CPU the same sections run with smaller sizes,
which proves the script and no more.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import provenance
from hessabs import attacks, curvature, models, trees
from hessabs.data import Position, as_source
from hessabs.training import Task, assemble, fit, tasks
from hessabs.training.look.results import markdown
from hessabs.training.loop_state import start
from hessabs.training.run import prepare
from hessabs.training.sizes import make_sizes

TESTS = (
    "tests/curvature/test_power.py",
    "tests/curvature/test_eigsh.py",
    "tests/curvature/test_operators.py",
    "tests/attacks/test_gradient.py",
    "tests/transforms/test_adaptive.py",
    "tests/training/test_step.py",
    "tests/training/saving/test_resume.py",
)
"""The tests that are run on the device: solvers, attacks, transformations, an update, resuming to the bits."""

_Row = dict[str, Any]


class Bench(NamedTuple):
    """What a section is given."""

    is_cpu: bool
    data_dir: str | None
    end: float  # of this section, in ``time.monotonic()``
    networks: tuple[str, ...] = ("mlp", "c1_small", "resnet20")

    def left(self) -> float:
        """Return the seconds that this section has left."""
        return self.end - time.monotonic()


def median_seconds(
    bench: Bench, functions: Mapping[str, Callable[[], Any]], rounds: int = 15
) -> dict[str, float]:
    """Time functions in turn, medians after one call of each that compiles; fewer rounds where time ends."""
    for function in functions.values():
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        if number and bench.left() < 0:
            break
        for name, function in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def problem(name: str, size: int, dtype: Any = jnp.float32) -> tuple[Any, Any, Any]:
    """Make the loss, the params and a random batch of a network after 50 steps of training."""
    shape = (28, 28, 1) if name in ("mlp", "c1_small") else (32, 32, 3)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(size=(size, *shape)), dtype),
        "label": jnp.asarray(rng.integers(10, size=size), jnp.int32),
    }
    module = models.create(name, 10)
    variables = dict(module.init(jax.random.key(0), batch["image"][:1].astype(jnp.float32)))
    params = variables.pop("params")

    def loss_of(statistics_: Any, params: Any, batch: Any) -> jax.Array:
        logits: Any = module.apply({"params": params, **statistics_}, batch["image"], train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return jnp.mean(losses)

    loss_fn = jax.tree_util.Partial(loss_of, variables)
    wide = {**batch, "image": batch["image"].astype(jnp.float32)}
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.05 * g, p, jax.grad(loss_fn)(p, wide)))
    for _ in range(50):
        params = step(params)
    return loss_fn, jax.tree.map(lambda p: p.astype(dtype), params), batch


def run_tests(bench: Bench) -> Iterator[_Row]:
    """Run the tests of the device side by side, at full float32 precision, compiled as users compile."""
    environment = {**os.environ, "JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": ""}
    # All of them share the device: none may take all of its memory.
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with contextlib.ExitStack() as stack:
        running = {}
        for path in TESTS:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            running[path] = (
                log,
                subprocess.Popen([*base, path], cwd=provenance.ROOT, env=environment, stdout=log, stderr=log),
            )
        for path, (log, process) in running.items():
            try:
                process.wait(timeout=max(bench.left(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                yield {"file": path, "result": "stopped: its time was over"}
                continue
            log.seek(0)
            lines = log.read().strip().splitlines() or ["no output"]
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            yield {"file": path, "result": lines[-1].strip("= "), "failed": failed}


def products(bench: Bench) -> Iterator[_Row]:
    """A Hessian product and the top five pairs: plain ``jax.jvp`` of ``jax.grad``, and ours."""
    for name in bench.networks:
        size = 128 if name == "resnet20" else 512
        if bench.left() > 0:
            yield _products_of(bench, name, size // 8 if bench.is_cpu else size)


def _products_of(bench: Bench, name: str, size: int) -> _Row:
    loss_fn, params, batch = problem(name, size)
    vector = trees.normal_like(jax.random.key(1), params)
    gradient = jax.jit(jax.grad(loss_fn))
    plain = jax.jit(lambda p, b, v: jax.jvp(lambda q: jax.grad(loss_fn)(q, b), (p,), (v,))[1])
    full = jax.default_matmul_precision("highest")(
        jax.jit(lambda p, b, v: jax.jvp(lambda q: jax.grad(loss_fn)(q, b), (p,), (v,))[1])
    )
    recomputed = curvature.hessian(loss_fn, params, batch)
    linearised = curvature.hessian(loss_fn, params, batch, linearize=True)
    product = jax.jit(lambda operator, v: operator(v))
    functions = {
        "gradient": lambda: gradient(params, batch),
        "plain jvp of grad": lambda: plain(params, batch, vector),
        "plain at full precision": lambda: full(params, batch, vector),
        "ours, recomputed": lambda: product(recomputed, vector),
        "ours, linearised": lambda: product(linearised, vector),
    }
    row: _Row = {"network": name, "batch": size}
    row |= {f"{what}, ms": 1e3 * value for what, value in median_seconds(bench, functions).items()}
    row["plain, apart from full precision"] = _apart(full(params, batch, vector), plain(params, batch, vector))
    row["linearised, apart from it"] = _apart(full(params, batch, vector), linearised(vector))
    if bench.left() > 0:
        pairs = median_seconds(bench, {"": lambda: curvature.eigsh(linearised, vector, 5, rtol=1e-3)}, 3)
        found = curvature.eigsh(linearised, vector, 5, rtol=1e-3)
        row |= {"top 5, ms": 1e3 * pairs[""], "largest residual": float(jnp.max(found.residuals))}
    return {**row, **(_curvlinops(bench, size) if name == "mlp" else {})}


def _curvlinops(bench: Bench, size: int) -> _Row:
    try:
        import torch
        from curvlinops import HessianLinearOperator
    except ImportError:
        return {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [p.shape for p in jax.tree.leaves(problem("mlp", 2)[1]) if p.ndim == 2]
    layers: list[Any] = [torch.nn.Flatten()]
    for number, shape in enumerate(sizes):
        layers += [torch.nn.Linear(*shape)] + ([torch.nn.ReLU()] if number + 1 < len(sizes) else [])
    model = torch.nn.Sequential(*layers).to(device)
    batch = [(torch.rand(size, 1, 28, 28, device=device), torch.randint(10, (size,), device=device))]
    params = [p for p in model.parameters() if p.requires_grad]
    operator = HessianLinearOperator(model, torch.nn.CrossEntropyLoss(), params, batch)
    vector = torch.rand(operator.shape[1], device=device)

    def product() -> Any:
        _ = operator @ vector
        if device.type == "cuda":
            torch.cuda.synchronize()
        return np.zeros(())

    return {"curvlinops, ms": 1e3 * median_seconds(bench, {"curvlinops": product})["curvlinops"]}


def _apart(a: Any, b: Any) -> float:
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    return float(difference / optax.tree.norm(a))


def precision(bench: Bench) -> Iterator[_Row]:
    """The top eigenvalue in float32, TF32 and bfloat16 products, and with bfloat16 params and images."""
    for name in bench.networks:
        found: dict[str, float] = {}
        for what in ("highest", "tensorfloat32", "bfloat16", "bfloat16 params"):
            if bench.left() < 0 and len(found) > 1:
                break
            dtype = jnp.bfloat16 if what == "bfloat16 params" else jnp.float32
            loss_fn, params, batch = problem(name, 32 if bench.is_cpu else 256, dtype)
            with jax.default_matmul_precision("highest" if what == "bfloat16 params" else what):
                operator = curvature.hessian(loss_fn, params, batch)
                start_ = trees.normal_like(jax.random.key(1), params)
                found[what] = float(curvature.eigsh(operator, start_, 1, rtol=1e-3).eigenvalues[0])
        if "highest" in found:
            row: _Row = {"network": name, "float32": found.pop("highest")}
            yield {
                **row,
                **{f"{what}, off by %": 100 * abs(v / row["float32"] - 1) for what, v in found.items()},
            }


def pgd(bench: Bench) -> Iterator[_Row]:
    """PGD with 20 steps, L-infinity, every image attacked to the end."""
    for name in bench.networks:
        if bench.left() > 0:
            yield _pgd_of(bench, name, 64 if bench.is_cpu else 1000)


def _pgd_of(bench: Bench, name: str, size: int) -> _Row:
    loss_fn, params, batch = problem(name, size)
    attack, key = attacks.pgd(0.02, steps=20, early_exit=False), jax.random.key(0)
    seconds = median_seconds(bench, {"": lambda: attack(loss_fn, params, batch, key)}, 5)[""]
    return {"network": name, "images": size, "ms": 1e3 * seconds, "images/s": size / seconds}


def _random_task(name: str, count: int) -> Task:
    shape = (28, 28, 1) if name in ("mlp", "c1_small") else (32, 32, 3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    split: dict[str, np.ndarray] = {"image": images, "label": rng.integers(0, 10, count).astype(np.int32)}
    small = {key: array[:64] for key, array in split.items()}
    return tasks.linen(models.create(name, 10), (as_source(split), as_source(small)), num_classes=10)


def throughput(bench: Bench) -> Iterator[_Row]:
    """Images per second of whole updates by batch size, and the share of the time that reading takes."""
    for name in bench.networks:
        task = _random_task(name, 1024 if bench.is_cpu else 32_768)
        for size in (128, 512) if bench.is_cpu else (128, 512, 2048, 8192, 16384):
            if bench.left() > 0:
                yield {"network": name, "batch": size, **_throughput_of(bench, task, size)}


def _throughput_of(bench: Bench, task: Task, size: int) -> _Row:
    parts = assemble({"method": "bl", "batch_size": size, "epochs": 1000, "micro_batch": "auto"}, task)
    run = prepare(parts.task, parts.optimizer, parts.rule, **parts.options)
    state, wanted = start(run).train, size // run.micro_batch_size
    functions, one = run.functions, np.float32(1)
    reading, whole = [], []
    read, position = run.read_from(Position(0, 0)), Position(0, 0)
    with make_sizes(run, state) as sizes:
        for _ in range(12 if bench.is_cpu else 60):
            spent, begun = 0.0, time.perf_counter()
            totals, done = functions.begin(state) if wanted > 1 else None, 0
            while done < wanted:
                count = sizes.choose(min(wanted - done, run.epoch_micro_batches - position.index))
                at = time.perf_counter()
                batch, position = read(count)
                jax.block_until_ready(batch)
                spent += time.perf_counter() - at
                if totals is None:
                    state = functions.whole(state, batch, None, one)
                else:
                    totals = functions.add(state, totals, batch, None, done)
                done += count
            state = jax.block_until_ready(state if totals is None else functions.finish(state, totals, one))
            reading.append(spent)
            whole.append(time.perf_counter() - begun)
            if bench.left() < 0 and len(whole) > 2:
                break
    reading, whole = reading[2:], whole[2:]  # the first ones compile
    return {
        "images/s": size / statistics.median(whole),
        "reading, % of the time": 100 * sum(reading) / sum(whole),
    }


def training(bench: Bench) -> Iterator[_Row]:
    """BL, ABS and ABSA: seconds and updates until each has the accuracy that all of them reach."""
    for model in (name for name in bench.networks if name != "resnet20"):
        dataset: _Row = {"dataset": "fashion_mnist", "data_dir": bench.data_dir} if bench.data_dir else {}
        if not dataset and model != "mlp":
            continue  # the digits are too small for the pools of the network
        epochs = 2 if bench.is_cpu else 20
        records: dict[str, list[_Row]] = {}
        for method in ("bl", "abs", "absa"):
            if bench.left() < 0:
                break
            largest = 512 if bench.is_cpu else 16_384
            own = {} if method == "bl" else {"max_batch_size": largest, "patience": 2}
            decays = tuple(sorted({max(1, round(epochs * part)) for part in (0.4, 0.7, 0.9)} - {epochs}))
            settings = {**dataset, "model": model, "method": method, "epochs": epochs, **own}
            settings |= {"lr_decay_epochs": decays, "micro_batch": "auto"}
            parts = assemble(settings | ({"epsilon": 0.02} if method == "absa" else {}))
            try:
                records[method] = fit(parts.task, parts.optimizer, parts.rule, **parts.options).records
            except FloatingPointError as error:
                yield {"network": model, "method": method, "diverged": str(error)}
        if not records:
            return
        target = min(max(line["test_accuracy"] for line in lines) for lines in records.values())
        for method, lines in records.items():
            at = next(i for i, line in enumerate(lines) if line["test_accuracy"] >= target)
            spent = {
                key: sum(line[key] for line in lines[: at + 1])
                for key in lines[0]
                if key.startswith("seconds_")
            }
            yield {
                "network": model,
                "method": method,
                "accuracy of all, %": target,
                "seconds to it": sum(spent.values()),
                "compiling, s": spent["seconds_compile"],
                "updates to it": lines[at]["updates"],
                "best accuracy, %": max(line["test_accuracy"] for line in lines),
            }


SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[_Row]], float]] = {
    "tests": (run_tests, 0.3),
    "products": (products, 0.15),
    "precision": (precision, 0.1),
    "pgd": (pgd, 0.05),
    "throughput": (throughput, 0.2),
    "training": (training, 0.2),
}
"""What is measured, and the part of the time that it may take."""

AHEAD = 0.35  # of the time, for compiling on an accelerator
_IS_AHEAD = "HESSABS_COMPILES_AHEAD"  # in the environment of a process that does


def compile_ahead(
    sections: list[str], networks: tuple[str, ...], data_dir: str | None, cache: str, seconds: float
) -> None:
    """Run sections for each network in a process of its own, side by side, for the programs in the cache."""
    environment = {**os.environ, _IS_AHEAD: "1", "JAX_COMPILATION_CACHE_DIR": cache}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as out:
        running = []
        for section in sections:
            for network in networks:
                command = [sys.executable, __file__, f"--seconds={seconds}", f"--sections={section}"]
                command += [f"--networks={network}", f"--out={out}/{section}_{network}"]
                command += [f"--data_dir={data_dir}"] if data_dir else []
                running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        for process in running:
            try:
                process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> None:
    """Measure the sections and write as they go."""
    parser = argparse.ArgumentParser(description="What the library does on one accelerator.")
    parser.add_argument("--seconds", type=float, default=480.0, help="all the time there is")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, comma-separated")
    parser.add_argument("--networks", default=",".join(Bench._field_defaults["networks"]), help="likewise")
    parser.add_argument("--data_dir", help="folder with Fashion-MNIST as TFDS prepares it")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device
    device = jax.devices()[0]
    kind = re.sub(r"\W+", "_", device.device_kind.lower()).strip("_")
    out = options.out or provenance.ROOT / "experiments" / "results" / "accelerator" / kind
    out.mkdir(parents=True, exist_ok=True)
    chosen = options.sections.split(",")
    for name in chosen:
        if name not in SECTIONS:
            parser.error(f"--sections must name some of {', '.join(SECTIONS)}, got {name}.")
    end, networks = time.monotonic() + options.seconds, tuple(options.networks.split(","))
    with contextlib.ExitStack() as stack:
        if device.platform != "cpu" and _IS_AHEAD not in os.environ:
            cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
            cache = cache or stack.enter_context(tempfile.TemporaryDirectory())
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            compiled = [name for name in chosen if name != "tests"]
            compile_ahead(compiled, networks, options.data_dir, cache, AHEAD * options.seconds)
        measure(chosen, networks, options, end, out)


def measure(
    chosen: list[str], networks: tuple[str, ...], options: argparse.Namespace, end: float, out: pathlib.Path
) -> None:
    """Measure the chosen sections until the end, each in its part of the time, and write as they go."""
    device, path = jax.devices()[0], out / "results.json"
    command = [f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}", "python experiments/accelerator.py"]
    command += [f"--seconds {options.seconds:g} --sections {','.join(chosen)} --networks {','.join(networks)}"]
    command += ["--data_dir DIR"] if options.data_dir else []
    results = json.loads(path.read_text()) if path.exists() else {}
    for number, name in enumerate(chosen):
        function, _ = SECTIONS[name]
        rest = sum(SECTIONS[other][1] for other in chosen[number:])
        share = (end - time.monotonic()) * SECTIONS[name][1] / rest
        bench = Bench(device.platform == "cpu", options.data_dir, time.monotonic() + share, networks)
        begun, rows, failed = time.monotonic(), [], None
        try:
            for row in function(bench):
                rows.append(row)
                print(name, row, flush=True)
        except Exception as error:  # whatever it is, the other sections are still worth having
            failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{name} failed: {failed}", file=sys.stderr, flush=True)
        results[name] = {
            "what": (function.__doc__ or name).splitlines()[0],
            "rows": rows,
            "failed": failed,
            "seconds": time.monotonic() - begun,
            "commit": provenance.commit(),
            "command": " ".join(command),
            "hardware": provenance.hardware(),
            "jax": jax.__version__,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        (out / "README.md").write_text(page(device.device_kind, results))
        if device.platform == "cpu":
            jax.clear_caches()


def page(kind: str, results: Mapping[str, Any]) -> str:
    """Draw the page of all results."""
    lines = [f"# On {kind}", ""]
    for name in SECTIONS:
        if name not in results:
            continue
        found = results[name]
        lines += [f"## {name.capitalize()}", "", found["what"], ""]
        columns = list(dict.fromkeys(key for row in found["rows"] for key in row))
        if columns:
            rows = [[_cell(row.get(key, "")) for key in columns] for row in found["rows"]]
            lines += [*markdown([columns, *rows]), ""]
        if found["failed"]:
            lines += [f"It failed: {found['failed']}", ""]
        lines += [
            f"`{found['command']}`, {found['seconds']:.0f} s; {found['hardware']}; jax {found['jax']}; "
            f"commit {found['commit']}",
            "",
        ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    main()
