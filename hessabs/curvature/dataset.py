"""Curvature of the mean loss over a whole data set, as operators that read it anew at each product.

Each product is one pass over the batches, in the memory of a few of them: the next batch is read while the
present one is computed. What is averaged are the batches' own means, each by its weight: by its number of
examples unless ``weight`` says what the loss divides by. So uneven batches, masks and padding are exact.
Without a weight, the first product warns where a loss is not the mean over the rows of the first or last batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hessabs import trees
from hessabs.curvature.fisher import Distribution, log_partition, squared_losses
from hessabs.curvature.gauss_newton import MODES as GAUSS_NEWTON
from hessabs.curvature.linearization import Source, Weight
from hessabs.curvature.operators import MODES as HESSIAN
from hessabs.curvature.passes import Batches
from hessabs.curvature.streaming import dataset_operator
from hessabs.typing import Batch, LossFn, Operator, Params


def dataset_hessian(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    *,
    weight: Weight = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Operator:
    """Make the Hessian of the mean loss over a whole data set an operator.

    Batches of one shape compile once. The sum is kept in at least float32.

    Args:
      loss_fn, params: As in ``hessian``; so are the options ``mode``, ``step`` and ``has_aux``.
      batches: An iterable that starts anew at each product, a list or a loader but no generator; or a function
        that opens one, ``lambda: iter(loader)``.
      weight: ``weight(batch)``: what the loss divides by, or an array whose sum that is, such as the mask of
        the tokens or rows that count; None for the number of examples. What weighs 0 is not looked at.
      mesh: Devices over which every batch is split along its examples. Each device sums its part over the whole
        pass; one collective ends the product. Examples that do not divide are computed on every device and
        weighted for it. Where params are sharded they stay so, batches are split over the first axis of the
        mesh alone, and XLA places the collectives.
      progress: Called after each batch with its number of examples, as ``tqdm(...).update`` takes it.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``. It reads data in Python: loops over it run
      on the host, and it cannot be traced.

    Raises:
      ValueError: If a param is no floating-point array or ``batches`` can be iterated over only once; at a
        product, if there is no batch or all weigh nothing.

    Example:
      >>> loss = lambda w, batch: jnp.sum(batch[1] * (w * batch[0]) ** 2) / jnp.sum(batch[1])
      >>> halves = [(jnp.array([1.0, 2.0]), jnp.array([1, 1])), (jnp.array([3.0, 4.0]), jnp.array([1, 0]))]
      >>> dataset_hessian(loss, jnp.ones(()), halves, weight=lambda batch: batch[1])(jnp.ones(()))
      Array(9.333333, dtype=float32)
    """
    return dataset_operator(
        HESSIAN, (loss_fn,), params, batches, weight=weight, mesh=mesh, progress=progress, **options
    )


def dataset_gauss_newton(
    model_fn: Callable[[Params, Batch], Any],
    loss_fn: Callable[[Any, Batch], jax.Array],
    params: Params,
    batches: Batches,
    *,
    weight: Weight = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Operator:
    """Make the Gauss-Newton matrix of the mean loss over a whole data set an operator.

    Args:
      model_fn, loss_fn, params: As in ``gauss_newton``; so are the options ``mode``, ``step`` and ``has_aux``.
      batches, weight, mesh, progress: As in ``dataset_hessian``.

    Returns:
      An operator, as ``dataset_hessian`` does; it raises the same errors.

    Example:
      >>> model, loss = lambda w, x: x @ w, lambda outputs, x: jnp.mean(outputs**2)
      >>> uneven = [jnp.ones((2, 1)), jnp.ones((2, 1)), 3 * jnp.ones((1, 1))]
      >>> dataset_gauss_newton(model, loss, jnp.zeros(1), uneven)(jnp.ones(1))  # 2 (4 * 1 + 9) / 5
      Array([5.2], dtype=float32)
    """
    return dataset_operator(
        GAUSS_NEWTON,
        (model_fn, loss_fn),
        params,
        batches,
        weight=weight,
        mesh=mesh,
        progress=progress,
        **options,
    )


def dataset_fisher(
    model_fn: Callable[[Params, Batch], Any],
    params: Params,
    batches: Batches,
    *,
    distribution: Distribution = "categorical",
    weight: Weight = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Operator:
    """Make the Fisher matrix of a model over a whole data set an operator.

    Args:
      model_fn, params, distribution, weight: As in ``fisher``; so are ``mode``, ``step`` and ``has_aux``.
      batches, mesh, progress: As in ``dataset_hessian``.

    Returns:
      An operator, as ``dataset_hessian`` does; it raises the same errors, and for an unknown distribution.

    Example:
      >>> uneven = [jnp.ones((3, 1)), 2 * jnp.ones((1, 1))]
      >>> operator = dataset_fisher(lambda w, x: x @ w, jnp.zeros((1, 2)), uneven)
      >>> operator(jnp.array([[1.0, 0.0]]))  # (3 + 4) / 4 times that of one example
      Array([[ 0.4375, -0.4375]], dtype=float32)
    """
    functions = model_fn, log_partition(distribution, weight)
    return dataset_operator(
        GAUSS_NEWTON, functions, params, batches, weight=weight, mesh=mesh, progress=progress, **options
    )


def dataset_empirical_fisher(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    *,
    weight: Weight = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Operator:
    """Make the second moment of the per-example gradients over a whole data set an operator.

    Args:
      loss_fn, params, weight: As in ``empirical_fisher``; so are ``mode``, ``step`` and ``has_aux``.
      batches, mesh, progress: As in ``dataset_hessian``.

    Returns:
      An operator, as ``dataset_hessian`` does; it raises the same errors.

    Example:
      >>> operator = dataset_empirical_fisher(
      ...     lambda w, x: jnp.mean(x @ w), jnp.zeros(1), [jnp.ones((3, 1)), 3 * jnp.ones((1, 1))])
      >>> operator(jnp.ones(1))  # (3 * 1 + 9) / 4
      Array([3.], dtype=float32)
    """
    functions = squared_losses(loss_fn, weight, has_aux=options.pop("has_aux", False))
    return dataset_operator(
        GAUSS_NEWTON, functions, params, batches, weight=weight, mesh=mesh, progress=progress, **options
    )


def check_deterministic(operator: Operator, vector: Params, *, rtol: float = 1e-4) -> None:
    """Check that two products of a data-set operator with one vector agree, as eigen-solvers need it.

    Args:
      operator: What ``dataset_hessian`` or another operator over a data set is.
      vector: A pytree like the params.
      rtol: How far the two may lie apart, relative to the first one's norm.

    Raises:
      ValueError: If they do not agree, saying whether to look at shuffling, at augmentation or dropout keys in
        the data, or at the loss.
    """
    if getattr(operator, "runs", None) != "in Python" or not isinstance(operator.source, Source):
        raise ValueError(
            f"`operator` must be one over a data set, as dataset_hessian makes it, got {operator!r}."
        )
    passes = operator.rest[0].value
    first, second = operator(vector), operator(vector)
    apart = trees.normalize(jax.tree.map(jnp.subtract, first, second))[1]
    size = trees.normalize(first)[1]
    if apart <= rtol * size:
        return
    one, two = _fingerprint(passes()), _fingerprint(passes())
    if one.shape == two.shape and np.array_equal(one, two):
        advice = "the batches are the same in both passes: look at dropout, or another random draw in the loss"
    elif np.allclose(one.sum(0), two.sum(0), rtol=1e-6):
        advice = (
            "the examples come in another order: stop shuffling, and put batch norm into evaluation mode, "
            "since only a loss that mixes the examples of a batch sees the order"
        )
    else:
        advice = "the examples themselves differ: look at augmentation and dropout keys that ride in the batch"
    raise ValueError(f"Two passes over the data differ by {float(apart / size):.1e} of the product; {advice}.")


def _fingerprint(batches: Iterable[Batch]) -> np.ndarray:
    # One row a batch: the sums of each leaf over the batch, and of its squares.
    def sums(leaf: Any) -> tuple[float, float]:
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        x = np.asarray(jax.random.key_data(leaf) if is_key else leaf, np.float64)
        return np.sum(x), np.sum(x * x)

    return np.array([np.ravel([sums(leaf) for leaf in jax.tree.leaves(batch)]) for batch in batches])
