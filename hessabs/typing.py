"""The conventions of the library, and the types that carry them.

* A **loss** is ``loss_fn(params, batch) -> scalar``, the MEAN over the batch. A batch is a pytree whose
  leaves share a leading example axis; scalars and random keys among them belong to the whole batch. A loss
  that is a mean over something else (unmasked tokens, valid rows) says so where batches, parts of a batch or
  shares of devices are summed: ``weight(batch)`` is what it divides by, or an array whose sum that is.
* Arrays that a loss needs beside the params (batch norm statistics, say) are bound with
  ``jax.tree_util.Partial(loss_fn, ...)``: they are then traced arguments, not constants, so new values
  never recompile anything.
* An **operator** is a callable AND a pytree: an ``Operator``, as this library makes them, or your own
  ``jax.tree_util.Partial`` of a module-level function. It can be passed into a jitted function; new params or
  a new batch of the same shapes compile nothing again.
* An **attack** is ``attack(loss_fn, params, batch, key=None) -> batch``, in the units of the batch (an
  image of the training loop is float32 in [0, 1]).
* Random keys are arguments (``jax.random.key``), never defaults. The caller's dtype is kept; the scalars
  of a state are float32, int32 or bool arrays.
* ``axis_name`` names a mapped axis (``pmap``, ``shard_map``, ``vmap``) over which batches are split and
  params are replicated. Under ``jit`` with ``NamedSharding`` it stays None.
* Python values raise ``ValueError`` at construction, with what was got; structures raise at trace time,
  showing both sides; traced values never raise: they show in the result (residuals, ``converged``).
* The progress of a training run is counted in **examples**, the one clock that does not change its pace
  when the batch grows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import jax
import optax

Params: TypeAlias = optax.Params
"""A pytree of floating-point arrays."""

Batch: TypeAlias = optax.Params  # the same kind of tree
"""A pytree of arrays that share a leading example axis, but for scalars and random keys."""

LossFn: TypeAlias = Callable[[Params, Any], jax.Array]
"""``loss_fn(params, batch) -> scalar``, the mean over the batch."""

MatVec: TypeAlias = Callable[[Any], Any]
"""A linear map from a pytree to a pytree of the same structure."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("source", "rest"), meta_fields=("product", "runs")
)
@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear map: ``operator(vector)`` is ``product(source, *rest, vector)``."""

    source: Any  # what it is made of; another one makes the same kind of operator of something else
    rest: tuple[Any, ...]  # what else the product takes: residuals, the size of parts, where batches are read
    product: Callable[..., Any]  # a module-level function
    # A loop that Python drives compiles it together with an iteration, or calls it; only such a loop may call
    # one that reads its data in Python.
    runs: Literal["compiled", "called", "in Python"] = "compiled"

    def __call__(self, vector: Any) -> Any:
        """Multiply."""
        return self.product(self.source, *self.rest, vector)


class Attack(Protocol):
    """``attack(loss_fn, params, batch, key=None) -> batch``: inputs perturbed, other leaves untouched."""

    def __call__(self, loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any: ...
