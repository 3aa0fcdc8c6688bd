"""Curvature layer by layer: the diagonal blocks of an operator, in numbers."""

from typing import NamedTuple

import jax

from hessabs import loops, trees
from hessabs.curvature.blocks import block_params, restrict
from hessabs.curvature.eigsh import eigsh
from hessabs.curvature.layers import IsLayer, layers
from hessabs.curvature.trace import Estimate, frobenius_norm, trace
from hessabs.paths import Where
from hessabs.typing import MatVec, Params


class LayerCurvature(NamedTuple):
    """The block of one layer."""

    layer: str  # the path of the layer, keys joined with "/"
    num_params: int
    largest: float  # largest eigenvalue
    smallest: float  # smallest eigenvalue
    converged: bool  # whether both reached `rtol`
    trace: Estimate
    frobenius_norm: Estimate


def layer_table(
    operator: MatVec,
    params: Params,
    key: jax.Array,
    *,
    is_layer: IsLayer | None = None,
    stacked: Where | None = None,
    rtol: float = 1e-2,
    max_matvecs: int = 200,
    num_probes: int = 30,
    loop: loops.Loop | None = None,
) -> list[LayerCurvature]:
    """Measure the block of every layer: extreme eigenvalues, trace and Frobenius norm.

    A layer is what ``hessabs.curvature.layers`` finds: kernel and bias of a ``Dense``, say.

    Args:
      operator: From ``hessian``, ``gauss_newton`` and the like, or any callable on trees like ``params``. Each
        block is made as ``restrict`` makes it: a linearised operator is linearised once more for each layer.
      params: The params of the operator.
      key: A random key.
      is_layer, stacked: What a layer is, as in ``layers``; each of a stack gets its own row.
      rtol: Relative residual of the eigenvalues.
      max_matvecs: Largest number of products for the two eigenvalues of a layer.
      num_probes: Products for the trace, and again for the norm.
      loop: Where it runs; see ``hessabs.loops``.

    Returns:
      One ``LayerCurvature`` a layer, in the order of the tree.

    Raises:
      ValueError: As ``layers``, ``restrict`` and ``eigsh``.

    Example:
      >>> from hessabs import curvature
      >>> params = {"a": {"w": jax.numpy.ones(2)}, "b": {"w": jax.numpy.ones(1)}}
      >>> loss = lambda p, x: x[0] * (p["a"]["w"] ** 2).sum() + (p["b"]["w"] ** 4).sum()
      >>> table = layer_table(curvature.hessian(loss, params, jax.numpy.ones(1)), params, jax.random.key(0))
      >>> [(row.layer, round(row.largest, 3), float(row.trace.value)) for row in table]
      [('a', 2.0, 4.0), ('b', 12.0, 12.0)]
    """
    found = layers(params, is_layer, stacked=stacked)
    rows = []
    for layer, one in zip(found.values(), jax.random.split(key, len(found)), strict=True):
        start_key, trace_key, norm_key = jax.random.split(one, 3)
        block = restrict(operator, params, layer)
        like = block_params(params, layer)
        size = sum(x.size for x in jax.tree.leaves(like))
        start = trees.normal_like(start_key, like)
        ends = eigsh(
            block, start, min(2, size), which="BE", rtol=rtol, max_matvecs=max(max_matvecs, 2), loop=loop
        )
        rows.append(
            LayerCurvature(
                layer.name,
                size,
                float(ends.eigenvalues[0]),
                float(ends.eigenvalues[-1]),
                bool(ends.converged.all()),
                trace(block, like, trace_key, num_matvecs=num_probes, loop=loop),
                frobenius_norm(block, like, norm_key, num_matvecs=num_probes, loop=loop),
            )
        )
    return rows
