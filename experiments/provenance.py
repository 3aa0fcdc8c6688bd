"""Where a number came from: the commit and the hardware."""

import os
import pathlib
import platform
import shutil
import subprocess

import jax

ROOT = pathlib.Path(__file__).parents[1]


def commit() -> str:
    """Name the commit of this checkout."""
    if "HESSABS_COMMIT" in os.environ:
        return os.environ["HESSABS_COMMIT"]
    if not (shutil.which("git") and _git("rev-parse", "HEAD")):
        return "unknown"
    changed = _git("status", "--porcelain", "--", "hessabs")
    return _git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def hardware() -> str:
    """Describe the hardware."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}, {_processor()}"
    return _processor()


def platform_suffix() -> str:
    """Say what a file of measurements adds to its name."""
    backend = jax.default_backend()
    return "" if backend == "cpu" else f"_{backend}"


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
