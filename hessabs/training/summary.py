"""What a finished run says of itself."""

import platform
from importlib import metadata
from typing import Any

import jax

import hessabs
from hessabs.curvature import PowerIterationResult
from hessabs.training.setup import Run
from hessabs.training.state import TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def summarize(
    run: Run,
    state: TrainState,
    records: list[dict[str, Any]],
    curvature: PowerIterationResult,
    seconds: float,
    seconds_compile: float,
) -> dict[str, Any]:
    """Gather the summary of a run.

    Args:
      run: The run.
      state: Its last state.
      records: Its epochs.
      curvature: The top eigenvalue at the end.
      seconds: Seconds that the run took, compilation included.
      seconds_compile: Those of them that went into tracing and compiling.

    Returns:
      A dictionary that JSON can hold: every setting under its name, results, compilations and versions.
    """
    return {
        **run.config._asdict(),
        "updates": int(state.updates),
        "samples": records[-1]["samples"],
        "test_accuracy": records[-1]["test_accuracy"],
        **{name: accuracy(state) for name, accuracy in run.final.items()},
        "final_batch_size": records[-1]["batch_size"],
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
