"""``hessabs data``: list the prepared data sets, or prepare one."""

from typing import Annotated, NamedTuple

from absl import flags

from hessabs.data import DatasetNotFoundError, catalog, text
from hessabs.terminal import printable

WORDS = "list|prepare NAME"


class Options(NamedTuple):
    """Where the data sets lie."""

    data_dir: Annotated[str | None, "folder of prepared data sets; default: TFDS's own"] = None
    archive: Annotated[str | None, "archive of tiny_imagenet, in place of a download (prepare)"] = None


SETTINGS = (Options,)


def main(values: flags.FlagValues, *words: str) -> int:
    """List the data sets, with exit status 1 if one is not whole; or prepare one."""
    match words:
        case ("list",):
            return _print_list(values.data_dir)
        case ("prepare", name):
            print(catalog.prepare(name, values.data_dir, values.archive))
            return 0
    raise ValueError(f"`hessabs data list` or `hessabs data prepare NAME`, got {' '.join(words) or 'neither'}.")


def _print_list(data_dir: str | None) -> int:
    entries = catalog.list_sets(data_dir)
    if not entries:
        print("no prepared data sets there")
    for entry in entries:
        splits = ", ".join(f"{name} {number:,}" for name, number in entry.examples.items())
        state = entry.problem or "whole"
        place = f"{entry.name:24s} {entry.version:8s} {entry.bytes / 1e6:10,.1f} MB"
        print(printable(f"{place}  {splits or '-'}: {state}"))
    try:
        print(text.describe(text.STDLIB, text.load_text(text.STDLIB).facts))
    except DatasetNotFoundError as error:  # no fault of a prepared set
        print(error)
    return 1 if any(entry.problem for entry in entries) else 0
