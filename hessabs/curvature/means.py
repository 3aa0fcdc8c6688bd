"""Is a loss the mean over the rows of a batch? What is summed over batches and over parts takes it to be.

A loss that divides by something else (unmasked tokens, valid rows) gives another mean, without a word. Cutting
a batch in two shows it.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, programs, trees
from hessabs.curvature.linearization import Source
from hessabs.curvature.passes import Passes
from hessabs.typing import Batch

_ROWS = 64  # of a batch that are looked at, an even number


def check_mean_over_rows(source: Source, batch: Any) -> str | None:
    """Compare the loss of a batch with the mean of those of its halves, by rows."""
    if source.weight is not None or trees.is_traced(source, batch):
        return None
    size = batch_axis.num_examples(batch)
    if size < 2:
        return None
    # Rows from all over the batch, the last one among them: it may be padding.
    places = np.linspace(0, size - 1, min(size - size % 2, _ROWS)).astype(int)
    try:
        whole, first, second = (
            float(_loss(source._replace(batch=batch_axis.map_examples(lambda x, rows=rows: x[rows], batch))))
            for rows in (places, *np.split(places, 2))
        )
    except Exception:
        return None  # a loss that takes no other number of rows; what is wrong with it the product says
    halves = (first + second) / 2
    # Losses in bfloat16 have two digits. A half without anything that counts may be 0 / 0.
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(source.params))
    if not np.isfinite(whole) or abs(whole - halves) <= 4 * eps**0.5 * max(abs(whole), abs(halves)):
        return None
    return (
        f"The loss of a batch is not the mean of those of its halves, by rows: {whole:.6g} against "
        f"{halves:.6g}. Give `weight=` what it divides by where that is not the number of rows "
        '(weight=lambda batch: batch["mask"]); divide by the number of rows where it is a sum. If rows '
        "influence each other (batch norm in training mode) or it draws random numbers, "
        "`weight=hessabs.batch_axis.num_examples` says that the mean over batches is meant."
    )


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


def _warn(passes: Passes, source: Source, batch: Batch) -> None:
    found = None if passes.checked else check_mean_over_rows(source, batch)
    if found:
        passes.checked = True
        warnings.warn(found, stacklevel=4)


@programs.jit
def _loss(source: Source) -> jax.Array:
    # A loss of params, or a loss of the outputs of a model.
    model_or_loss, *loss = source.functions
    value = model_or_loss(source.params, source.batch)
    return loss[0](value, source.batch) if loss else value
