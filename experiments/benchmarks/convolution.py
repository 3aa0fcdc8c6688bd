"""What makes a convolutional network fast on the CPU: ways to pool and to convolve, and the images at once.

    JAX_PLATFORMS=cpu python experiments/benchmarks/convolution.py [--rounds 9]

Writes convolution.md beside this file. The ways run in turn in one process on the same arrays; medians of the
rounds, and ratios to XLA's own form as medians of pairs. CPU time and not seconds: other work may run beside
it. Each way gives the same values and gradients.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs import models
from hessabs.cpu.convolutions import in_parts
from hessabs.data import as_source
from hessabs.models import layers
from hessabs.training import tasks

_ROUNDS = flags.DEFINE_integer("rounds", 9, "timings of each way")


def main(argv: Sequence[str]) -> None:
    """Measure and write the tables."""
    del argv
    lines = [
        "# Convolutional networks on the CPU",
        "",
        f"`python experiments/benchmarks/convolution.py --rounds {_ROUNDS.value}`; {provenance.hardware()}; "
        f"jax {jax.__version__}; commit {provenance.commit()}",
        "",
        "Milliseconds of CPU time, all threads, of value and gradient of 128 images; in brackets how many "
        "times less than XLA's own.",
        "",
        "| what | XLA's own | other ways |",
        "|---|---|---|",
    ]
    for title, make_cases in (
        ("3x3 max pooling of stride 2, 28x28x16", pooling),
        ("ReLU and 2x2 max pooling, 28x28x16", relu_and_pooling),
        ("gradient of c1_small, 28x28x1", c1_steps),
        ("gradient of resnet20, 32x32x3", resnet20_steps),
        ("5x5 convolution, 14x14, 16 to 16 channels", lambda: convolutions(14, 16, 5)),
        ("3x3 convolution, 32x32, 16 to 16 channels", lambda: convolutions(32, 16, 3)),
        ("3x3 convolution, 8x8, 64 to 64 channels", lambda: convolutions(8, 64, 3)),
    ):
        cases = make_cases()
        times = measure(cases)
        own, *others = (statistics.median(t) for t in times.values())
        ratios = [
            statistics.median(a / b for a, b in zip(times["XLA's own"], t, strict=True))
            for t in list(times.values())[1:]
        ]
        text = "; ".join(
            f"{name} {other * 1e3:.1f} ({ratio:.2f})"
            for name, other, ratio in zip(list(times)[1:], others, ratios, strict=True)
        )
        lines.append(f"| {title} | {own * 1e3:.1f} | {text} |")
        print(lines[-1], flush=True)
    lines += ["", *by_images_at_once()]
    print("\n".join(lines[-3:]), flush=True)
    (pathlib.Path(__file__).parent / "convolution.md").write_text("\n".join(lines) + "\n")


def measure(cases: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Time each way once a round, in turn, after a round that compiles."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(_ROUNDS.value + 1):
        for name, function in cases.items():
            start = time.process_time()
            jax.block_until_ready(function())
            if number:
                times[name].append(time.process_time() - start)
    return times


def with_gradient(function: Callable[..., jax.Array], *args: jax.Array) -> Callable[[], Any]:
    """Compile the value and the gradient of the sum of squares of a function."""
    everything = tuple(range(len(args)))
    compiled = jax.jit(jax.value_and_grad(lambda *args: jnp.sum(function(*args) ** 2), everything))
    return lambda: compiled(*args)


def windowed_maximum(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """Pool as flax does, on every backend."""
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)


def pooling() -> dict[str, Callable[[], Any]]:
    """Compare ways to pool."""
    x = jax.random.normal(jax.random.key(0), (128, 28, 28, 16))
    return {
        "XLA's own": with_gradient(lambda x: windowed_maximum(x, 3, 2, 1), x),
        "folded slices": with_gradient(lambda x: layers.max_pool(x, 3, 2, 1), x),
    }


def relu_and_pooling() -> dict[str, Callable[[], Any]]:
    """Compare ways to pool without overlap what has many zeros."""
    x = jax.random.normal(jax.random.key(0), (128, 28, 28, 16))
    cotangent = jax.random.normal(jax.random.key(1), (128, 14, 14, 16))

    def backward(pool: Callable[[jax.Array], jax.Array]) -> Callable[[], Any]:
        compiled = jax.jit(lambda x, c: jax.vjp(lambda x: pool(jax.nn.relu(x)), x)[1](c))
        return lambda: compiled(x, cotangent)

    return {
        "XLA's own": backward(lambda x: windowed_maximum(x, 2, 2)),
        "folded slices": backward(lambda x: layers.max_pool(x, 2, 2)),
        "a reshape": backward(lambda x: x.reshape(128, 14, 2, 14, 2, 16).max((2, 4))),
    }


def by_images_at_once() -> list[str]:
    """Time the gradient with respect to the images, which attacks compute, for several numbers of them."""
    model = models.c1_small()
    images = jax.random.uniform(jax.random.key(0), (2048, 28, 28, 1))
    variables = model.init(jax.random.key(1), images[:1])

    def total(images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images)
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    gradient = jax.jit(jax.grad(total))
    sizes = [2**power for power in range(5, 12)]

    def in_turn(size: int) -> Callable[[], Any]:
        return lambda: [gradient(images[i : i + size]) for i in range(0, 2048, size)]

    cases = {str(n): in_turn(n) for n in sizes}
    times = measure(cases)
    each = [f"{statistics.median(times[str(n)]) / 2048 * 1e6:.0f}" for n in sizes]
    return [
        "Microseconds of CPU time per image, of the gradient of `c1_small` with respect to the images, by how "
        "many are computed at once:",
        "",
        "| " + " | ".join(str(n) for n in sizes) + " |",
        "|" + "---|" * len(sizes),
        "| " + " | ".join(each) + " |",
    ]


def c1_steps() -> dict[str, Callable[[], Any]]:
    """Compare the training step of a network with one and the other pooling."""
    batch = {
        "image": jax.random.uniform(jax.random.key(0), (128, 28, 28, 1)),
        "label": jnp.arange(128) % 10,
        "weight": jnp.ones(128),
    }
    model = models.c1_small()
    state = dict(model.init(jax.random.key(1), batch["image"]))
    params = state.pop("params")

    def step(pool: Callable[..., jax.Array]) -> Callable[[], Any]:
        gradient = jax.value_and_grad(lambda p: training_loss(model, state, p, batch))
        kept = layers.max_pool
        layers.max_pool = pool  # while it is traced
        try:
            compiled = jax.jit(gradient).lower(params).compile()
        finally:
            layers.max_pool = kept
        return lambda: compiled(params)

    return {"XLA's own": step(windowed_maximum), "folded slices": step(layers.max_pool)}


def resnet20_steps() -> dict[str, Callable[[], Any]]:
    """Compare the gradient of a deep network with one whose kernel gradients are cut along the batch."""
    batch = {
        "image": jax.random.uniform(jax.random.key(0), (128, 32, 32, 3)),
        "label": jnp.arange(128) % 10,
        "weight": jnp.ones(128),
    }
    model = models.resnet20()
    state = dict(model.init(jax.random.key(1), batch["image"]))
    params = state.pop("params")

    def gradient(params: Any) -> Any:
        return jax.value_and_grad(lambda p: training_loss(model, state, p, batch))(params)

    own, cut = jax.jit(gradient), jax.jit(in_parts(gradient))
    return {"XLA's own": lambda: own(params), "kernel gradients in parts": lambda: cut(params)}


def training_loss(model: Any, state: Any, params: Any, batch: Any) -> jax.Array:
    """Return the mean loss in training mode."""
    task = tasks.linen(model, (as_source(batch), as_source(batch)))
    weighted = {**batch, "weight": jnp.ones(len(batch["label"]))}
    return task.loss(params, state, weighted, jax.random.key(0), True).mean


def convolutions(side: int, channels: int, kernel: int) -> dict[str, Callable[[], Any]]:
    """Compare ways to convolve, padded to the same size."""
    x = jax.random.normal(jax.random.key(0), (128, side, side, channels))
    weights = jax.random.normal(jax.random.key(1), (kernel, kernel, channels, channels))
    sides = [(kernel // 2, kernel // 2)] * 2
    last, first = ("NHWC", "HWIO", "NHWC"), ("NCHW", "HWIO", "NCHW")

    def own(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, weights, (1, 1), sides, dimension_numbers=last)

    def channels_first(x: jax.Array, weights: jax.Array) -> jax.Array:
        x = x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(x, weights, (1, 1), sides, dimension_numbers=first)
        return y.transpose(0, 2, 3, 1)

    def shifted(x: jax.Array) -> list[jax.Array]:
        padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
        return [padded[:, i : i + side, j : j + side] for i in range(kernel) for j in range(kernel)]

    def patches(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.concatenate(shifted(x), -1) @ weights.reshape(-1, channels)

    def sum_of_products(x: jax.Array, weights: jax.Array) -> jax.Array:
        pairs = zip(shifted(x), weights.reshape(-1, channels, channels), strict=True)
        return sum((part @ w for part, w in pairs), jnp.zeros(()))

    ways = {
        "XLA's own": own,
        "channels first": channels_first,
        "patches and one product": patches,
        "a product for each shift": sum_of_products,
    }
    return {name: with_gradient(way, x, weights) for name, way in ways.items()}


if __name__ == "__main__":
    app.run(main)
