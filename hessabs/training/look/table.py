"""Tables of a terminal in which no word and no number is cut, however narrow it is."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2  # characters between two columns


class Column(NamedTuple):
    """A column of a table: it is never narrower than a word or a number of it."""

    title: str
    cells: Sequence[str | Text]
    least: int  # characters in a line
    natural: int  # with which nothing needs a second line
    justify: Literal["left", "right"] = "left"


def make_column(
    title: str, cells: Sequence[str], *, justify: Literal["left", "right"] = "left", wraps: bool = False
) -> Column:
    """Make a column of texts; its title ``wraps`` between words, and so may they."""
    words = [*title.split(), *(word for cell in cells for word in (cell.split() if wraps else [cell]))]
    least, natural = (max(map(cell_len, texts), default=0) for texts in (words, [title, *cells]))
    return Column(title, cells, least, natural, justify)


def least_width(columns: Sequence[Column]) -> int:
    """Count the characters in a line that columns need."""
    return sum(column.least for column in columns) + GAP * (len(columns) - 1)


def lay_out(columns: Sequence[Column], width: int) -> Table:
    """Lay out columns; what is left of the width goes to the first that would take a second line."""
    table, left = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False), max(width - least_width(columns), 0)
    for column in columns:
        more = min(column.natural - column.least, left)
        left -= more
        table.add_column(column.title, justify=column.justify, overflow="fold", width=column.least + more)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
