"""One HTML page of all that a folder of runs holds: tables, curves and pictures, with nothing outside it.

A section begins with what its runs are, one sentence of their numbers, and a table that its heads sort.
"""

import base64
import html
import io
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from hessabs.training import files
from hessabs.training.curves import draw_curves
from hessabs.training.look.results import COLUMNS, Column, Finished, Group, find, group, table

_SHOWN = (
    *COLUMNS[:-2],
    Column("seconds_compile", "compiling (s)", "{:.1f}"),
    Column("seconds_training", "training (s)", "{:.1f}"),
)
_TESTED = "epsilon of FGSM and PGD"
_FACTS = {
    "data set": ("task", "dataset", "name"),  # the first one that a run has
    "model": ("model",),
    "optimiser": ("optimizer",),
    "learning rate": ("lr",),
    "method": ("method",),
    _TESTED: ("fgsm_epsilon",),
}
_SCORES = (
    ("test_accuracy", 1, "{:.1f} %"),
    ("test_token_accuracy", 1, "{:.1f} %"),
    ("test_loss", -1, "{:.3f} nats"),
)
_CAPTIONS = {
    "curves": "Batch size, learning rate, top Hessian eigenvalue and test accuracy, or loss, by epoch",
    "tracked": "What was measured at the end of every epoch",
    "spectrum-[^_]*": "Largest Hessian eigenvalues of the training set and of the test set",
    "spectrum-.*_examples": "Largest Hessian eigenvalues of single training examples",
    "spectrum-.*_density": "Density of all Hessian eigenvalues on the training set",
    "spectrum-.*_line": "Training loss along the first eigenvector",
    "spectrum-.*_plane": "Training loss on the plane of the first two eigenvectors",
    "attack-.*_sheet": "Images before and after the strongest attack, with their labels",
    "attack-.*": "Accuracy by the size of the perturbation, a line for each attack",
    "transfer-.*_sheet": "Images before and after the strongest attack, made on another network",
    "transfer-.*": "Accuracy by the size of perturbations made on another network",
}
_MOST_CURVES = 30  # lines in one picture

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
.wide, pre { overflow-x: auto; }
table { border-spacing: 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; }
th button::after { content: "\\00a0↕"; opacity: .5; }
[aria-sort=ascending] button::after { content: "\\00a0▲"; }
[aria-sort=descending] button::after { content: "\\00a0▼"; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; }
dt, figcaption, .note { color: light-dark(#555, #aaa); }
dd { margin: 0; overflow-wrap: anywhere; }
.sentence { font-size: 1.2em; }
.note { font-size: 13px; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; background: #fff; }
section { margin-top: 2rem; }
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; margin: 0; max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .3rem; }
  th button::after { content: "" !important; }
  figure, tr { break-inside: avoid; }
  figure img { max-height: 11cm; }
  h2, h3 { break-after: avoid; }
}
"""
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    const key = row => {
      const text = row.cells[column].textContent, number = parseFloat(text.replaceAll(",", ""));
      return Number.isNaN(number) ? text : number;
    };
    const compare = (a, b) => typeof a !== typeof b ? (typeof a === "number" ? -1 : 1)
      : typeof a === "number" ? a - b : a.localeCompare(b);
    button.onclick = () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach(each => each.ariaSort = "none");
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      body.append(...[...body.rows].sort((a, b) => sign * compare(key(a), key(b))));
    };
  });
}
"""

_WIDE = '<div class="wide" tabindex="0">'
_LEFT_OUT = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # pictures stand below, embedded
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # a link into a repository leads nowhere from a page
)
_MARKDOWN = ["heading", "list", "table", "fence", "backticks", "emphasis"]


class Section(NamedTuple):
    """A folder whose runs are one table."""

    folder: pathlib.Path
    title: str
    text: str | None  # of its README.md
    runs: list[Finished]
    pictures: list[pathlib.Path]


