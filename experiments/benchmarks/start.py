"""From the start of a process to its first update: imports, data, compilation, without and with a cache.

    python experiments/benchmarks/start.py [--rounds 3]

ABSA on the digits and a character transformer, each in a process of its own: with an empty compilation cache
(``JAX_COMPILATION_CACHE_DIR``), and once more with what the first one left there. Medians. The first update is
done when the loop asks for the rate of the next one. Writes start.md beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs.training.look.results import markdown

_HERE = pathlib.Path(__file__).parent
CASES = {
    "MLP, digits, ABSA": {"dataset": "digits", "model": "mlp", "method": "absa", "epsilon": 0.05},
    "ResNet-20, digits, ABSA": {"dataset": "digits", "model": "resnet20", "method": "absa", "epsilon": 0.05},
    "char_transformer_small, AdamW": {
        "dataset": "stdlib",
        "model": "char_transformer_small",
        "method": "bl",
        "optimizer": "adamw",
        "batch_size": 16,
    },
}
_CHILD = """
import sys, time
started = float(sys.argv[1])
import json
from hessabs import compiling
from hessabs.training.assemble import assemble
from hessabs.training.loop import train
from hessabs.training.run import prepare
from hessabs.training.tasks.named import TaskSettings, make_named
imported = time.time()
compiling.seconds()  # from now on
settings = json.loads(sys.argv[2])
task = make_named(TaskSettings(dataset=settings["dataset"], model=settings["model"]))
loaded = time.time()
parts = assemble({**settings, "epochs": 1, "lr_decay_epochs": ()}, task)
run = prepare(parts.task, parts.optimizer, parts.rule, **parts.options)

def schedule(samples):
    if samples:
        compiled = compiling.seconds(everywhere=True)
        found = [imported - started, loaded - imported, time.time() - loaded, compiled]
        print(json.dumps(found), flush=True)
        sys.exit()
    return run.schedule(samples)

train(run._replace(schedule=schedule))
"""


def start(settings: dict[str, Any], cache: str) -> list[float]:
    """Start a process; returns seconds of imports, of data, then to the first update, of compiling."""
    command = [sys.executable, "-c", _CHILD, str(time.time()), json.dumps(settings)]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(_HERE.parents[1])}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Start processes and write the page."""
    parser = argparse.ArgumentParser(description="From the start of a process to its first update.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = [["run", "cache", "imports, s", "data, s", "then to the first update, s", "of it compiling, s"]]
    for name, settings in CASES.items():
        found: dict[str, list[list[float]]] = {"empty": [], "filled": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                for seconds in found.values():
                    seconds.append(start(settings, cache))
        for which, seconds in found.items():
            rows.append(
                [name, which, *(f"{statistics.median(values):.1f}" for values in zip(*seconds, strict=True))]
            )
    lines = [
        "# From the start of a process to its first update",
        "",
        f"`python experiments/benchmarks/start.py --rounds {rounds}`; medians. The cache is JAX's own, in the "
        "folder that `JAX_COMPILATION_CACHE_DIR` names.",
        "",
        *markdown(rows),
        "",
        f"commit {provenance.commit()[:12]}; {provenance.hardware()}",
        "",
    ]
    (_HERE / "start.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
