"""Text as sequences of characters: a file, or the source of Python's standard library."""

import hashlib
import platform
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hessabs.checks import require
from hessabs.data.catalog import DatasetNotFoundError
from hessabs.data.source import Arrays

STDLIB = "stdlib"
LENGTH = 64
_FILE = "text:"
_KNOWN = 95  # characters of a vocabulary, besides the unknown one
_TEST = 10  # the last of so many parts is test

# In this order. Modules of one file each, from Python 3.11 on.
_MODULES = """
    argparse ast base64 bdb calendar cmd codecs configparser contextlib copy csv dataclasses difflib dis
    doctest enum filecmp fileinput fractions ftplib functools getopt gettext gzip hashlib heapq imaplib
    inspect ipaddress locale mailbox mimetypes numbers optparse os pdb pickle pickletools pkgutil platform
    plistlib poplib posixpath pprint profile pstats pyclbr pydoc queue random runpy sched selectors shelve
    shlex shutil smtplib socket socketserver statistics subprocess symtable tarfile tempfile textwrap
    threading timeit tokenize trace traceback tracemalloc types typing uuid warnings wave weakref webbrowser
    zipapp
"""


class Text(NamedTuple):
    """Sequences of characters."""

    train: Arrays  # examples {"tokens": int32 (length + 1,)}: each but the first is predicted from those before
    test: Arrays
    vocabulary: str  # character of each token; one more token stands for all others
    facts: dict[str, Any]  # of where it came from, for JSON


def is_text(name: str) -> bool:
    """Tell whether a data set of this name is text."""
    return name == STDLIB or name.startswith(_FILE)


def load_text(name: str, length: int = LENGTH, vocabulary: str | None = None) -> Text:
    """Read text; the last tenth is test.

    The sequences do not overlap, but for the character that one predicts last and the next is given first; what
    is left at the end is not used.

    Args:
        name: ``text:PATH``, a file in UTF-8, or ``stdlib``, the source of modules of this Python's standard
            library: another version has another text, which its SHA-256 tells.
        length: Characters that a sequence predicts, at least 1.
        vocabulary: The characters that are known, each once; None for the 95 most common ones of the text, the
            most common first. All others are one token, the last.

    Raises:
        DatasetNotFoundError: If the file cannot be read, or this Python has no source.
        ValueError: If it is not UTF-8 or too short, or a character of the vocabulary stands there twice.

    Example:
        >>> text = load_text("stdlib", 8, "\\n efr")
        >>> text.train["tokens"].shape[1], text.facts["vocabulary"], int(text.train["tokens"].max())
        (9, '\\n efr', 5)
    """
    require("be at least 1", sequence_length=length)
    content, facts = _read(name)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be in UTF-8; its byte {error.start} is not: {error.reason}.") from None
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    vocabulary = _common(points) if vocabulary is None else vocabulary
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError(f"`vocabulary` must hold each character once, got {vocabulary!r}.")
    tokens = _tokens(points, vocabulary)
    cut = len(tokens) - len(tokens) // _TEST
    if min(cut, len(tokens) - cut) <= length:
        raise ValueError(
            f"{name} must have at least {_TEST * (length + 1)} characters, for sequences of {length} in its "
            f"last tenth too, got {len(tokens)}: lower sequence_length."
        )
    facts = {"characters": len(tokens), "sha256": hashlib.sha256(content).hexdigest(), **facts}
    train, test = (_sequences(part, length) for part in (tokens[:cut], tokens[cut:]))
    return Text(train, test, vocabulary, {**facts, "vocabulary": vocabulary})


def describe(name: str, facts: Mapping[str, Any]) -> str:
    """Say in a line which text this is.

    Example:
        >>> describe("text:a.txt", {"characters": 1200, "sha256": 16 * "0123", "vocabulary": "abc"})
        'text:a.txt: 1,200 characters, 3 different ones known, SHA-256 0123012301230123.'
    """
    of = f" of {facts['modules']} modules of Python {facts['python']}" if "python" in facts else ""
    lacks = f"; without {', '.join(facts['missing'])}, which it lacks" if facts.get("missing") else ""
    known = f"{len(facts['vocabulary'])} different ones known"
    return f"{name}: {facts['characters']:,} characters{of}, {known}, SHA-256 {facts['sha256'][:16]}{lacks}."


def _read(name: str) -> tuple[bytes, dict[str, Any]]:
    if name != STDLIB:
        path = Path(name.removeprefix(_FILE)).expanduser()
        try:
            return path.read_bytes(), {}
        except OSError as error:
            raise DatasetNotFoundError(
                f"The text {path} cannot be read ({error.strerror}): name a file in UTF-8, text:PATH."
            ) from error
    folder = Path(sysconfig.get_path("stdlib"))
    found = {module: folder / f"{module}.py" for module in _MODULES.split()}
    missing = [module for module, path in found.items() if not path.is_file()]
    if len(missing) > len(found) // 2:
        raise DatasetNotFoundError(
            f"The data set {STDLIB!r} is the source of Python's standard library, which {folder} does not "
            "hold: name a file of text, text:PATH."
        )
    content = b"".join(path.read_bytes() for module, path in found.items() if module not in missing)
    facts = {"python": platform.python_version(), "modules": len(found) - len(missing), "missing": missing}
    return content, facts


def _common(points: np.ndarray) -> str:
    characters, counts = np.unique(points, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_KNOWN]  # of equally common ones the first in Unicode
    return "".join(map(chr, characters[most].tolist()))


def _tokens(points: np.ndarray, vocabulary: str) -> np.ndarray:
    largest = max(int(points.max(initial=0)), *map(ord, vocabulary), 0)
    table = np.full(largest + 1, len(vocabulary), np.int32)
    for token, character in enumerate(vocabulary):
        table[ord(character)] = token
    return table[points]


def _sequences(tokens: np.ndarray, length: int) -> Arrays:
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
    return Arrays({"tokens": windows[::length].copy()})
