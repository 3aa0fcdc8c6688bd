"""Sums of products: what a batch makes in parts that each fit a memory budget, and how an operator is chosen.

Each part is weighted by what the mean of its functions is over, so parts of any size and with any mask are
exact; a part of weight 0 is not looked at. The sum is kept in at least float32.
"""

from collections import deque
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, collectives, loops, programs, trees
from hessabs.curvature.linearization import Source, make, multiply, residual_bytes
from hessabs.curvature.passes import check_mean_over_rows, is_no_mean_over_rows
from hessabs.typing import Operator, Params

Linearize = bool | Literal["auto"]
MEMORY_BUDGET = 2**30
"""Bytes of residuals that ``linearize="auto"`` keeps: 1 GiB."""


def make_operator(source: Source, linearize: Linearize, memory_budget: int) -> Operator:
    """Make an operator of its source, with ``linearize`` and ``memory_budget`` as in ``hessian``."""
    if linearize not in (True, False, "auto"):
        raise ValueError(f'`linearize` must be True, False or "auto", got {linearize!r}.')
    if not memory_budget > 0:
        raise ValueError(f"`memory_budget` must be positive, in bytes, got {memory_budget}.")
    if source.maps.value.linear is None:
        if linearize is True:
            raise ValueError(
                '`linearize=True` needs a derivative; with mode="finite_difference" leave it False.'
            )
        linearize = False
    if linearize == "auto" and residual_bytes(source) > memory_budget:
        if found := check_mean_over_rows(source, source.batch):
            raise ValueError(found)
        size = trees.Static(_examples_within(source, memory_budget))
        wrong = is_no_mean_over_rows(source, source.batch)
        return Operator(source, (size, wrong), _multiply, "called")
    return make(source, linearize=bool(linearize))


def _multiply(source: Source, size: trees.Static, wrong: jax.Array | None, vector: Params) -> Params:
    # One part of the batch after another, so that only the residuals of one exist. The last may be smaller.
    if loops.choose(None, source, vector) == "device":
        product = _jitted_split_product(source, size, vector)
        if wrong is not None:  # it was traced, and could not be refused
            product = jax.tree.map(lambda x: jnp.where(wrong, jnp.nan, x), product)
        return product
    num_examples = batch_axis.num_examples(source.batch)
    total, weights, ahead = zeros(vector), np.float32(0), deque[Any]()
    for start in range(0, num_examples, size.value):
        part = trees.Static(min(size.value, num_examples - start))
        total, weights = _jitted_add_part(source, start, part, vector, total, weights)
        loops.keep_pace(ahead, total)
    return finish(total, weights, vector)


def zeros(vector: Params) -> Params:
    """Begin a sum of products: zeros like a vector, in at least float32, on its devices."""
    # A product with zero keeps the sharding, on meshes with explicit axes too.
    return jax.tree.map(lambda x: trees.upcast(x) * 0, vector)


def weighted_product(source: Source, vector: Params) -> tuple[Params, jax.Array]:
    """Multiply with what a batch makes, times its weight (0 where that is), and return the weight."""
    weight = batch_axis.total_weight(source.weight, source.batch)
    if source.axis.value is not None and source.weight is not None:  # the product is the mean over devices
        weight = collectives.psum(weight, source.axis.value)
    product = jax.tree.map(trees.upcast, multiply(source, None, vector))
    return jax.tree.map(lambda p: jnp.where(weight != 0, weight.astype(p.dtype) * p, 0), product), weight


def add(source: Source, vector: Params, total: Params, weights: jax.Array) -> tuple[Params, jax.Array]:
    """Add the batch of a source to a sum of products and its weight to the sum of weights."""
    product, weight = weighted_product(source, vector)
    return jax.tree.map(jnp.add, total, product), weights + weight


@programs.jit
def finish(total: Params, weights: Any, like: Params) -> Params:
    """Divide a sum of products by the sum of weights, in the dtypes of a vector."""
    return jax.tree.map(lambda t, x: (t / weights).astype(x.dtype), total, like)


def _add_part(
    source: Source, start: Any, size: trees.Static, vector: Params, total: Params, weights: jax.Array
) -> tuple[Params, jax.Array]:
    part = batch_axis.map_examples(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size.value), source.batch)
    return add(source._replace(batch=part), vector, total, weights)


def _split_product(source: Source, size: trees.Static, vector: Params) -> Params:
    num_examples = batch_axis.num_examples(source.batch)
    whole, rest = divmod(num_examples, size.value)

    def step(i: Any, sums: tuple[Params, jax.Array]) -> tuple[Params, jax.Array]:
        return _add_part(source, i * size.value, size, vector, *sums)

    sums = jax.lax.fori_loop(0, whole, step, (zeros(vector), jnp.zeros(())))
    if rest:
        sums = _add_part(source, num_examples - rest, trees.Static(rest), vector, *sums)
    return finish(*sums, vector)


_jitted_add_part = programs.jit(_add_part)
_jitted_split_product = programs.jit(_split_product)


def _examples_within(source: Source, memory_budget: int) -> int:
    size = batch_axis.num_examples(source.batch)
    while size > 1:
        size = (size + 1) // 2
        part = batch_axis.map_examples(
            lambda x, size=size: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), source.batch
        )
        if residual_bytes(source._replace(batch=part)) <= memory_budget:
            break
    return size
