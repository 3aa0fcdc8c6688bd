"""The command line: ``hessabs COMMAND``, a file of this package for each command.

Every flag of a command is a field of its config, so that a script, a test and a shell say the same thing.
Input that cannot be used ends in one line on standard error and exit status 2, Ctrl-C in one line and 130.
"""

import contextlib
import functools
import importlib
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from absl import flags

from hessabs.cli.flags import config_flags, parse, refuse

COMMANDS = {
    "train": "train a network with a batch size that follows the curvature",
    "data": "the prepared data sets: list them, or prepare one",
    "advise": "a rate, a first batch and how it may grow, from minutes of trials",
    "plan": "batch size, learning rate and updates by epoch, without training",
    "watch": "curves of a run, or of several, in the terminal, while they train",
    "report": "one HTML page of all the runs in a folder",
    "predict": "the classes of images by a network that was trained, with their probabilities",
    "evaluate": "the loss and metrics of a network that was trained",
    "attack": "the accuracy of a network that was trained under attacks, by epsilon",
    "spectrum": "the Hessian eigenvalues of a network that was trained",
}
"""Each command by name. The module ``hessabs.cli.NAME`` holds its ``SETTINGS``, ``main(values, *words) -> exit
status`` and, if it takes words that are no flags, ``WORDS``: what the usage calls them."""

_GOES_ON = "what was finished is kept, and the same command goes on from there."
_AFTER_CTRL_C = {  # what is true at any moment of a command; of those not named: it keeps nothing on the way
    "train": "what was finished is kept, and `hessabs train --resume` goes on from there.",
    "attack": _GOES_ON,
    "spectrum": _GOES_ON,
    "watch": "no longer watching; what is running goes on.",
}


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line of this process, or these words in its place, and exit."""
    argv = sys.argv[1:] if argv is None else argv
    # Before JAX is imported, which takes a second.
    signal.signal(signal.SIGINT, functools.partial(_end, _interrupted(argv)))
    _keep_programs()
    try:
        status = main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `| head` say, has seen enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # Python flushes both when it ends
            os.dup2(nowhere, stream.fileno())
        status = 0
    sys.exit(status)


def _keep_programs() -> None:
    """Have JAX keep what it compiles for the next command, unless the environment says where."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hessabs")
    with contextlib.suppress(OSError, RuntimeError):  # there may be no home, or none to write to
        folder = folder.expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _interrupted(argv: Sequence[str]) -> str:
    """Say what Ctrl-C ends, and how to go on."""
    if not argv or argv[0] not in COMMANDS:
        return "interrupted."
    return f"interrupted; {_AFTER_CTRL_C.get(argv[0], 'the same command begins anew.')}"


def _end(line: str, signum: int, frame: FrameType | None) -> None:
    # At once, for KeyboardInterrupt gets lost in callbacks of JAX, and waits for threads that compile. Nothing
    # is at stake: files are written whole or not at all, and a training has handlers of its own.
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"hessabs: {line}\n".encode())
    os._exit(128 + signum)


def main(argv: Sequence[str]) -> int:
    """Run a command: its name and its flags, without the name of the program; return the exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    name, *arguments = argv
    if name in ("--version", "version"):
        print(f"hessabs {importlib.import_module('hessabs').__version__}")
        return 0
    if name not in COMMANDS:
        return refuse(f"unknown command {name!r}; the commands are: {', '.join(COMMANDS)}.")
    try:
        # Imported when it is asked for: `hessabs --help` needs neither data nor a network.
        command = importlib.import_module(f"hessabs.cli.{name}")
        values = config_flags(*command.SETTINGS)
        words = parse(values, name, arguments, getattr(command, "WORDS", None))
        status: int = 0 if words is None else command.main(values, *words)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        return refuse(_with_extra(error))
    except (RuntimeError, AssertionError):  # JAX's own where a platform is not there
        problem = _platform_problem()
        if problem is None:
            raise
        return refuse(problem)
    return status


def _with_extra(error: Exception) -> Exception | str:
    """Say what to install where a package of the extra `train` is missing."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in ("flax", "markdown_it", "matplotlib", "orbax", "rich", "tensorboardX", "tqdm"):
        return f'{missing} is not installed, which the commands need: pip install "hessabs[train]"'
    return error


def _platform_problem() -> str | None:
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split(" (set JAX_PLATFORMS")[0].rstrip(".") or "JAX has no such platform here"
        return (
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} cannot be used: {reason}. Unset it to "
            "run on what is there, or install JAX for that platform (`jax[cuda]` for NVIDIA GPUs)."
        )
    return None


def usage() -> str:
    """Say which commands there are."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}s}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: hessabs COMMAND [--flag=value ...]   (or: python -m hessabs; hessabs --version)\n\n"
        f"commands:\n{lines}\n\n`hessabs COMMAND --help` lists the flags of a command."
    )
