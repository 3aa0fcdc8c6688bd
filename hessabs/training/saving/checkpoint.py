"""The trained network on disk, through orbax."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from hessabs.training.devices.sharing import on_first, tree_of_first
from hessabs.training.metrics import PARAMS


def save_params(workdir: pathlib.Path, params: Any, model_state: Any) -> None:
    """Write a network into the folder of a run, whole or not at all.

    Args:
      workdir: The folder of the run; what an earlier run saved there is replaced.
      params: Its params.
      model_state: The other collections of the network, {} without any.

    Raises:
      OSError: If it could not be written.
    """
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / PARAMS
    for path in (folder, *folder.parent.glob(f"{PARAMS}.*tmp*")):  # what a full disk left, too
        if path.exists():
            shutil.rmtree(path)
    # From the host: the file must not remember how many devices there were.
    saved = jax.device_get({"params": params, "model_state": model_state})
    try:
        with ocp.StandardCheckpointer(**alone(PARAMS)) as checkpointer:
            checkpointer.save(folder, saved)
    except Exception as error:  # TensorStore's errors have no class of their own
        raise OSError(
            f"The trained params could not be written in `workdir` {workdir}: {reason(error)}; make room and "
            "go on with --resume."
        ) from error


def load_params(workdir: pathlib.Path, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Read the network of a finished run.

    Nothing is unpickled: the files hold arrays and their names. Of several processes all must call; the first
    reads.

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
    like = {"params": params, "model_state": model_state}
    saved = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)

    def read() -> None:
        nonlocal saved
        if not folder.is_dir():
            raise FileNotFoundError(f"{workdir} holds no trained network ({PARAMS}): train one there first.")
        several = jax.process_count() > 1  # on the host, for the others wait for it
        with ocp.StandardCheckpointer(**alone(PARAMS)) as checkpointer:
            saved = checkpointer.restore(folder, saved if several else jax.eval_shape(lambda: like))

    on_first(read)
    saved = tree_of_first(saved)
    return saved["params"], saved["model_state"]


def reason(error: Exception) -> str:
    """Return what an error of orbax or TensorStore says, in one line.

    Args:
      error: The error.

    Returns:
      Its first line, without the specification of what TensorStore opened, which it adds in brackets.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]


def alone(name: str) -> dict[str, Any]:
    """Say to orbax that this process reads and writes, and the others know nothing of it.

    Args:
      name: What it reads or writes, another name for each.

    Returns:
      Keyword arguments for orbax's classes; none where there is one process.
    """
    if jax.process_count() == 1:
        return {}
    import orbax.checkpoint as ocp

    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=name,
    )
    return {"multiprocessing_options": options}
