"""One HTML page of all that a folder of runs holds: tables, curves and pictures, with nothing outside it."""

import base64
import html
import io
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from hessabs.training import files
from hessabs.training.look.pictures import draw_curves
from hessabs.training.look.results import COLUMNS, Column, Finished, find, group, table

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

_INLINE = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # pictures stand below, embedded
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # a link into a repository leads nowhere from a page
    (re.compile(r"`([^`]*)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
)
_RULE = re.compile(r"[|\s:-]+")


class Section(NamedTuple):
    """A folder whose runs are one table."""

    folder: pathlib.Path
    title: str
    text: str | None  # of its README.md
    runs: list[Finished]
    pictures: list[pathlib.Path]


def gather(root: pathlib.Path) -> list[Section]:
    """Sort what a folder holds into sections, by path; those without a run hold pictures or text alone.

    The runs ``SECTION/LABEL`` and ``SECTION/LABEL/seedN`` are the table of SECTION; the pictures that lie in
    SECTION itself belong to it, and so do those of its runs. A README.md in it is its text.
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
        if not (path.parent in owner and path.name == files.CURVES):  # the section draws them all in one
            pictures.setdefault(owner.get(path.parent, path.parent), []).append(path)
    texts = {path.parent for path in root.rglob("README.md")}
    folders = sorted({*runs, *pictures, *texts})
    return [
        Section(folder, *_title_and_text(folder, root), runs.get(folder, []), pictures.get(folder, []))
        for folder in folders
    ]


def render(root: pathlib.Path) -> str:
    """Write the page of a folder: a whole HTML document whose pictures are data URIs, without a script."""
    sections = gather(root)
    title = html.escape(f"hessabs: {root.absolute().name}")
    titles = enumerate(html.escape(section.title) for section in sections)
    contents = "".join(f'<li><a href="#s{i}">{text}</a></li>' for i, text in titles)
    body = "\n".join(_section(i, section, root) for i, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1><ul>{contents}</ul>\n{body}\n</body></html>\n"
    )


def to_html(text: str) -> str:
    """Turn headings, paragraphs, lists and tables of Markdown into HTML; everything else is text.

    Headings are two levels lower, for a page that has headings of its own.

    Example:
      >>> to_html("# A & B\\n\\nSome `code`,\\nmore.\\n\\n- one\\n- two")
      '<h3>A &amp; B</h3>\\n<p>Some <code>code</code>, more.</p>\\n<ul><li>one</li><li>two</li></ul>'
    """
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    return "\n".join(filter(None, map(_block, blocks)))


def _section(number: int, section: Section, root: pathlib.Path) -> str:
    parts = [f'<section id="s{number}"><h2>{html.escape(section.title)}</h2>']
    if section.text is not None:
        parts.append(to_html(section.text))
    elif section.runs:
        rows = table(group(section.runs), _SHOWN)
        parts.append("<p>Mean ± standard deviation over seeds.</p>")
        parts.append(_table([[html.escape(cell) for cell in row] for row in rows]))
        parts.append(_origins(section.runs))
    if section.runs and not any(path.name == files.CURVES for path in section.pictures):
        parts.append(_curves(section.runs))
    parts += [_figure(path.read_bytes(), str(path.relative_to(root))) for path in section.pictures]
    return "\n".join([*parts, "</section>"])


def _title_and_text(folder: pathlib.Path, root: pathlib.Path) -> tuple[str, str | None]:
    name, readme = str(folder.relative_to(root)), folder / "README.md"
    name = root.absolute().name if name == "." else name
    if not readme.exists():
        return name, None
    first, _, rest = readme.read_text().lstrip().partition("\n")
    return (first[2:].strip(), rest) if first.startswith("# ") else (name, f"{first}\n{rest}")


def _origins(runs: Sequence[Finished]) -> str:
    fields = ("command", "commit", "hardware", "device")
    found = {f: sorted({str(run.summary[f]) for run in runs if run.summary.get(f)}) for f in fields}
    lines = [f"{field}: {', '.join(texts)}" for field, texts in found.items() if texts]
    versions = runs[0].summary.get("versions")
    if isinstance(versions, dict):
        lines.append("versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()))
    return '<p class="origin">' + "<br>".join(map(html.escape, lines)) + "</p>"


def _curves(runs: Sequence[Finished]) -> str:
    curves = {}
    for g in group(runs)[:_MOST_CURVES]:
        path = g.runs[0].folder / files.METRICS
        try:
            curves[g.name] = files.read_lines(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            files.say(f"{path.parent} has no curve, for its {path.name} cannot be read: {error}")
    if not curves:
        return ""
    buffer = io.BytesIO()
    draw_curves(buffer, curves)
    return _figure(buffer.getvalue(), "one run of each row, by epoch")


def _figure(png: bytes, caption: str) -> str:
    source, text = f"data:image/png;base64,{base64.b64encode(png).decode()}", html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[1:])}</table>"


def _block(lines: list[str]) -> str:
    if lines[0].startswith("#"):
        marks, _, title = lines[0].partition(" ")
        level = min(len(marks) + 2, 6)
        rest = _block(lines[1:]) if lines[1:] else ""
        return f"<h{level}>{_inline(title)}</h{level}>{rest}"
    if lines[0].startswith("|"):
        rows = [line.strip().strip("|").split("|") for line in lines if not _RULE.fullmatch(line)]
        return _table([[_inline(cell.strip()) for cell in row] for row in rows])
    if lines[0].startswith("- "):
        items = re.split(r"\n- ", "\n".join(lines)[2:])
        return "<ul>" + "".join(f"<li>{_inline(' '.join(item.split()))}</li>" for item in items) + "</ul>"
    paragraph = _inline(" ".join(lines)).strip()
    return f"<p>{paragraph}</p>" if paragraph else ""


def _inline(text: str) -> str:
    text = html.escape(text)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
