"""What TFDS has prepared on disk, ``folder/name[/config]/version``: where it is, and whether it is whole.

Preparing more alone downloads something, and needs TensorFlow.
"""

import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hessabs.data.prepared import check_features, import_tfds

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NEAREST = re.compile(r"Did you mean.*")


class DatasetNotFoundError(ValueError):
    """No data set of that name: it is not built in, and not prepared in the data folder."""


class NotPreparedError(DatasetNotFoundError):
    """A set that TFDS may know is not prepared in the data folder."""


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
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
    announce: Callable[[Path], object] = lambda place: None,
) -> Path:
    """Download a set and prepare it in array_record format, with TFDS's builder or our own for
    ``tiny_imagenet`` (from its ``archive``, if it is here already); return the folder of the version, which is
    announced when the set is known to be one of images and labels.
    """
    if not can_prepare():
        raise ImportError(
            f"Preparing {name!r} needs TensorFlow, which reading it does not: "
            "install the extra `hessabs[prepare]`."
        )
    tfds = import_tfds(name)
    if archive is not None and name != "tiny_imagenet":
        raise ValueError(f"`archive` is for tiny_imagenet alone, got it for {name!r}.")
    download = tfds.core.download
    errors = (
        AssertionError,  # where an archive has to be put in place by hand, as that of imagenet2012
        tfds.core.registered.DatasetNotFoundError,
        download.util.DownloadError,
        download.download_manager.NonMatchingChecksumError,
        download.extractor.ExtractError,
    )
    try:
        builder: Any
        if name == "tiny_imagenet":
            from hessabs.data.tiny_imagenet import TinyImagenet

            builder = TinyImagenet(data_dir=default_dir(data_dir), file_format="array_record")
            builder.archive = Path(archive) if archive is not None else None
        else:
            builder = tfds.builder(name, data_dir=default_dir(data_dir), file_format="array_record")
        check_features(name, builder)
        announce(Path(builder.data_path))
        with contextlib.redirect_stdout(sys.stderr):  # it says what it does
            builder.download_and_prepare()
    except errors as e:
        first, _, others = str(e).partition("Available datasets:")  # all of them
        raise ValueError(f"TFDS cannot prepare {name!r}: {first}{''.join(_NEAREST.findall(others))}") from e
    return Path(builder.data_path)


def can_prepare() -> bool:
    """Tell whether TensorFlow is installed, which preparing a set needs, and reading it does not."""
    return importlib.util.find_spec("tensorflow") is not None


def default_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of prepared sets: the one given, or TFDS's own; it need not exist."""
    # Read the variable now: TFDS itself reads it once, when it is imported.
    default = os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(data_dir if data_dir is not None else default).expanduser()


def find_set(name: str, data_dir: Path) -> Path:
    """Return the folder of ``name[/config][:version]``, the latest version and only config if none is named."""
    # TFDS can look for it too, but imports the code of every set of that name, which may import TensorFlow.
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::([\d.]+))?", name)
    if match:
        base, config, version = match.groups()
        root = data_dir / base / config if config else data_dir / base
        found = versions(root, version)
        if not found and not config:
            configs = [d for d in folders(root) if versions(d, version)]
            if len(configs) > 1:
                listed = ", ".join(repr(f"{base}/{d.name}") for d in configs)
                raise DatasetNotFoundError(
                    f"Data set {name!r} has several configs in {data_dir}: use one of {listed}."
                )
            found = versions(configs[0], version) if configs else []
        if found:
            return found[-1]
    prepared = [str(path.relative_to(data_dir)) for path in all_sets(data_dir)]
    there = ", ".join(prepared) or ("none" if data_dir.is_dir() else "there is no such folder")
    raise (NotPreparedError if match else DatasetNotFoundError)(
        f"No data set {name!r} in {data_dir} (prepared there: {there}). Use `--dataset digits`, "
        "name the folder of prepared sets with `--data_dir` (or TFDS_DATA_DIR), or prepare it: "
        f"install the extra `hessabs[prepare]` and run `hessabs data prepare {name}`."
    )


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, by name; none if it does not exist."""
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def all_sets(data_dir: Path) -> list[Path]:
    """Return the folder of every prepared version of every set, by name."""
    return [path for root in folders(data_dir) for sub in [root, *folders(root)] for path in versions(sub)]


def versions(path: Path, version: str | None = None) -> list[Path]:
    """Return the prepared versions in the folder of a set or config, oldest first; of one alone if named."""
    found = [
        (tuple(map(int, match.groups())), p)
        for p in folders(path)
        if (match := _VERSION.fullmatch(p.name)) and (p / "features.json").is_file()
    ]
    return [p for _, p in sorted(found) if version in (None, p.name)]


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
