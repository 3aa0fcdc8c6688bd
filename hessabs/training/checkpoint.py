"""The trained network on disk, through orbax."""

import pathlib
import shutil
from typing import Any

import jax

from hessabs.training.metrics import PARAMS


def save_params(workdir: pathlib.Path, params: Any, model_state: Any) -> None:
    """Write a network into the folder of a run, whole or not at all.

    Args:
      workdir: The folder of the run; what an earlier run saved there is replaced.
      params: Its params.
      model_state: The other collections of the network, {} without any.
    """
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / PARAMS
    if folder.exists():
        shutil.rmtree(folder)
    options: dict[str, Any] = {}
    if jax.process_count() > 1:  # this one writes; the others know nothing of it
        options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=PARAMS,
        )
    with ocp.StandardCheckpointer(**options) as checkpointer:
        # From the host: the file must not remember how many devices there were.
        saved = jax.device_get({"params": params, "model_state": model_state})
        checkpointer.save(folder, saved)


def load_params(workdir: pathlib.Path, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Read the network of a finished run.

    Nothing is unpickled: the files hold arrays and their names.

    Args:
      workdir: The folder of the run.
      params: Params of the same network, whose structure, shapes and dtypes the file must have.
      model_state: Its other collections, likewise.

    Returns:
      (params, model_state) as saved.

    Raises:
      FileNotFoundError: If the folder holds no network.
    """
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / PARAMS
    if not folder.is_dir():
        raise FileNotFoundError(f"{workdir} holds no trained network ({PARAMS}): train one there first.")
    like = jax.eval_shape(lambda: {"params": params, "model_state": model_state})
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(folder, like)
    return saved["params"], saved["model_state"]
