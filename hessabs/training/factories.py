"""Functions of the user's own files, ``FILE.py:factory``: loaded, called, recorded in a workdir, used again.

A workdir is data: one that came from somebody else must not run code. A recorded factory is used again without
being named only if its file lies outside the workdir and has the SHA-256 that was recorded.
"""

import contextlib
import hashlib
import importlib.machinery
import inspect
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hessabs.training.fields import nearest

FACTORIES = "factories"  # the setting under which a workdir keeps where they come from, by their flags


class Origin(NamedTuple):
    """Where a factory comes from."""

    path: str  # absolute, without links
    name: str
    sha256: str  # of the file

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


class Factory(NamedTuple):
    """A function of a file."""

    function: Callable[..., Any]
    origin: Origin


def load_factory(spec: str) -> Factory:
    """Run a file, of ``FILE.py:name``, and return one of its functions; ``~`` is the home folder.

    While the file runs, it can import its neighbours, as a script can: its folder is the first place of
    ``sys.path``. Afterwards the path is what it was and the neighbours are forgotten, so that a file of another
    folder gets its own; an import inside a function, which runs later, does not find them.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"a factory is written FILE.py:NAME, got {spec!r}.")
    file = _real(pathlib.Path(path).expanduser())
    return _load(file, name, _read(file, spec))


def describe(spec: str) -> str:
    """Say which factory this is, and of which version of its file: what a run that goes on compares."""
    path, _, name = spec.rpartition(":")
    file = _real(pathlib.Path(path).expanduser())
    return f"{file}:{name} (SHA-256 {hashlib.sha256(_read(file, spec)).hexdigest()[:16]})"


def call_factory(
    factory: Factory, expect: type | tuple[type, ...] | Callable[[Any], bool], what: str, **kwargs: Any
) -> Any:
    """Call a factory; what it returns must be of a type, or pass a function that tells whether it will do.

    What it raises or returns else is named with file and line; ``what`` was expected: "a flax module" say.
    """
    call = f"{factory.origin.name}({', '.join(f'{name}={value!r}' for name, value in kwargs.items())})"
    try:
        result = factory.function(**kwargs)
    except (Exception, SystemExit) as error:
        line = _line(error, factory.origin.path) or _definition(factory)
        raise ValueError(
            f"{_at(factory.origin.path, line)}: {call} raised {_said(error)}; expected {what}."
        ) from error
    is_type = isinstance(expect, type | tuple)
    if not (isinstance(result, expect) if is_type else expect(result)):  # type: ignore[arg-type, operator]
        raise ValueError(
            f"{where(factory)}: {call} returned "
            f"{'None' if result is None else f'a {type(result).__name__}'}; expected {what}."
        )
    return result


@contextlib.contextmanager
def named_in_errors(factory: Factory) -> Iterator[None]:
    """Put file and line of a factory before what the block finds wrong with the thing that it made."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(factory.origin.path):
            raise
        raise ValueError(f"{where(factory)}: {error}") from error


def where(factory: Factory) -> str:
    """Say where a factory is defined: file and line."""
    return _at(factory.origin.path, _definition(factory))


def record(origin: Origin) -> dict[str, str]:
    """Return what a workdir keeps of a factory, for JSON."""
    return origin._asdict()


def changed(origin: Origin, recorded: Mapping[str, Any], flag: str = "--model") -> str | None:
    """Say how a factory that was named differs from the recorded one, if it does in more than its place."""
    if (origin.name, origin.sha256) == (recorded.get("name"), recorded.get("sha256")):
        return None
    if origin.path == recorded.get("path") and origin.name == recorded.get("name"):
        return f"{origin.path} has changed since the run was made with it as `{flag}`."
    return f"`{flag}` is {origin}, but the run was made with {recorded.get('path')}:{recorded.get('name')}."


