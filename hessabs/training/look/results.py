"""Finished runs of a folder, their mean and spread over seeds, and tables of them."""

import functools
import json
import math
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hessabs.training import fields, files
from hessabs.training.assemble import SETTINGS

_SEED = re.compile(r"seed\d+")


class Finished(NamedTuple):
    """A run that has finished, or that diverged."""

    label: str  # its folder below the root, without a last part seedN
    commit: str  # of the code that made it; "" if that was not recorded
    summary: Mapping[str, Any]  # of one that diverged its settings, and what was not finite
    folder: pathlib.Path


class Column(NamedTuple):
    """A number of a summary and how it is shown."""

    field: str
    title: str
    form: str


COLUMNS = (
    Column("validation_accuracy", "validation %", "{:.2f}"),
    Column("validation_pgd_accuracy", "validation PGD %", "{:.2f}"),
    Column("test_accuracy", "test %", "{:.2f}"),
    Column("ema_validation_accuracy", "validation %, EMA", "{:.2f}"),
    Column("ema_test_accuracy", "test %, EMA", "{:.2f}"),
    Column("validation_loss", "validation loss", "{:.4f}"),
    Column("test_loss", "test loss", "{:.4f}"),
    Column("ema_test_loss", "test loss, EMA", "{:.4f}"),
    Column("test_token_accuracy", "test token %", "{:.2f}"),
    Column("fgsm_accuracy", "FGSM %", "{:.2f}"),
    Column("pgd_accuracy", "PGD %", "{:.2f}"),
    Column("updates", "updates", "{:,.0f}"),
    Column("final_batch_size", "final batch", "{:,.0f}"),
    Column("eigenvalue", "top eigenvalue", "{:.3g}"),
    Column("seconds_compile", "seconds compiling", "{:.0f}"),
    Column("seconds", "seconds", "{:.0f}"),
)
"""What a table shows of a run: losses (nats) of one without an accuracy, EMA where its params were averaged;
seconds are all of them, those of compiling included.
"""

_SUMMARY = (
    *(c for c in COLUMNS[2:-2] if not c.field.startswith(("validation", "ema_validation"))),
    Column("seconds", "seconds", "{:.1f}"),
    Column("seconds_compile", "compiling", "{:.1f}"),
)


class Group(NamedTuple):
    """The runs of one label, commit and settings, one for each seed."""

    name: str  # the label, and where there are several of it the commit, and the settings that differ
    runs: list[Finished]

    def values(self, field: str) -> list[float]:
        """List the numbers of a field that the runs have; what is not finite counts as missing, and so does
        the loss of a run with an accuracy.
        """
        is_loss = field.endswith("_loss")
        runs = [run for run in self.runs if not is_loss or "test_accuracy" not in run.summary]
        numbers = [run.summary.get(field) for run in runs]
        return [float(x) for x in numbers if isinstance(x, (int, float)) and math.isfinite(x)]

    @property
    def seeds(self) -> list[int]:
        return [run.summary.get("seed", 0) for run in self.runs]

    @property
    def diverged(self) -> int:
        return sum("diverged" in run.summary for run in self.runs)


def find(root: pathlib.Path, say: Callable[[str], None] = files.say) -> list[Finished]:
    """Find every run in a folder and below it that has finished or diverged, by path; what cannot be read is
    left out and said.
    """
    runs = []
    diverged = [path for path in root.rglob(files.DIVERGED) if not (path.parent / files.SUMMARY).exists()]
    for path in sorted([*root.rglob(files.SUMMARY), *diverged]):
        try:
            summary = _read_object(path)
            if path.name == files.DIVERGED:
                summary = {**_read_object(path.parent / files.CONFIG)["config"], **summary}
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"{path.parent} is left out, for its {path.name} cannot be read: {error}")
            continue
        folder = path.parent.relative_to(root)
        folder = folder.parent if _SEED.fullmatch(folder.name) else folder
        label = "/".join(folder.parts) or root.absolute().name
        runs.append(Finished(label, str(summary.get("commit", "")), summary, path.parent))
    for path in sorted(root.rglob(files.CONFIG)):
        if not any((path.parent / name).exists() for name in (files.SUMMARY, files.DIVERGED)):
            say(f"{path.parent} is left out, for its run has not finished.")
    if not runs:
        raise FileNotFoundError(f"{root} holds no finished run ({files.SUMMARY}): train one there first.")
    return runs


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"it must hold an object, got {type(content).__name__}")
    return content


