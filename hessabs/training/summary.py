"""What a finished run says of itself."""

import platform
from importlib import metadata
from typing import Any

import jax

import hessabs
from hessabs.curvature import PowerIterationResult
from hessabs.training.run import Run
from hessabs.training.step import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def summarize(
    run: Run,
    state: TrainState,
    records: list[dict[str, Any]],
    results: dict[str, float],
    curvature: PowerIterationResult,
    seconds: float,
    seconds_compile: float,
) -> dict[str, Any]:
    """Gather the summary of a run, as JSON holds it: settings, results, compilations and versions."""
    last = records[-1]
    return {
        **run.record["config"],
        "updates": int(state.updates),
        "samples": last["samples"],
        **{name: value for name, value in last.items() if name.startswith(("test_", "ema_"))},
        **results,
        "final_batch_size": last["batch_size"],
        "eigenvalue": float(curvature.eigenvalue),
        "eigenvalue_residual": float(curvature.residual),
        "compilations": {name: count for name, count in run.functions.compilations().items() if count},
        "seconds": seconds,
        "seconds_compile": seconds_compile,
        "seconds_hessian": sum(record["seconds_hessian"] for record in records),
        "versions": {
            "hessabs": hessabs.__version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
