"""Where a number came from: the commit and the processor."""

import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def commit() -> str:
    """Name the commit of this checkout; "-dirty" if the library differs from it."""
    changed = _git("status", "--porcelain", "--", "hessabs")
    return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def hardware() -> str:
    """Describe the processor of this machine, with its number of cores."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
