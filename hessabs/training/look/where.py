"""Which run a command looks at, and where its results go."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from hessabs.training import files
from hessabs.training.trained import Trained, load_trained


class Where(NamedTuple):
    """A finished run; one field, one flag."""

    workdir: Annotated[str | None, "folder of a finished run; the results go there"] = None
    task: Annotated[str | None, "FILE.py:factory of its task, if it is not the recorded one"] = None
    model: Annotated[str | None, "network, or FILE.py:factory of it, if it is not the recorded one"] = None
    dataset: Annotated[str | None, "data set, if it is not the recorded one"] = None
    data_dir: Annotated[str | None, "folder of prepared TFDS data sets; default: that of the run"] = None
    ema: Annotated[bool, "look at the running average of the params"] = False


def open_run(where: Where) -> Trained:
    """Read a finished run."""
    if where.workdir is None:
        raise ValueError("`workdir` is required: name the folder of a finished run with --workdir.")
    named = {name: getattr(where, name) for name in ("task", "model", "dataset", "data_dir")}
    flags = {name: value for name, value in named.items() if value is not None}
    return load_trained(pathlib.Path(where.workdir), flags=flags, average=where.ema)


def changed(where: Where) -> dict[str, str | bool]:
    """List what is not taken as the run recorded it: results of that have other names."""
    return {n: v for n, v in where._asdict().items() if v and n not in ("workdir", "data_dir")}


@contextlib.contextmanager
def writing(where: Where) -> Iterator[pathlib.Path]:
    """Give the folder to write into; what the system refuses there is said with the flag."""
    workdir = pathlib.Path(str(where.workdir))
    with files.usable("workdir", workdir):
        files.refuse_links(workdir)
        yield workdir
