"""The trained network on disk, through orbax: params, the state of the model, and an average of the params."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hessabs.training.files import PARAMS
from hessabs.training.processes import on_first, tree_of_first


def save_network(workdir: pathlib.Path, network: dict[str, Any]) -> None:
    """Write a network, arrays of the host, whole or not at all; one of an earlier run is replaced."""
    folder = workdir.absolute() / PARAMS
    for path in (folder, *folder.parent.glob(f"{PARAMS}.*tmp*")):  # what a full disk left, too
        if path.exists():
            shutil.rmtree(path)
    try:
        with ocp.StandardCheckpointer(**one_process(PARAMS)) as checkpointer:
            checkpointer.save(folder, network)
    except Exception as error:  # TensorStore's errors have no class of their own
        raise OSError(
            f"The trained params could not be written in `workdir` {workdir}: {reason(error)}; make room and "
            "go on with --resume."
        ) from error


def load_network(workdir: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
    """Read the network of a finished run; of several processes all must call, the first reads.

    ``like`` holds ``params`` and ``model_state``, or ``average`` and ``average_state``, or all of these, of the
    same network: their structure, shapes and dtypes are those that the file must have. Nothing is unpickled:
    the files hold arrays and their names. FileNotFoundError: there is no network, or no average; ValueError: it
    is another one.
    """
    folder = workdir.absolute() / PARAMS
    saved: dict[str, Any] = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)

    def read() -> None:
        nonlocal saved
        if not folder.is_dir():
            raise FileNotFoundError(f"{workdir} holds no trained network ({PARAMS}): train one there first.")
        with ocp.StandardCheckpointer(**one_process(PARAMS)) as checkpointer:
            there = checkpointer.metadata(folder).item_metadata
            missing = set(like) - set(there)
            if missing:
                raise FileNotFoundError(
                    f"{workdir} holds no {', '.join(sorted(missing))} of the params: train with --ema for one."
                )
            # Orbax wants all that is there.
            rest = {name: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), there[name]) for name in there}
            try:
                whole = checkpointer.restore(folder, {**rest, **saved})
            except ValueError as error:
                found = _other_paths({name: there[name] for name in like}, like) or f"{reason(error)}."
                raise ValueError(f"{workdir} holds another network than the task says: {found}") from error
        _check_shapes(workdir, {name: whole[name] for name in like}, like)
        saved = {name: jax.tree.map(np.asarray, whole[name]) for name in like}

    on_first(read)
    return tree_of_first(saved)


def _other_paths(there: Any, like: Any) -> str:
    """Name the first path of a network that the task has not, and the other way; nothing if there is none."""
    ours, theirs = (
        [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        for leaves in map(jax.tree_util.tree_leaves_with_path, (like, there))
    )
    only = [
        f"{first} is only {where}"
        for one, other, where in ((theirs, ours, "in the folder"), (ours, theirs, "in the task"))
        for first in [path for path in one if path not in {*other}][:1]
    ]
    return f"{', '.join(only)}." if only else ""


def _check_shapes(workdir: pathlib.Path, got: Any, like: Any) -> None:
    for (path, wanted), found in zip(
        jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(got), strict=True
    ):
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{workdir} holds another network than the task says: {where} is "
                f"{found.dtype}{list(found.shape)} there and {wanted.dtype}{list(wanted.shape)} in the task."
            )


def reason(error: Exception) -> str:
    """Return the first line of an error, without the specification that TensorStore adds in brackets."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]


def one_process(name: str) -> dict[str, Any]:
    """Say to orbax, in keyword arguments, that this process alone knows of ``name``, another one each time."""
    if jax.process_count() == 1:
        return {}
    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix=name
    )
    return {"multiprocessing_options": options}
