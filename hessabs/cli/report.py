"""``hessabs report``: every run of a folder on one HTML page."""

import pathlib
from typing import Annotated, NamedTuple

from absl import flags

from hessabs.training import files
from hessabs.training.look.report import render

WORDS = "FOLDER"


class Options(NamedTuple):
    """Where the page goes."""

    output: Annotated[str, "the page to write"] = "report.html"


SETTINGS = (Options,)


def main(values: flags.FlagValues, *folders: str) -> int:
    """Write the page."""
    if len(folders) != 1:
        raise ValueError(
            "name one folder of runs, as in `hessabs report FOLDER --output report.html`, "
            f"got {list(folders) or 'none'}."
        )
    root, output = pathlib.Path(folders[0]), pathlib.Path(values.output)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder: name one that holds finished runs.")
    page = render(root)
    with files.usable("output", output):
        output.write_text(page)
    print(f"report: {output}")
    return 0