def trusted(recorded: Mapping[str, Any], workdir: str | os.PathLike[str], flag: str = "--model") -> Factory:
    """Load a recorded factory that nobody has named, if a workdir from somebody else could not abuse that.

    The file itself is compared; what it imports may have changed, but does not come from the workdir either. A
    ValueError has the flag that names a factory to use all the same.
    """
    fields = recorded if isinstance(recorded, Mapping) else {}
    origin = Origin(*(value if isinstance(value := fields.get(name), str) else "" for name in Origin._fields))
    file = pathlib.Path(origin.path)
    if file.suffix != ".py" or not file.is_absolute() or not origin.name.isidentifier() or not origin.sha256:
        raise ValueError(f"the workdir's record of `{flag}` is damaged: give {flag}=FILE.py:NAME.")
    resolved = _real(file)  # what is compared is what runs, whatever a link becomes meanwhile
    if _lies_in({file, resolved}, pathlib.Path(workdir)):
        raise ValueError(
            f"`{flag}` was {origin}, a file in the workdir, which is data and runs no code by itself: read "
            f"it, and give {flag}={origin} to use it."
        )
    try:
        source = _read(resolved, str(origin))
    except ValueError:
        raise ValueError(
            f"`{flag}` was {origin}, which cannot be read here: give {flag}=FILE.py:{origin.name}."
        ) from None
    if hashlib.sha256(source).hexdigest() != origin.sha256:
        raise ValueError(
            f"{origin.path} has changed since the run was made with it as `{flag}`: give {flag}={origin} to "
            "use it as it is now."
        )
    outside = _Outside(pathlib.Path(workdir))
    sys.meta_path.insert(0, outside)
    try:
        return _load(resolved, origin.name, source)
    finally:
        sys.meta_path.remove(outside)


class _Outside(NamedTuple):
    """An importer that refuses what lies in a folder: one beside the file may have the name of a package."""

    folder: pathlib.Path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        places = (
            [] if spec is None else [spec.origin, *(f"{at}/_" for at in spec.submodule_search_locations or ())]
        )
        if _lies_in({pathlib.Path(place) for place in places if place}, self.folder):
            raise ImportError(f"the module {name} lies in the workdir, which is data and runs no code")


def _lies_in(places: set[pathlib.Path], folder: pathlib.Path) -> bool:
    # By the name and by what it leads to: neither `..` nor a link, on either side, makes a file lie outside.
    names = places | {pathlib.Path(os.path.abspath(place)) for place in places}
    parents = {parent for name in names for parent in name.parents}
    if parents & {folder, _real(folder), pathlib.Path(os.path.abspath(folder))}:
        return True
    return os.path.exists(folder) and any(os.path.samefile(p, folder) for p in parents if os.path.exists(p))


def _read(file: pathlib.Path, spec: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        there = sorted(path.name for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise ValueError(
            f"{spec!r} names {file}, which cannot be read: {error.strerror}{nearest(file.name, there)}."
        ) from None


def _load(file: pathlib.Path, name: str, source: bytes) -> Factory:
    origin = Origin(str(file), name, hashlib.sha256(source).hexdigest())
    # Classes look their module up, by a name that is no other file's.
    module = types.ModuleType(f"hessabs_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}")
    module.__file__ = str(file)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        with _neighbours(file.parent):
            exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, origin.path)
        raise ValueError(
            f"{_at(origin.path, line)}: {_said(error)}; a file that defines the function {name} was expected."
        ) from error
    if not hasattr(module, name):
        functions = [
            key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
        ]
        raise ValueError(
            f"{file} has no function {name}{nearest(name, functions) or f'; it has {sorted(functions)}'}."
        )
    function = getattr(module, name)
    if not callable(function):
        raise ValueError(f"{origin} must be a function, got a {type(function).__name__}.")
    return Factory(function, origin)


@contextlib.contextmanager
def _neighbours(folder: pathlib.Path) -> Iterator[None]:
    if folder in {_real(place) for place in sys.path}:  # they are there for everybody
        yield
        return
    path, modules = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        new = set(sys.modules) - modules
        # Not all that lies below the folder: a virtual environment may.
        theirs = {name for name in new if (folder / f"{name}.py").exists() or (folder / name).is_dir()}
        theirs = {name for name in theirs if _place(sys.modules[name]) in (folder, folder / name)}
        for name in new:
            if name.partition(".")[0] in theirs:
                del sys.modules[name]


def _place(module: types.ModuleType) -> pathlib.Path | None:
    file = getattr(module, "__file__", None)
    path = list(getattr(module, "__path__", []))  # of a folder without __init__.py
    return _real(file).parent if file else _real(path[0]) if path else None


def _real(path: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(os.path.realpath(path))


def _line(error: BaseException, path: str) -> int | None:
    """The last line of a file on the way to an error."""
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == path]
    return lines[-1] if lines else None


def _at(path: str, line: int | None) -> str:
    return path if line is None else f"{path}, line {line}"


def _definition(factory: Factory) -> int | None:
    try:
        return inspect.getsourcelines(inspect.unwrap(factory.function))[1]
    except (OSError, TypeError):
        return None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