def group(runs: Sequence[Finished]) -> list[Group]:
    """Put the runs of one label together; those of different commits or settings are never averaged.

    Example:
      >>> def run(seed, commit):
      ...     return Finished("bl", commit, {"seed": seed, "updates": 10 + seed}, pathlib.Path())
      >>> groups = group([run(0, "1" * 40), run(1, "1" * 40), run(2, "2" * 40)])
      >>> [(g.name, g.seeds, g.values("updates")) for g in groups]
      [('bl @ 11111111', [0, 1], [10.0, 11.0]), ('bl @ 22222222', [2], [12.0])]
    """
    gathered: dict[tuple[str, str, str], list[Finished]] = {}
    for run in runs:
        settings = json.dumps(_settings(run), sort_keys=True, default=str)
        gathered.setdefault((run.label, run.commit, settings), []).append(run)
    return [Group(_name(members[0], runs), members) for members in gathered.values()]


def _settings(run: Finished) -> dict[str, Any]:
    # What its numbers depend on, beside the seed.
    return {name: value for name, value in run.summary.items() if name in _setting_names()}


@functools.cache
def _setting_names() -> frozenset[str]:
    return frozenset(fields.declared(*SETTINGS)) - {"seed", "data_dir"}


def _name(run: Finished, runs: Sequence[Finished]) -> str:
    alike = [other for other in runs if other.label == run.label]
    commit = f" @ {run.commit[:8] or 'no commit'}" if {other.commit for other in alike} != {run.commit} else ""
    others = [_settings(other) for other in alike if other.commit == run.commit]
    differs = {n: v for n, v in _settings(run).items() if any(other.get(n) != v for other in others)}
    return f"{run.label}{commit}{''.join(f', {name}={value}' for name, value in differs.items())}"


def cell(values: Sequence[float], form: str) -> str:
    """Write mean ± standard deviation, the latter where it is not zero; none gives a dash.

    Example:
      >>> cell([90.0, 91.0], "{:.1f}"), cell([5.0, 5.0], "{:.0f}"), cell([], "{:.0f}")
      ('90.5 ± 0.7', '5', '-')
    """
    if not values:
        return "-"
    text = form.format(statistics.mean(values))
    spread = form.format(statistics.stdev(values)) if len(values) > 1 else "0"
    return text + (f" ± {spread}" if float(spread.replace(",", "")) > 0 else "")


def table(groups: Sequence[Group], columns: Sequence[Column] = COLUMNS) -> list[list[str]]:
    """Lay groups out as rows of text, the titles first; a column that no run has is left out.

    How many runs diverged stands beside the seeds.
    """
    shown = [column for column in columns if any(g.values(column.field) for g in groups)]
    rows = [["run", "seeds", *(column.title for column in shown)]]
    for g in groups:
        seeds = ", ".join(map(str, g.seeds)) + (f" ({g.diverged} diverged)" if g.diverged else "")
        rows.append([g.name, seeds, *(cell(g.values(column.field), column.form) for column in shown)])
    return rows


def summary_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay summaries out, by run, as an aligned table in Markdown, without what none of them has.

    The seconds include those of compiling, which stand beside them.

    Example:
      >>> row = dict(test_accuracy=90.0, updates=1200, final_batch_size=128, seconds=1.0, seconds_compile=0.5)
      >>> print(summary_table({"bl": row}))
      | method | test % | updates | final batch | seconds | compiling |
      |--------|--------|---------|-------------|---------|-----------|
      | bl     |  90.00 |   1,200 |         128 |     1.0 |       0.5 |
    """
    groups = [Group(name, [Finished(name, "", each, pathlib.Path())]) for name, each in summaries.items()]
    (_, _, *titles), *rows = table(groups, _SUMMARY)
    rows = [["method", *titles], *([name, *cells] for name, _, *cells in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: list[str], justify: Callable[[str, int], str]) -> list[str]:
        return [row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])]

    head, _, *lines = markdown([line(rows[0], str.ljust), *(line(row, str.rjust) for row in rows[1:])])
    return "\n".join([head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines])


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows, the first of which is the head, as the lines of a table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
