"""One HTML page of all that a folder of runs holds: tables, curves and pictures, with nothing outside it."""

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from hessabs.training import metrics
from hessabs.training.reports import markdown
from hessabs.training.reports.curves import draw_curves
from hessabs.training.reports.results import COLUMNS, Column, Finished, find, group, table

_SHOWN = (*COLUMNS[:-1], Column("seconds", "wall seconds", "{:.0f}"))
_MOST_CURVES = 30  # lines in one picture

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; background: #fff; }
figcaption, .origin { color: #888; font-size: 13px; }
section { margin-top: 3rem; }
"""


class Section(NamedTuple):
    """A folder whose runs are one table."""

    folder: pathlib.Path
    runs: list[Finished]
    pictures: list[pathlib.Path]


def gather(root: pathlib.Path) -> list[Section]:
    """Sort what a folder holds into sections.

    The runs ``SECTION/LABEL`` and ``SECTION/LABEL/seedN`` are the table of SECTION; the pictures that lie in
    SECTION itself belong to it, and so do those of its runs. A README.md in it is its text.

    Args:
      root: A folder of a run, or one that holds such folders at any depth.

    Returns:
      The sections by path; those without a run hold pictures or text alone.

    Raises:
      FileNotFoundError: If there is no finished run.
    """
    runs: dict[pathlib.Path, list[Finished]] = {}
    owner: dict[pathlib.Path, pathlib.Path] = {}
    for run in find(root):
        place, _, name = run.label.rpartition("/")
        folder = root if run.folder == root else root / place
        runs.setdefault(folder, []).append(run._replace(label=name))
        owner[run.folder] = folder
    pictures: dict[pathlib.Path, list[pathlib.Path]] = {}
    for path in sorted(root.rglob("*.png")):
        section = owner.get(path.parent, path.parent)
        of_run = path.parent in owner
        if not (of_run and path.name == metrics.CURVES):  # the section draws them all in one
            pictures.setdefault(section, []).append(path)
    texts = {path.parent for path in root.rglob("README.md")}
    folders = sorted({*runs, *pictures, *texts})
    return [Section(folder, runs.get(folder, []), pictures.get(folder, [])) for folder in folders]


def render(root: pathlib.Path) -> str:
    """Write the page of a folder.

    Args:
      root: As in ``gather``.

    Returns:
      A whole HTML document; its pictures are data URIs, it has no script and asks for nothing.

    Raises:
      FileNotFoundError: If there is no finished run.
    """
    sections = gather(root)
    title = f"hessabs: {root.absolute().name}"
    contents = "".join(
        f'<li><a href="#s{i}">{_text(_title(section, root))}</a></li>' for i, section in enumerate(sections)
    )
    body = "\n".join(_section(i, section, root) for i, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1><ul>{contents}</ul>\n{body}\n</body></html>\n"
    )


def _section(number: int, section: Section, root: pathlib.Path) -> str:
    parts = [f'<section id="s{number}"><h2>{_text(_title(section, root))}</h2>']
    readme = section.folder / "README.md"
    if readme.exists():
        parts.append(markdown.to_html(_without_title(readme.read_text())))
    elif section.runs:
        rows = table(group(section.runs), _SHOWN)
        parts.append("<p>Mean ± standard deviation over seeds.</p>")
        parts.append(markdown.table([[_text(cell) for cell in row] for row in rows]))
        parts.append(_origins(section.runs))
    if section.runs and not any(path.name == metrics.CURVES for path in section.pictures):
        parts.append(_curves(section.runs))
    for path in section.pictures:
        parts.append(_figure(path.read_bytes(), str(path.relative_to(root))))
    return "\n".join([*parts, "</section>"])


def _title(section: Section, root: pathlib.Path) -> str:
    readme = section.folder / "README.md"
    if readme.exists():
        first = readme.read_text().lstrip().splitlines()[:1]
        if first and first[0].startswith("# "):
            return first[0][2:].strip()
    name = str(section.folder.relative_to(root))
    return root.absolute().name if name == "." else name


def _without_title(text: str) -> str:
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.startswith("# ") else text


def _origins(runs: Sequence[Finished]) -> str:
    lines = []
    for field in ("command", "commit", "hardware", "device"):
        found = sorted({str(run.summary[field]) for run in runs if run.summary.get(field)})
        if found:
            lines.append(f"{field}: {', '.join(found)}")
    versions = runs[0].summary.get("versions")
    if isinstance(versions, dict):
        lines.append("versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    return '<p class="origin">' + "<br>".join(map(_text, lines)) + "</p>"


def _curves(runs: Sequence[Finished]) -> str:
    curves = {}
    for g in group(runs)[:_MOST_CURVES]:
        path = g.runs[0].folder / metrics.METRICS
        try:
            curves[g.name] = metrics.read_lines(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            metrics.say(f"{path.parent} has no curve, for its {path.name} cannot be read: {error}")
    if not curves:
        return ""
    buffer = io.BytesIO()
    draw_curves(buffer, curves)
    return _figure(buffer.getvalue(), "one run of each row, by epoch")


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = _text(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )


def _text(value: str) -> str:
    return html.escape(value, quote=True)
