"""The ten largest Hessian eigenvalues of a network on a whole data set, and their density.

    python examples/top_eigenvalue.py

Trains a small network on scikit-learn's digits for a moment, then looks at the curvature of its training loss:
on all images, in batches of which the last is smaller, and layer by layer.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from hessabs import curvature

SIZES = (64, 32, 10)


def init_params(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Draw the params of a network with one hidden layer."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(SIZES)):
        kernel = jax.random.normal(jax.random.fold_in(key, i), (fan_in, fan_out)) * np.sqrt(2 / fan_in)
        params[f"dense_{i}"] = {"kernel": kernel, "bias": jnp.zeros(fan_out)}
    return params


def loss_fn(params: dict[str, dict[str, jax.Array]], batch: dict[str, jax.Array]) -> jax.Array:
    """The mean cross-entropy."""
    x = jax.nn.relu(batch["image"] @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    logits = x @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], axis=1))


@jax.jit
def train_step(
    params: dict[str, dict[str, jax.Array]], batch: dict[str, jax.Array]
) -> dict[str, dict[str, jax.Array]]:
    """One step of gradient descent."""
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss_fn)(params, batch))


def main() -> None:
    """Train, then print the spectrum."""
    digits = load_digits()
    data = {"image": (digits.data / 16).astype(np.float32), "label": digits.target.astype(np.int32)}
    batches = [{name: x[i : i + 500] for name, x in data.items()} for i in range(0, len(data["label"]), 500)]
    params = init_params(jax.random.key(0))
    for _ in range(100):
        params = train_step(params, {name: jnp.asarray(x) for name, x in data.items()})

    operator = curvature.dataset_hessian(loss_fn, params, batches)
    top = curvature.eigsh(operator, params, 10)
    print("eigenvalue   residual")
    for value, residual in zip(top.eigenvalues, top.residuals, strict=True):
        print(f"{value:10.4f}   {residual:8.1e}")
    print(f"{top.num_matvecs} passes over {len(data['label'])} images, all converged: {top.converged.all()}")

    density = curvature.spectral_density(operator, params, jax.random.key(1), num_probes=4, num_iters=30)
    near_zero = (density.weights * (np.abs(density.nodes) < 1e-2)).sum(1)
    print(f"{near_zero.mean():.0%} of the eigenvalues lie within 0.01 of zero")

    print("layer        params   largest  smallest   trace")
    for row in curvature.layer_table(operator, params, jax.random.key(2)):
        trace = f"{float(row.trace.value):.2f} +- {float(row.trace.standard_error):.2f}"
        print(f"{row.layer:10s} {row.num_params:8d} {row.largest:9.3f} {row.smallest:9.3f}   {trace}")


if __name__ == "__main__":
    main()
