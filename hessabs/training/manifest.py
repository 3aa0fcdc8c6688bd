"""The checksums of a folder, so that a file which was cut off or changed is noticed and not trained on."""

import hashlib
import json
import pathlib

MANIFEST = "manifest.json"


class DamagedError(ValueError):
    """A folder that does not hold what was once written there."""


def write_manifest(folder: pathlib.Path) -> None:
    """Note the size and the SHA-256 of every file of a folder, in ``manifest.json``.

    Args:
      folder: The folder; it must not change afterwards (files may be added).
    """
    files = {
        str(path.relative_to(folder)): _describe(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def verify_manifest(folder: pathlib.Path) -> None:
    """Compare the files of a folder with its manifest.

    Args:
      folder: A folder that ``write_manifest`` has described.

    Raises:
      DamagedError: If a file is missing or differs, naming it.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wanted = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise DamagedError(f"{folder.name}/{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{folder.name}/{MANIFEST} cannot be read") from None
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise DamagedError(f"{folder.name}/{name} is missing")
        got = _describe(path)
        if got["bytes"] != size:
            raise DamagedError(f"{folder.name}/{name} has {got['bytes']} bytes and had {size}")
        if got["sha256"] != digest:
            raise DamagedError(f"{folder.name}/{name} has changed: its SHA-256 is another")


def _describe(path: pathlib.Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
