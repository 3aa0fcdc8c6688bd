"""A multilayer perceptron with ReLU: the smallest network on which the method shows its effect."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs import trees
from hessabs.checks import require
from hessabs.models import layers


class MLP(layers.Classifier):
    """Fully connected layers with ReLU between them; see ``mlp``."""

    hidden: tuple[int, ...]
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        del train  # no dropout, no statistics
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"`x` must be floating point in [0, 1], got {x.dtype}: divide by 255.")
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return trees.upcast(x)


def mlp(num_classes: int = 10, hidden: Sequence[int] = (256, 256), *, dtype: Dtype | None = None) -> MLP:
    """Create a multilayer perceptron with ReLU.

    Images are flattened. With the defaults and 28x28x1 images it is 784-256-256-10 with 269,322 parameters.
    Weights start as flax's defaults (LeCun normal, zero bias), not as PyTorch's uniform.

    Args:
        num_classes, dtype: As of every network of ``hessabs.models``.
        hidden: The widths of the hidden layers, each at least 1; none makes a linear classifier.

    Raises:
        ValueError: A width or ``num_classes`` is below 1.

    Example:
        >>> logits, _ = mlp(3).init_with_output(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
        >>> logits.shape
        (2, 3)
    """
    require("be at least 1", **{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    return MLP(num_classes, tuple(hidden), dtype)
