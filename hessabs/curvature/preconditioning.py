"""An operator as an adaptive optimiser sees it: between two halves of its preconditioner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature.linearization import Source
from hessabs.typing import MatVec, Operator, Params


def preconditioned(operator: MatVec, scale: Params) -> MatVec:
    """Make ``P^-1/2 A P^-1/2`` of an operator, symmetric, with the eigenvalues of ``P^-1 A``.

    Args:
      operator: A symmetric operator, as ``hessian`` makes it, or any function from a pytree to its like.
      scale: The diagonal of P, a pytree like the params, above 0: that of ``adam_scale``, say.

    Returns:
      A callable pytree; eigen-solvers take it as they take ``operator``. For a block, restrict that first.

    Raises:
      ValueError: If ``scale`` does not look like the params, or an entry is not above 0 and finite (where it is
        no traced value).

    Example:
      >>> operator = lambda v: jnp.array([1.0, 8.0]) * v
      >>> preconditioned(operator, jnp.array([1.0, 4.0]))(jnp.ones(2))
      Array([1., 2.], dtype=float32)

    References:
      Cohen et al. (2022), arXiv:2207.14484: Adam settles where the top eigenvalue of ``P^-1 H`` is
      ``(2 + 2 b1) / ((1 - b1) lr)``, 38 / lr at b1 = 0.9.
    """
    trees.check_floating(scale, "scale")
    if isinstance(operator, Operator) and isinstance(operator.source, Source):
        trees.check_like(scale, operator.source.params, "scale", "the params of `operator`")
    check_positive(scale)
    inverse_root, inner = jax.tree.map(jax.lax.rsqrt, scale), trees.as_partial(operator)
    if isinstance(operator, Operator) and operator.runs != "compiled":
        return Operator(inverse_root, (inner,), _product, operator.runs)
    return Partial(_product, inverse_root, inner)


def _product(inverse_root: Params, operator: MatVec, vector: Params) -> Params:
    def scaled(v: Params) -> Params:
        return jax.tree.map(lambda r, x: (r * x).astype(x.dtype), inverse_root, v)

    return scaled(operator(scaled(vector)))


def check_positive(scale: Params) -> None:
    """Raise ValueError if an entry of a scale is not above 0 and finite, where it is no traced value."""
    for x in () if trees.is_traced(scale) else jax.tree.leaves(scale):
        if not (np.asarray(x) > 0).all() or not np.isfinite(np.asarray(x)).all():
            raise ValueError("`scale` must be above 0 and finite everywhere; it has other entries.")


def adam_scale(opt_state: optax.OptState, *, b2: float, eps: float = 1e-8) -> Params:
    """Return what Adam divides its step by: ``sqrt(nu / (1 - b2^count)) + eps``.

    Args:
      opt_state: The state of an optax chain with one ``scale_by_adam`` in it (``adam``, ``adamw``), after an
        update at least. Not of ``adamax`` or ``optax.contrib.adopt``, whose states look the same and hold
        something else.
      b2: Its decay of squares, which the state does not hold; 0.999 is optax's default, 0.99 that of
        ``hessabs train``. A wrong one shows as long as ``b2^count`` is not small.
      eps: Its epsilon; its ``eps_root`` is taken to be 0, as by default.

    Returns:
      A pytree like the params, float; the diagonal of P for ``preconditioned``.

    Raises:
      ValueError: If there is no ``scale_by_adam`` in it or several, or no update was made.

    Example:
      >>> tx = optax.adam(0.1)
      >>> _, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
      >>> [round(float(x), 3) for x in adam_scale(state, b2=0.999)]
      [3.0, 4.0]
    """
    found = trees.nodes(opt_state, optax.ScaleByAdamState)
    if len(found) != 1:
        raise ValueError(f"`opt_state` must have one scale_by_adam in it, got {len(found)}.")
    count = found[0].count
    if not trees.is_traced(count) and int(count) == 0:
        raise ValueError("`opt_state` has made no update yet, so that Adam has no scale.")
    return jax.tree.map(lambda nu: jnp.sqrt(nu) + eps, optax.tree.bias_correction(found[0].nu, b2, count))
