"""Summaries as a table of plain text."""

from collections.abc import Mapping
from typing import Any

_COLUMNS = (
    ("test_accuracy", "test %", "{:.2f}"),
    ("fgsm_accuracy", "FGSM %", "{:.2f}"),
    ("updates", "updates", "{:,}"),
    ("final_batch_size", "final batch", "{:,}"),
    ("eigenvalue", "top eigenvalue", "{:.3g}"),
    ("seconds", "seconds", "{:.1f}"),
    ("seconds_compile", "compiling", "{:.1f}"),
)

_UNKNOWN = {"seconds_compile": float("nan")}  # of runs that are older than the field


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay summaries out as a table in Markdown.

    Args:
      summaries: Name of a run to its summary.

    Returns:
      A header, a rule and a row per run; columns aligned. The seconds include those of compiling, which stand
      beside them.

    Example:
      >>> row = dict(test_accuracy=90.0, fgsm_accuracy=60.0, updates=1200, final_batch_size=128,
      ...            eigenvalue=3.14159, seconds=1.0, seconds_compile=0.5)
      >>> print(table({"bl": row}))
      | method | test % | FGSM % | updates | final batch | top eigenvalue | seconds | compiling |
      |--------|--------|--------|---------|-------------|----------------|---------|-----------|
      | bl     |  90.00 |  60.00 |   1,200 |         128 |           3.14 |     1.0 |       0.5 |
    """
    header = ["method", *(title for _, title, _ in _COLUMNS)]
    rows = [
        [name, *(form.format(summary[field]) for field, _, form in _COLUMNS)]
        for name, summary in ((name, {**_UNKNOWN, **each}) for name, each in summaries.items())
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)) + " |",
        "|" + "|".join("-" * (width + 2) for width in widths) + "|",
    ]
    for row in rows:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
