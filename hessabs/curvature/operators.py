"""Hessian-vector products, as functions and as operators.

The product is forward-over-reverse, ``jax.jvp`` over ``jax.grad``: one product costs about two gradients
(Pearlmutter, "Fast exact multiplication by the Hessian", 1994). With ``linearize=True`` the part that does not
depend on the vector is computed once and kept, and a product costs about 1.4 gradients, for the memory of the
residuals.

With ``axis_name`` the loss is averaged inside the differentiated function AND the result once more: this is
right under ``pmap`` and under ``shard_map`` with and without varying-axes checks (in the latter differentiation
already inserts the sum, and averaging equal values changes nothing).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial

from hessabs import collectives, trees
from hessabs.typing import Batch, LossFn, MatVec, Params


def hvp(
    loss_fn: LossFn, params: Params, batch: Batch, vector: Params, *, axis_name: str | None = None
) -> Params:
    """Multiply the Hessian of a loss with a vector.

    Computes ``(d^2 L / d params^2) vector`` by forward-over-reverse differentiation, about the cost of two
    gradients.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batch: What the loss takes; with ``axis_name``, this device's equal share.
      vector: A pytree like ``params``, in its dtypes; with ``axis_name``, the same on every device.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: If ``vector`` does not look like ``params``, a param is no floating-point array, or the loss is
        no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> hvp(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    _check_params(params)
    trees.check_like(vector, params, "vector", "params")
    gradient = jax.grad(_mean_loss(loss_fn, batch, axis_name))
    return collectives.pmean(jax.jvp(gradient, (params,), (vector,))[1], axis_name)


def hessian(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    linearize: bool = False,
    axis_name: str | None = None,
) -> MatVec:
    """Make the Hessian of a loss an operator: a callable that is also a pytree.

    The operator may be passed into a jitted function. As long as ``loss_fn`` is the same function (or a
    ``Partial`` of the same function) and the shapes stay, new params, a new batch or new bound arrays compile
    nothing again.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batch: What the loss takes; with ``axis_name``, this device's equal share.
      linearize: If True, linearise the gradient once and store the residuals: products cost about 1.4
        gradients instead of 2, for memory that grows with the batch.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A ``jax.tree_util.Partial``: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError: If a param is no floating-point array or the loss is no scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> operator = hessian(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> jax.jit(lambda matvec, v: matvec(v))(operator, jnp.ones(2))
      Array([1., 4.], dtype=float32)
    """
    _check_params(params)
    loss, axis = trees.as_partial(loss_fn), trees.Static(axis_name)
    if not linearize:
        return Partial(_product, loss, params, batch, axis)
    # Under a mapped axis there is no entering jit: the axis is bound outside of it.
    linearize_fn = _linearize if axis_name is None else _linearize.__wrapped__
    return Partial(_linearized_product, linearize_fn(loss, params, batch, axis), axis)


def _product(loss_fn: LossFn, params: Params, batch: Batch, axis: trees.Static, vector: Params) -> Params:
    return hvp(loss_fn, params, batch, vector, axis_name=axis.value)


class _Linearization(NamedTuple):
    residuals: list[jax.Array]  # the constants of the jaxpr
    jaxpr: trees.Static  # Jaxpr of the linear map, leaves in, leaves out
    like: trees.Static  # (structure of params, its ShapeDtypeStructs)


@jax.jit
def _linearize(loss_fn: LossFn, params: Params, batch: Batch, axis: trees.Static) -> _Linearization:
    # What `jax.linearize` returns is no pytree and cannot leave jit. Its jaxpr can: the residuals are the
    # jaxpr's constants, returned as arrays, and the jaxpr itself rides in the structure of the output. jit
    # caches the output's structure with the trace, so the same jaxpr object comes back for new params.
    _, linear_map = jax.linearize(jax.grad(_mean_loss(loss_fn, batch, axis.value)), params)
    leaves, treedef = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda *x: jax.tree.leaves(linear_map(treedef.unflatten(x))))(*leaves)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    return _Linearization(list(closed.consts), trees.Static(closed.jaxpr), trees.Static((treedef, shapes)))


def _linearized_product(linearization: _Linearization, axis: trees.Static, vector: Params) -> Params:
    treedef, shapes = linearization.like.value
    trees.check_like(vector, treedef.unflatten(shapes), "vector", "params")
    closed = ClosedJaxpr(linearization.jaxpr.value, linearization.residuals)
    leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(vector))
    return collectives.pmean(treedef.unflatten(leaves), axis.value)


def _mean_loss(loss_fn: LossFn, batch: Batch, axis_name: str | None) -> Any:
    def mean_loss(params: Params) -> jax.Array:
        loss = loss_fn(params, batch)
        if jnp.shape(loss) != ():
            raise ValueError(
                f"`loss_fn` must return a scalar, the mean over the batch, got shape {jnp.shape(loss)}."
            )
        return collectives.pmean(loss, axis_name)

    return mean_loss


def _check_params(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"`params` must hold floating-point arrays, got {dtype} at "
                f"{jax.tree_util.keystr(path) or 'the root'}; bind other arrays with jax.tree_util.Partial."
            )
