"""Passes over the batches of a data set, and whether a loss is the mean over the rows of one.

What is summed over batches and over parts takes it to be. A loss that divides by something else (unmasked
tokens, valid rows) gives another mean, without a word: cutting a batch in two shows it.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, programs, trees
from hessabs.curvature.linearization import Source
from hessabs.typing import Batch

Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]
"""An iterable of batches, or a function without arguments that returns one."""

_EMPTY = "The data set is empty: iterating over `batches` gave no batch."
_ROWS = 64  # of a batch that are looked at, an even number


def one_pass(batches: Batches) -> Iterator[Batch]:
    """Read batches once; an iterator will do."""
    _check(batches)
    yield from _some(batches, _EMPTY)


class Passes:
    """Batches that are read again and again; ``passes()`` starts one more pass.

    It remembers that there were batches, and so knows that a later pass without any is the second one over what
    can be read only once; and whether a loss was ``checked`` on them.
    """

    def __init__(self, batches: Batches) -> None:
        _check(batches)
        if isinstance(batches, Iterator):
            raise ValueError(_only_once(batches, "can be read only once"))
        self._batches = batches
        self._read = False
        self.checked = False

    def __call__(self) -> Iterator[Batch]:
        exhausted = _only_once(self._batches, "gave batches in one pass and none in the next")
        for batch in _some(self._batches, exhausted if self._read else _EMPTY):
            self._read = True
            yield batch


def read(passes: Passes, source: Source) -> Iterator[Batch]:
    """Read all batches, and warn the first time where the loss is not the mean over the rows of one."""
    first, batch = True, None
    for batch in passes():
        if first:
            _warn(passes, source, batch)
        first = False
        yield batch
    _warn(passes, source, batch)  # the one that may be padded
    passes.checked = True


def check_mean_over_rows(source: Source, batch: Any) -> str | None:
    """Compare the loss of a batch with the mean of those of its halves, by rows, and say what is wrong."""
    if source.weight is not None or trees.is_traced(source, batch):
        return None
    with jax.ensure_compile_time_eval():  # whatever the caller is traced by
        losses = _by_rows(source, batch)
        if losses is None or trees.is_traced(losses) or not bool(_differ(source, *losses)):
            return None
    whole, halves, _ = map(float, losses)
    return (
        f"The loss of a batch is not the mean of those of its halves, by rows: {whole:.6g} against "
        f"{halves:.6g}. Give `weight=` what it divides by where that is not the number of rows "
        '(weight=lambda batch: batch["mask"]); divide by the number of rows where it is a sum. If rows '
        "influence each other (batch norm in training mode) or it draws random numbers, "
        "`weight=hessabs.batch_axis.num_examples` says that the mean over batches is meant."
    )


def is_no_mean_over_rows(source: Source, batch: Any) -> jax.Array | None:
    """Compare them where values are traced: a flag that is known once the program runs, None for nothing."""
    if source.weight is not None or not trees.is_traced(source, batch):
        return None
    losses = _by_rows(source, batch)
    return None if losses is None else _differ(source, *losses)


def _by_rows(source: Source, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """Return the loss of rows of a batch, the mean of those of the rows' halves, and the size of the largest of
    all of these, where that can be said.
    """
    size = batch_axis.num_examples(batch)
    if size < 2:
        return None
    # Rows from all over the batch, the last one among them: it may be padding.
    places = np.linspace(0, size - 1, min(size - size % 2, _ROWS)).astype(int)
    cuts = (*np.split(places, 2), places[::2], places[1::2])  # a mask may be even over the halves
    try:
        whole, *parts = (
            _loss(source._replace(batch=batch_axis.map_examples(lambda x, rows=rows: x[rows], batch)))
            for rows in (places, *cuts)
        )
    except Exception:
        return None  # a loss that takes no other number of rows; what is wrong with it the product says
    halves = [(first + second) / 2 for first, second in (parts[:2], parts[2:])]
    nearer = jnp.abs(whole - halves[1]) <= jnp.abs(whole - halves[0])  # NaN, 0 / 0 of a half, is not
    sizes = jnp.abs(jnp.stack([whole, *parts]))
    largest = jnp.max(sizes, where=jnp.isfinite(sizes), initial=0)
    return whole, jnp.where(nearer, halves[0], halves[1]), largest


def _differ(source: Source, whole: jax.Array, halves: jax.Array, largest: jax.Array) -> jax.Array:
    # Losses in bfloat16 have two digits. A half without anything that counts may be 0 / 0. Losses of both signs
    # may cancel in the mean, but hardly in all of the halves.
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(source.params))
    same = jnp.abs(whole - halves) <= 4 * eps**0.5 * largest
    return jnp.isfinite(whole) & ~same


def _warn(passes: Passes, source: Source, batch: Batch) -> None:
    if not passes.checked and (found := check_mean_over_rows(source, batch)):
        passes.checked = True
        warnings.warn(found, stacklevel=4)


@programs.jit
def _loss(source: Source) -> jax.Array:
    # A loss of params, or a loss of the outputs of a model.
    model_or_loss, *loss = source.functions
    value = model_or_loss(source.params, source.batch)
    return loss[0](value, source.batch) if loss else value


def _some(batches: Any, otherwise: str) -> Iterator[Batch]:
    # Batches, of which there must be at least one.
    if not _is_iterable(batches):
        batches = batches()
        if not _is_iterable(batches):
            kind = type(batches).__name__
            raise ValueError(f"`batches` must return an iterable of batches, but returned {kind}.")
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError(otherwise)


def _only_once(batches: Any, what: str) -> str:
    return (
        f"`batches` must start anew at each product, but {type(batches).__name__} {what}; pass a list, an "
        "object whose __iter__ starts again, or a function that opens the data (`lambda: iter(loader)`)."
    )


def _check(batches: Any) -> None:
    got, want = type(batches).__name__, "`batches` must be an iterable of batches"
    if isinstance(batches, Mapping):
        raise ValueError(f"{want}, got a {got}; `[batch]` for one.")
    if hasattr(batches, "ndim"):  # its rows would be batches
        raise ValueError(f"{want}, got an array of shape {batches.shape}; `[batch]` for one.")
    if not (_is_iterable(batches) or callable(batches)):
        raise ValueError(f"{want}, or a function that returns one, got {got}.")


def _is_iterable(x: Any) -> bool:
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")
