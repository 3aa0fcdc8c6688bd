"""Layers of the convolutional networks: PyTorch's initialisation, and max pooling that is fast everywhere."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs import trees
from hessabs.checks import require

TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for a kernel: uniform in plus or minus 1 / sqrt(fan_in)."""

HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""Normal with variance 2 / fan_out (He et al. 2015, arXiv:1502.01852)."""


class Classifier(nn.Module):
    """A network of so many outputs, at least 1."""

    num_classes: int

    def __post_init__(self) -> None:
        require("be at least 1", num_classes=self.num_classes)
        super().__post_init__()


def torch_bias(fan_in: int) -> Callable[..., jax.Array]:
    """Make PyTorch's default initialiser of a bias: uniform in plus or minus 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    width: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    dtype: Dtype | None,
    padding: int | tuple[int, int] | None = None,
    use_bias: bool = False,
    kernel_init: Callable[..., jax.Array] = TORCH_KERNEL,
) -> jax.Array:
    """Convolve inside a compact module, by default with half of the kernel as padding ("SAME" would shift the
    windows of a strided convolution); biases start as PyTorch's.
    """
    height, across = (kernel, kernel) if isinstance(kernel, int) else kernel
    if padding is None:
        padding = (height // 2, across // 2)
    above, left = (padding, padding) if isinstance(padding, int) else padding
    return nn.Conv(
        width,
        (height, across),
        strides=stride,
        padding=[(above, above), (left, left)],
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=torch_bias(height * across * x.shape[-1]),
        dtype=dtype,
    )(x)


def dense(
    x: jax.Array, width: int, *, dtype: Dtype | None, bias_init: Callable[..., jax.Array] | None = None
) -> jax.Array:
    """Apply a fully connected layer inside a compact module; it starts as PyTorch's."""
    bias_init = bias_init or torch_bias(x.shape[-1])
    return nn.Dense(width, kernel_init=TORCH_KERNEL, bias_init=bias_init, dtype=dtype)(x)


def logits(
    x: jax.Array, num_classes: int, *, dtype: Dtype | None, bias_init: Callable[..., jax.Array] | None = None
) -> jax.Array:
    """Apply the last layer inside a compact module; float32 at least."""
    return trees.upcast(dense(x, num_classes, dtype=dtype, bias_init=bias_init))


def batch_norm(x: jax.Array, *, train: bool, dtype: Dtype | None) -> jax.Array:
    """Normalise by the batch inside a compact module: momentum 0.9 (PyTorch's 0.1), epsilon 1e-5.

    Statistics and normalisation are float32 at least; only the result is rounded to ``dtype``. The running
    variance is the biased one, as flax has it; PyTorch's is unbiased.
    """
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)
    return norm(trees.upcast(x))


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Take the maximum of each window, as ``nn.max_pool`` does, with a gradient that is fast on the CPU.

    The gradient of XLA's windowed maximum is a scatter that is slow on the CPU backend (measured by
    ``experiments/benchmarks/convolution.py``). There the maximum is folded over shifted slices, across and then
    down, which gives the same value, and the same gradient to the last bit: of equal entries the first in
    row-major order gets it.
    """
    if jax.default_backend() != "cpu":
        sides = [(padding, padding)] * 2
        return nn.max_pool(x, (window, window), strides=(stride, stride), padding=sides)
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    return _fold_max(_fold_max(x, window, stride, axis=2), window, stride, axis=1)


def _fold_max(x: jax.Array, window: int, stride: int, axis: int) -> jax.Array:
    reach = x.shape[axis] - window + 1  # starts of windows lie below this
    parts = [jax.lax.slice_in_dim(x, i, i + reach, stride, axis) for i in range(window)]

    def larger(best: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where((best >= other) | jnp.isnan(best), best, other)

    return functools.reduce(larger, parts)


def check_images(x: jax.Array, smallest: int = 1) -> None:
    """Refuse what is no batch of float images of ``smallest`` x ``smallest`` at least."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            "`x` must be floating point of shape (N, H, W, C) with pixels in [0, 1], "
            f"got {x.dtype} of shape {x.shape}."
        )
    if min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"`x` must hold images of {smallest}x{smallest} at least for this network, got shape {x.shape}."
        )