def gather(root: pathlib.Path, say: Callable[[str], None] = files.say) -> list[Section]:
    """Sort what a folder holds into sections, by path; those without a run hold pictures or text alone.

    The runs ``SECTION/LABEL`` and ``SECTION/LABEL/seedN`` are the table of SECTION; the pictures that lie in
    SECTION itself belong to it, and so do those of its runs. A README.md in it is its text. ``say`` is told
    of runs that are left out.
    """
    runs: dict[pathlib.Path, list[Finished]] = {}
    owner: dict[pathlib.Path, pathlib.Path] = {}
    for run in find(root, say):
        place, _, name = run.label.rpartition("/")
        folder = root if run.folder == root else root / place
        runs.setdefault(folder, []).append(run._replace(label=name, summary=_with_training(run.summary)))
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
    """Write the page of a folder: a whole HTML document with its pictures, its style and its script in it."""
    left_out: list[str] = []

    def say(line: str) -> None:
        files.say(line)
        left_out.append(line)

    sections = gather(root, say)
    title = html.escape(f"hessabs: {root.absolute().name}")
    titles = enumerate(html.escape(section.title) for section in sections)
    contents = "".join(f'<li><a href="#s{i}">{text}</a></li>' for i, text in titles)
    nav = f"<nav><ul>{contents}</ul></nav>" if len(sections) > 1 else ""
    body = "\n".join(_section(i, section, root, say) for i, section in enumerate(sections))
    notes = "".join(f'<p class="note">{html.escape(line)}</p>' for line in left_out)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>{notes}{nav}\n{body}\n<script>{_SCRIPT}</script></body></html>\n"
    )


def to_html(text: str) -> str:
    """Turn headings, paragraphs, lists, tables and code of Markdown into HTML; everything else is text.

    Headings are two levels lower, for a page that has headings of its own.

    Example:
      >>> print(to_html("# A & B\\n\\nSome `code`,\\nmore.\\n\\n- one"))
      <h3>A &amp; B</h3>
      <p>Some <code>code</code>,
      more.</p>
      <ul>
      <li>one</li>
      </ul>
    """
    for form, kept in _LEFT_OUT:
        text = form.sub(kept, text)
    markdown = MarkdownIt("zero").enable(_MARKDOWN)
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
        if token.tag in ("th", "td"):
            token.attrs.clear()  # the style aligns
    page = markdown.renderer.render(tokens, markdown.options, {}).strip()
    return page.replace("<table>", f"{_WIDE}<table>").replace("</table>", "</table></div>")


def sentence(groups: Sequence[Group]) -> str:
    """Say in one sentence what the numbers come to, beside the constant batch where there is one.

    It is of the group with the fewest updates among those no worse than the other, or of all if none is; of
    runs on several data sets there is none.

    Example:
      >>> def one(name, accuracy, updates):
      ...     summary = {"method": name, "test_accuracy": accuracy, "updates": updates}
      ...     return Group(name, [Finished(name, "", summary, pathlib.Path())])
      >>> sentence([one("absa", 89.9, 6_886), one("bl", 89.3, 35_100)])
      'absa: 89.9 % in 6,886 updates, 5.1 times fewer than bl with 89.3 %.'
    """
    names = ("task", "dataset", "name")
    several = len({tuple(str(run.summary.get(n)) for n in names) for g in groups for run in g.runs}) > 1
    for field, sign, form in () if several else _SCORES:
        known = [g for g in groups if g.values(field) and g.values("updates") and not g.diverged]
        if not known:
            continue
        score = {g.name: mean(g.values(field)) for g in known}
        updates = {g.name: mean(g.values("updates")) for g in known}
        constant = [g.name for g in known if g.runs[0].summary.get("method") == "bl"]
        other = max(constant or updates, key=lambda name: updates[name])
        good = [name for name in updates if sign * score[name] >= sign * score[other] and name != other]
        best = min(good or updates, key=lambda name: updates[name])
        text = f"{best}: {form.format(score[best])} in {updates[best]:,.0f} updates"
        if updates[best] < updates[other]:
            times = updates[other] / updates[best]
            text += f", {times:.1f} times fewer than {other} with {form.format(score[other])}"
        return f"{text}."
    return ""


