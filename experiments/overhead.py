"""The time table of the slides, measured here: what a step, its communication and a Hessian measurement take.

    python experiments/overhead.py --data_dir DIR

Like the slides it assumes that a larger batch runs on more devices, so that an update takes as long as
one of 128 images; then time is counted in updates. Communication is an all-reduce of the gradient between
two virtual devices of this processor, which shares their memory: no network. Updates and measurements are
those of the runs of results/fashion_mnist_mlp. Writes results/overhead.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grid, provenance, table, training
from hessabs.batch_size import training_seconds
from hessabs.data import Position
from hessabs.training.look.plan import median_seconds
from hessabs.training.loop_state import start
from hessabs.training.run import prepare

OUT = grid.RESULTS / "overhead"
TIMES = "times.json"
_REPEATS = 50
_median = functools.partial(median_seconds, repeats=_REPEATS)
_ROWS = (("bl_128", False), ("gg_16000", False), ("abs_16000", False), ("absa_16000", True))


def main() -> None:
    """Measure, and write the times and the page."""
    parser = argparse.ArgumentParser(description="The time table of the slides, measured here.")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    jax.config.update("jax_num_cpu_devices", 2)
    data_dir = parser.parse_args().data_dir
    times = measure({"dataset": "fashion_mnist", "method": "absa", "epsilon": 0.02}, data_dir)
    record = {name: float(f"{seconds:.3g}") for name, seconds in times.items()}
    OUT.mkdir(parents=True, exist_ok=True)
    source = {"hardware": provenance.hardware(), "commit": provenance.commit()}
    (OUT / TIMES).write_text(json.dumps({**record, **source}, indent=2) + "\n")
    write()


def write() -> None:
    """Write the page of the times that were measured and of the runs as they are now."""
    record = json.loads((OUT / TIMES).read_text())
    (OUT / "README.md").write_text(describe(record, table.read(grid.RESULTS / "fashion_mnist_mlp")))


def describe(record: Mapping[str, Any], runs: Mapping[str, table.Run]) -> str:
    """Return the text of README.md."""
    lines = [
        "# Time of an update, of its communication and of a Hessian measurement",
        "",
        "`python experiments/overhead.py`; Fashion-MNIST, MLP with 269,322 parameters, updates of 128 images,",
        f"the Hessian on 512 images. Medians of {_REPEATS} repetitions, seconds:",
        "",
        "| T_comp | T_comp, a fifth adversarial | T_comm | T_Hess | T_Hess / T_comp |",
        "|---|---|---|---|---|",
        f"| {record['compute']:.2e} | {record['adversarial']:.2e} | {record['communicate']:.2e} "
        f"| {record['hessian']:.2e} | {record['hessian'] / record['compute']:.0f} |",
        "",
        "As in the slides, `updates * (T_comp + T_comm) + measurements * T_Hess`, an update taking as long as",
        "one of 128 images however large it is; ABSA is charged an adversarial step for every update:",
        "",
        "| run | updates | measurements | seconds | against BL | of which the Hessian |",
        "|---|---|---|---|---|---|",
        *totals(record, runs),
        "",
        f"hardware: {record['hardware']}",
        "",
        f"commit of the times: {record['commit']}",
    ]
    return "\n".join([*lines, ""])


def measure(settings: Mapping[str, Any], data_dir: str | None = None) -> dict[str, float]:
    """Measure the seconds of a run: of an update, an adversarial one, its communication, and a measurement."""
    parts = training.parts(settings, data_dir)
    run = prepare(parts.task, parts.optimizer, parts.rule, **parts.options)
    batch, _ = run.read_from(Position(0, 0))(1)
    state = start(run)
    eigenvector, train_state = state.eigenvector, state.train

    def update() -> Any:
        nonlocal train_state
        train_state = run.functions.whole(train_state, batch, None, np.float32(1.0))
        return train_state

    def adversarial() -> Any:
        nonlocal train_state
        train_state = run.functions.whole(train_state, batch, np.float32(0.2), np.float32(1.0))
        return train_state

    return {
        "compute": _median(update),
        "adversarial": _median(adversarial),
        "communicate": _all_reduce(train_state.params),
        "hessian": _median(lambda: run.measure(train_state.params, train_state.model_state, eigenvector)),
    }


def totals(times: Mapping[str, float], runs: Mapping[str, table.Run]) -> list[str]:
    """Write the rows of the runs that have finished."""
    rows, slowest = [], None
    for name, is_adversarial in _ROWS:
        if f"{name}/seed0" not in runs:
            continue
        run = runs[f"{name}/seed0"]
        updates = run.summary["updates"]
        count = sum(record["eigenvalue"] is not None for record in run.records)
        step = times["adversarial" if is_adversarial else "compute"]
        seconds = training_seconds(
            updates, count, compute=step, communicate=times["communicate"], hessian=times["hessian"]
        )
        slowest = slowest or seconds
        gain, share = slowest / seconds, 100 * count * times["hessian"] / seconds
        rows.append(f"| {name} | {updates:,} | {count} | {seconds:.1f} | {gain:.2f} x | {share:.1f} % |")
    return rows


def _all_reduce(gradient: Any) -> float:
    devices = np.array(jax.devices()[:2])
    mesh = jax.sharding.Mesh(devices, ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    parts = jax.tree.map(lambda x: jax.device_put(jnp.stack([x] * len(devices)), split), gradient)
    reduce = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(x, axis=0), tree), out_shardings=whole)
    return _median(lambda: reduce(parts))


if __name__ == "__main__":
    main()
