"""``hessabs report``: every run of a folder on one HTML page."""

import pathlib
from collections.abc import Sequence

from absl import flags

from hessabs.cli.flags import parse, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit status is 0, or 2 for input that cannot be used."""
    from hessabs.training import files
    from hessabs.training.look.report import render

    values = flags.FlagValues()
    flags.DEFINE_string("output", "report.html", "the page to write", flag_values=values)
    folders: list[str] = []
    try:
        if parse(values, "report", argv, folders, "FOLDER"):
            return 0
        if len(folders) != 1:
            raise ValueError(
                "name one folder of runs, as in `hessabs report FOLDER --output report.html`, "
                f"got {folders or 'none'}."
            )
        root = pathlib.Path(folders[0])
        if not root.is_dir():
            raise NotADirectoryError(f"{root} is no folder: name one that holds finished runs.")
        page = render(root)
        output = pathlib.Path(values.output)
        with files.usable("output", output):
            output.write_text(page)
    except (flags.Error, ValueError, OSError) as error:
        return refuse(error)
    print(f"report: {output}")
    return 0
