"""The little Markdown that READMEs of results are written in, as HTML."""

import html
import re
from collections.abc import Sequence

_INLINE = (
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # pictures stand below, embedded
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),  # a link into a repository leads nowhere from a page
    (re.compile(r"`([^`]*)`"), r"<code>\1</code>"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>"),
)
_RULE = re.compile(r"[|\s:-]+")


def to_html(text: str) -> str:
    """Turn headings, paragraphs, lists and tables into HTML; everything else is text.

    Args:
      text: The Markdown. Nothing in it is taken for HTML.

    Returns:
      HTML. Headings are two levels lower, for a page that has headings of its own.

    Example:
      >>> to_html("# A & B\\n\\nSome `code`,\\nmore.\\n\\n- one\\n- two")
      '<h3>A &amp; B</h3>\\n<p>Some <code>code</code>, more.</p>\\n<ul><li>one</li><li>two</li></ul>'
    """
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    return "\n".join(filter(None, map(_block, blocks)))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Write rows of HTML as a table, the first row as its head.

    Args:
      rows: Cells, as HTML.

    Returns:
      The element, on one line.
    """

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
        return table([[_inline(cell.strip()) for cell in row] for row in rows])
    if lines[0].startswith("- "):
        items = re.split(r"\n- ", "\n".join(lines)[2:])
        return "<ul>" + "".join(f"<li>{_inline(' '.join(item.split()))}</li>" for item in items) + "</ul>"
    paragraph = _inline(" ".join(lines)).strip()
    return f"<p>{paragraph}</p>" if paragraph else ""


def _inline(text: str) -> str:
    text = html.escape(text, quote=True)
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text
