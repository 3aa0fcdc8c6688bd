"""Run the grid of a config, and build its table and picture from what has finished.

    python experiments/run.py CONFIG [--data_dir DIR] [--smoke] [--report_only]

CONFIG is a file of experiments/configs. Each run has a folder of experiments/results/CONFIG; one that holds a
summary is finished and skipped, so an interrupted grid continues where it stopped (the run that was cut off
starts anew). With --smoke, two epochs of the first seed, in a folder of their own.
"""

import importlib
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from experiments import provenance  # noqa: E402

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_SMOKE = flags.DEFINE_bool("smoke", False, "two epochs of the first seed")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "run nothing, build the table and the picture")

COLUMNS = (
    ("test_accuracy", "test %", "{:.2f}"),
    ("fgsm_accuracy", "FGSM %", "{:.2f}"),
    ("updates", "updates", "{:,.0f}"),
    ("final_batch_size", "final batch", "{:,.0f}"),
    ("eigenvalue", "top eigenvalue", "{:.2f}"),
)


def main(argv: Sequence[str]) -> None:
    """Run a config given by name."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) != 2 or not (ROOT / "configs" / f"{argv[1]}.py").exists():
        known = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
        sys.exit(f"experiments/run.py: name one of {', '.join(known)}, got {argv[1:]}.")
    config = importlib.import_module(f"experiments.configs.{argv[1]}")
    results = ROOT / "results" / (argv[1] + ("_smoke" if _SMOKE.value else ""))
    if not _REPORT_ONLY.value:
        for name, settings in config.RUNS.items():
            if not _SMOKE.value:
                run_one(results / name, settings, argv[1])
            elif settings.seed == 0:
                run_one(results / name, settings._replace(epochs=2), argv[1])
    report(results, argv[1], (config.__doc__ or "").strip().splitlines()[0])


def run_one(workdir: pathlib.Path, settings: Any, config_name: str) -> None:
    """Train one run of the grid, unless it has finished already."""
    from hessabs.training import set_up, train

    if (workdir / "summary.json").exists():
        return
    print(f"{workdir.relative_to(ROOT)}", flush=True)
    # The commit of the code that starts, not of one that lands while it runs.
    origin = {
        "command": f"python experiments/run.py {config_name}",
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
    }
    train(set_up(settings._replace(data_dir=_DATA_DIR.value)), workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    # Where the data lay says nothing about the result.
    summary = {**{key: value for key, value in summary.items() if key != "data_dir"}, **origin}
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def report(results: pathlib.Path, name: str, title: str) -> None:
    """Write README.md (mean and spread over seeds) and curves.png beside the runs that have finished."""
    from hessabs.training.curves import draw_curves
    from hessabs.training.metrics import read_lines

    groups: dict[str, list[dict[str, Any]]] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*/*/summary.json")):
        groups.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
        curves.setdefault(path.parent.parent.name, read_lines(path.parent / "metrics.jsonl"))
    order = sorted(groups, key=lambda label: (-groups[label][0]["updates"], label))
    lines = [f"# {title}", "", f"`python experiments/run.py {name}`; mean ± standard deviation over seeds.", ""]
    lines += table(order, groups)
    summaries = [summary for group in groups.values() for summary in group]
    for field in ("hardware", "commit"):
        lines += ["", f"{field}: " + ", ".join(sorted({summary[field] for summary in summaries}))]
    lines += [
        "",
        "versions: " + json.dumps(summaries[0]["versions"]),
        "",
        "![curves](curves.png)",
        "",
        f"Curves: seed {summaries[0]['seed']}.",
        "",
    ]
    (results / "README.md").write_text("\n".join(lines))
    draw_curves(results / "curves.png", {label: curves[label] for label in order})
    print("\n".join(lines))


def table(order: Sequence[str], groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lay groups of summaries out as a Markdown table."""
    lines = ["| run | seeds | " + " | ".join(title for _, title, _ in COLUMNS) + " |"]
    lines += ["|---" * (len(COLUMNS) + 2) + "|"]
    for label in order:
        cells = [label, ", ".join(str(summary["seed"]) for summary in groups[label])]
        for field, _, form in COLUMNS:
            values = [float(summary[field]) for summary in groups[label]]
            cell = form.format(statistics.mean(values))
            if len(values) > 1 and statistics.stdev(values) > 0:
                cell += " ± " + form.format(statistics.stdev(values))
            cells.append(cell)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    app.run(main)