def _section(number: int, section: Section, root: pathlib.Path, say: Callable[[str], None]) -> str:
    parts = [f'<section id="s{number}">']
    if section.folder != root or section.text is not None:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
    groups = group(section.runs)
    if section.runs:
        said = html.escape(sentence(groups))
        parts += [_facts(section.runs), f'<p class="sentence">{said}</p>' if said else ""]
    if section.text is not None:
        parts.append(to_html(section.text))
    elif section.runs:
        head, *rows = table(groups, _SHOWN)
        rows = [[name, _count(g), *cells] for g, (name, _, *cells) in zip(groups, rows, strict=True)]
        parts.append(_table([[html.escape(cell) for cell in row] for row in (head, *rows)]))
        parts.append('<p class="note">Mean ± standard deviation over seeds.</p>')
        parts.append(_origins(section.runs))
    if section.runs and not any(path.name == files.CURVES for path in section.pictures):
        parts.append(_curves(groups, say))
    for path in section.pictures:
        words = next((text for form, text in _CAPTIONS.items() if re.fullmatch(form, path.stem)), "")
        words = words or path.stem.replace("_", " ")
        parts.append(_figure(path.read_bytes(), words, str(path.relative_to(root))))
    return "\n".join([*parts, "</section>"])


def _with_training(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    seconds, compiling = summary.get("seconds"), summary.get("seconds_compile")
    if isinstance(seconds, (int, float)) and isinstance(compiling, (int, float)):
        return {**summary, "seconds_training": seconds - compiling}
    return summary


def _count(g: Group) -> str:
    return f"{len(g.runs)}" + (f" ({g.diverged} diverged)" if g.diverged else "")


def _facts(runs: Sequence[Finished]) -> str:
    lines = []
    for title, fields in _FACTS.items():
        if title == _TESTED and not any("fgsm_accuracy" in run.summary for run in runs):
            continue
        found = (next((run.summary[f] for f in fields if run.summary.get(f)), None) for run in runs)
        texts = {f"{value:g}" if isinstance(value, float) else str(value) for value in found if value}
        if texts:
            lines.append(f"<dt>{title}</dt><dd>{html.escape(', '.join(sorted(texts)))}</dd>")
    return f"<dl>{''.join(lines)}</dl>" if lines else ""


def _title_and_text(folder: pathlib.Path, root: pathlib.Path) -> tuple[str, str | None]:
    name, readme = str(folder.relative_to(root)), folder / "README.md"
    name = root.absolute().name if name == "." else name
    if not readme.exists():
        return name, None
    first, _, rest = readme.read_text().lstrip().partition("\n")
    return (first[2:].strip(), rest) if first.startswith("# ") else (name, f"{first}\n{rest}")


def _origins(runs: Sequence[Finished]) -> str:
    fields = ("command", "commit", "hardware", "device")
    found = {f: {str(run.summary[f]) for run in runs if run.summary.get(f)} for f in fields}
    versions = [run.summary.get("versions") for run in runs]
    found["versions"] = {
        f"{n} {number}" for each in versions if isinstance(each, dict) for n, number in each.items()
    }
    lines = [f"{field}: {', '.join(sorted(texts))}" for field, texts in found.items() if texts]
    return '<p class="note">' + "<br>".join(map(html.escape, lines)) + "</p>"


def _curves(groups: Sequence[Group], say: Callable[[str], None]) -> str:
    curves = {}
    for g in groups[:_MOST_CURVES]:
        path = g.runs[0].folder / files.METRICS
        try:
            # A run that is going on to more epochs still has the summary of the shorter one.
            last = g.runs[0].summary.get("epochs", math.inf)
            curves[g.name] = [record for record in files.read_lines(path) if record["epoch"] <= last]
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            say(f"{path.parent} has no curve, for its {path.name} cannot be read: {error}")
    if not curves:
        return ""
    buffer = io.BytesIO()
    draw_curves(buffer, curves)
    return _figure(buffer.getvalue(), _CAPTIONS["curves"], "one run of each row")


def _figure(png: bytes, words: str, source: str) -> str:
    data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = html.escape(f"{words} ({source})")
    return f'<figure><img src="{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    head, body = line(rows[0], "th"), "".join(line(row, "td") for row in rows[1:])
    return f"{_WIDE}<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"
