"""Where sets that TFDS has prepared lie on disk, ``folder/name[/config]/version``; nothing is downloaded."""

import os
import re
from pathlib import Path

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class DatasetNotFoundError(ValueError):
    """No data set of that name: it is not built in, and not prepared in the data folder."""


def default_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of prepared sets: the one given, or TFDS's own; it need not exist."""
    # Read the variable now: TFDS itself reads it once, when it is imported.
    default = os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(data_dir if data_dir is not None else default).expanduser()


def find_set(name: str, data_dir: Path) -> Path:
    """Return the folder of ``name[/config][:version]``, the latest version and the only config if none is
    named.

    TFDS can look for it too, but imports the code of every set that is named so, and that may import
    TensorFlow.
    """
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
    raise DatasetNotFoundError(
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
