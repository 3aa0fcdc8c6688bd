"""What is prepared on disk and whether it is whole; and preparing more, which alone needs TensorFlow."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from hessabs.data.prepared import import_tfds
from hessabs.data.versions import all_sets, default_dir


class Entry(NamedTuple):
    """A prepared version of a set."""

    name: str  # or name/config
    version: str
    examples: dict[str, int]  # of each split, as recorded
    bytes: int
    problem: str  # what is wrong with it in one line; empty if every shard has its recorded length


def list_sets(data_dir: str | os.PathLike[str] | None = None) -> list[Entry]:
    """List the prepared sets of a folder, by name; the number of records of every shard is compared."""
    root = default_dir(data_dir)
    return [_entry(folder, str(folder.parent.relative_to(root))) for folder in all_sets(root)]


def prepare(
    name: str, data_dir: str | os.PathLike[str] | None = None, archive: str | os.PathLike[str] | None = None
) -> Path:
    """Download a set and prepare it in array_record format, with TFDS's builder or our own for
    ``tiny_imagenet`` (from its ``archive``, if it is here already); return the folder of the version.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"Preparing {name!r} needs TensorFlow, which reading it does not: "
            "install the extra `hessabs[prepare]`."
        )
    tfds = import_tfds(name)
    if archive is not None and name != "tiny_imagenet":
        raise ValueError(f"`archive` is for tiny_imagenet alone, got it for {name!r}.")
    try:
        builder: Any
        if name == "tiny_imagenet":
            from hessabs.data.tiny_imagenet import TinyImagenet

            builder = TinyImagenet(data_dir=default_dir(data_dir), file_format="array_record")
            builder.archive = Path(archive) if archive is not None else None
        else:
            builder = tfds.builder(name, data_dir=default_dir(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except (AssertionError, tfds.core.registered.DatasetNotFoundError) as e:
        # TFDS says so where an archive has to be put in place by hand, as that of imagenet2012.
        raise ValueError(f"TFDS cannot prepare {name!r}: {e}") from e
    return Path(builder.data_path)


def _entry(folder: Path, name: str) -> Entry:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        splits = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        problem = _problem(folder, info, splits)
    except (OSError, KeyError, ValueError) as e:
        splits, problem = {}, f"dataset_info.json cannot be read ({type(e).__name__}: {e})"
    return Entry(name, folder.name, {k: sum(v) for k, v in splits.items()}, size, problem)


def _problem(folder: Path, info: dict[str, Any], splits: dict[str, list[int]]) -> str:
    if info["fileFormat"] != "array_record":
        return f"prepared as {info['fileFormat']}, which is not read here"
    for split, lengths in splits.items():
        for shard, length in enumerate(lengths):
            path = folder / f"{info['name']}-{split}.array_record-{shard:05d}-of-{len(lengths):05d}"
            if not path.exists():
                return f"{path.name} is missing"
            try:
                found = _num_records(path)
            except (OSError, RuntimeError, ValueError, IndexError) as e:
                return f"{path.name} is damaged ({' '.join(str(e).split())[:100]})"
            if found != length:
                return f"{path.name} has {found} records, not {length}"
    return ""


def _num_records(path: Path) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        return int(reader.num_records())
    finally:
        reader.close()
