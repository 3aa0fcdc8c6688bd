"""A saved state on another number of devices: the rows of ``hessabs.training.devices.rows``, on the host."""

import numpy as np

from hessabs.training.devices.mesh import all_rows
from hessabs.training.devices.rows import AVERAGED, PER_DEVICE, SPLIT, SUMMED


def saved_shape(name: str, shape: tuple[int, ...], now: int, saved: int) -> tuple[int, ...]:
    """Say which shape an array has that was saved on other devices.

    Args:
      name: Its path, ``train.FIELD...`` for those that have rows.
      shape: Its shape in this run.
      now: Devices of this run.
      saved: Devices of the run that saved it.

    Returns:
      Its shape there: with a leading row for each of several devices, if the field has rows.

    Example:
      >>> saved_shape("train.gradient.bias", (4, 10), 4, 1), saved_shape("train.params.bias", (10,), 4, 1)
      ((10,), (10,))
    """
    if not _has_rows(name):
        return shape
    one = shape[1:] if now > 1 else shape
    return (saved, *one) if saved > 1 else one


def regroup(name: str, array: np.ndarray, now: int, saved: int, *, dealt: bool = True) -> np.ndarray:
    """Give an array the rows of another number of devices: sums on the first, means and maxima on all.

    Args:
      name: Its path.
      array: As it was saved.
      now: Devices of this run.
      saved: Devices of the run that saved it.
      dealt: Whether the examples of a batch are dealt out to the devices: what goes with them is dealt anew.

    Returns:
      The array with the shape of this run.

    Example:
      >>> regroup("train.weight", np.array([8.0, 4.0]), 3, 2)
      array([12.,  0.,  0.])
    """
    if now == saved:
        return array
    if _field(name) in SPLIT:
        places = all_rows(len(array), saved, dealt=dealt)
        return array[np.argsort(places)][all_rows(len(array), now, dealt=dealt)]
    if not _has_rows(name):
        return array
    field = _field(name)
    if saved > 1 and field in SUMMED:
        array = array.sum(0, dtype=array.dtype)
    elif saved > 1:
        averaged = field in AVERAGED and np.issubdtype(array.dtype, np.floating)
        array = array.mean(0, dtype=array.dtype) if averaged else array.max(0)
    if now == 1:
        return np.asarray(array)
    rows = np.broadcast_to(array, (now, *array.shape)).copy()
    if field in SUMMED:
        rows[1:] = 0
    return rows


def _has_rows(name: str) -> bool:
    return _field(name) in PER_DEVICE


def _field(name: str) -> str:
    tree, _, rest = name.partition(".")
    return rest.split(".")[0] if tree == "train" else ""
