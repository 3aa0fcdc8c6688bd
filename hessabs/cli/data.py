"""``hessabs data``: list the prepared data sets, or prepare one."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from hessabs.cli.flags import parse, refuse


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
      argv: ``list`` or ``prepare NAME``, and flags.

    Returns:
      The exit status: 0; 1 if a listed set is not whole; 2 for input that cannot be used.
    """
    from hessabs.data import DatasetNotFoundError, catalog, text

    values = flags.FlagValues()
    flags.DEFINE_string(
        "data_dir", None, "folder of prepared data sets; default: TFDS's own", flag_values=values
    )
    flags.DEFINE_string(
        "archive", None, "archive of tiny_imagenet, in place of a download (prepare)", flag_values=values
    )
    words: list[str] = []
    try:
        if parse(values, "data", argv, words, "list|prepare NAME"):
            return 0
        if words == ["list"]:
            status = _print_list(catalog.list_sets(values.data_dir))
            try:
                print(text.describe(text.STDLIB, text.load_text(text.STDLIB).facts))
            except DatasetNotFoundError as error:  # no fault of a prepared set
                print(error)
            return status
        if len(words) == 2 and words[0] == "prepare":
            print(catalog.prepare(words[1], values.data_dir, values.archive))
            return 0
        raise ValueError(
            f"`hessabs data list` or `hessabs data prepare NAME`, got {' '.join(words) or 'neither'}."
        )
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return refuse(error)


def _print_list(entries: Sequence[Any]) -> int:
    if not entries:
        print("no prepared data sets there")
    for entry in entries:
        splits = ", ".join(f"{name} {number:,}" for name, number in entry.examples.items())
        state = entry.problem or "whole"
        print(f"{entry.name:24s} {entry.version:8s} {entry.bytes / 1e6:10,.1f} MB  {splits or '-'}: {state}")
    return 1 if any(entry.problem for entry in entries) else 0
