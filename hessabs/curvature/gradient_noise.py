"""How large a batch is worth it: the noise of the gradient against the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hessabs import batch_axis, trees
from hessabs.curvature.layers import layers
from hessabs.curvature.losses import scalar, without_aux
from hessabs.curvature.passes import Batches, Passes
from hessabs.curvature.preconditioning import check_positive
from hessabs.paths import paths
from hessabs.typing import Batch, LossFn, Params

_TRACED = "critical_batch_size reads its numbers in Python: it cannot be traced (jit, vmap, grad)."


class CriticalBatchSize(NamedTuple):
    """The simple noise scale, in examples, with its jackknife error over the batches."""

    value: float  # tr(Sigma) / |G|^2; inf where the noise of all batches drowns |G|^2, nan if a gradient is
    standard_error: float  # of it; nan where it is not finite
    noise: float  # tr(Sigma): the variance of the gradient of one example
    signal: float  # |G|^2: the square of the true gradient, without bias, so that it may be below 0
    layers: dict[str, tuple[float, float]]  # value and standard error of every layer


def critical_batch_size(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    *,
    scale: Params | None = None,
    has_aux: bool = False,
) -> CriticalBatchSize:
    """Estimate the batch beyond which more examples no longer make a step much better.

    The simple noise scale of McCandlish et al. says at which batch the noise of a gradient is as large as the
    gradient. It rises while a network trains, so measure where you are. Each batch is read twice and costs two
    gradients; 20 batches of 64 say more than 2 of 640.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batches: At least three equal batches: what starts anew at each pass, or a function that opens them.
      scale: The diagonal by which the optimiser divides its step (see ``adam_scale``), a pytree like
        ``params``: noise and gradient are then measured as that optimiser sees them.
      has_aux: Whether the loss returns ``(loss, aux)``.

    Raises:
      ValueError: If there are fewer than three batches, they differ in size, or can be read only once; if an
        entry of ``scale`` is not above 0 and finite; under a trace.

    Example:
      >>> loss = lambda w, x: jnp.mean((w - x) ** 2) / 2  # the gradient of an example is w - x
      >>> batches = [jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]), jnp.array([3.0, 4.0]), jnp.array([0.0, 1.0])]
      >>> found = critical_batch_size(loss, jnp.zeros(()), batches)
      >>> round(found.noise, 3), round(found.signal, 3), round(found.value, 3)
      (3.0, 3.625, 0.828)

    References:
      McCandlish et al. (2018), arXiv:1812.06162, appendix A.1. With ``scale``: Gray et al. (2024),
      arXiv:2411.00999, measure by layer; the preconditioned form is this library's own.
    """
    trees.check_floating(params, "params")
    passes, function = Passes(batches), without_aux(loss_fn, has_aux)

    if scale is not None:
        trees.check_like(scale, params, "scale", "params")
        check_positive(scale)

    @jax.jit
    def gradient_of(params: Params, batch: Batch) -> Params:
        gradient = jax.grad(lambda p: scalar(function, p, batch))(params)
        if scale is not None:
            gradient = jax.tree.map(lambda g, s: g * jax.lax.rsqrt(s), gradient, scale)
        return jax.tree.map(trees.upcast, gradient)

    @jax.jit
    def products(a: Params, b: Params, unit: Any) -> jax.Array:
        # In units of the largest entry: squares of others under- or overflow.
        pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
        return jnp.stack([jnp.sum((x / unit) * (y / unit)) for x, y in pairs])

    sizes, largest, total = [], [], None
    for batch in passes():
        sizes.append(batch_axis.num_examples(batch))
        gradient = gradient_of(params, batch)
        if trees.is_traced(gradient):
            raise ValueError(_TRACED)
        largest.append(optax.tree.norm(gradient, ord=jnp.inf))
        total = gradient if total is None else optax.tree.add(total, gradient)
    if len(sizes) < 3 or len(set(sizes)) > 1:
        raise ValueError(f"`batches` must be three or more of one size, got sizes {sizes}.")
    unit = float(jnp.max(jnp.stack(largest))) or 1.0
    mean = optax.tree.scale(1 / len(sizes), total)
    from_mean = (optax.tree.sub(gradient_of(params, batch), mean) for batch in passes())
    pairs = [(products(x, x, unit), products(x, mean, unit)) for x in from_mean]
    of_leaves = [
        np.asarray(x, np.float64) * unit**2
        for x in (*map(jnp.stack, zip(*pairs, strict=True)), products(mean, mean, unit))
    ]
    whole = _estimate(sizes[0], *(x.sum(-1) for x in of_leaves))
    names = paths(params)
    found = {}
    for name, layer in layers(params).items():
        here = [names.index(path) for path in layer.paths]
        found[name] = _estimate(sizes[0], *(x[..., here].sum(-1) for x in of_leaves))[:2]
    return CriticalBatchSize(*whole, found)


def _estimate(
    size: int, squares: np.ndarray, along: np.ndarray, square_of_mean: np.ndarray
) -> tuple[float, float, float, float]:
    """Return value, jackknife error, noise and signal of k batches, of |d_i|^2, d_i . mean, |mean|^2, with d_i
    the gradient of a batch less the mean.
    """
    k = len(squares)
    value, noise, signal = _noise_scale(size, k, squares.sum(), square_of_mean)
    without = square_of_mean - 2 * along / (k - 1) + squares / (k - 1) ** 2  # |mean of the others|^2
    left = _noise_scale(size, k - 1, squares.sum() - squares * k / (k - 1), without)[0]
    spread = np.sqrt((k - 1) / k * np.sum((left - left.mean()) ** 2)) if np.isfinite(left).all() else np.nan
    error = float(spread) if np.isfinite(value) else float("nan")
    return float(value), error, float(noise), float(signal)


def _noise_scale(size: int, k: int, sum_of_squares: Any, square_of_mean: Any) -> tuple[Any, Any, Any]:
    variance = np.maximum(sum_of_squares, 0) / (k - 1)
    signal = square_of_mean - variance / k
    down = signal > 0
    value = np.where(down, size * variance / np.where(down, signal, 1), np.inf)
    return np.where(np.isfinite(signal), value, np.nan), size * variance, signal
