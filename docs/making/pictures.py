"""Draw the pictures of the pages from tables of runs and the digits: ``python docs/making/pictures.py``."""

import pathlib
import statistics
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import optax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

from experiments import table  # noqa: E402
from hessabs import curvature, data, plots  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
NAMES = {
    "bl": "BL at 128",
    "gg": "GG",
    "timer": "timer",
    "absa": "ABSA",
    "stability": "stability",
    "fixed": "fixed growth",
    "gns": "noise scale",
    "norm_test": "norm test",
}


def draw_updates() -> None:
    """Accuracy against updates, of every rule with the same adversarial examples."""
    runs = table.read(ROOT / "experiments/results/hessian_worth")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    kinds = (("_kept", "o", "a fifth to the end"), ("", "s", "ABSA's share, which ends"))
    for (suffix, marker, kind), color in zip(kinds, ("C3", "C0"), strict=True):
        for number, (name, shown) in enumerate(NAMES.items()):
            label = "absa_128_images" if name + suffix == "absa" else name + suffix
            found = [run.summary for run in runs.values() if run.label == label]
            if not found:
                continue
            updates = statistics.mean(one["updates"] for one in found)
            for axis, field in zip(axes, ("test_accuracy", "pgd_accuracy"), strict=True):
                values = [one[field] for one in found]
                mean, error = statistics.mean(values), statistics.stdev(values)
                first = kind if number == 0 else None
                axis.errorbar(updates, mean, error, fmt=marker, color=color, ms=5, capsize=2, label=first)
                left = updates > 20_000 or name == "fixed"
                below = name in ("absa", "norm_test") and not suffix
                shift, side = (-6 if left else 6, -10 if below else 4), "right" if left else "left"
                axis.annotate(shown, (updates, mean), shift, textcoords="offset points", ha=side, fontsize=7.5)
    for axis, title in zip(axes, ("test accuracy (%)", "accuracy under PGD-20 (%)"), strict=True):
        axis.set(xscale="log", xlabel="updates in 90 epochs", title=title, xlim=(2500, 55_000))
        ticks = [3_000, 5_000, 10_000, 20_000, 40_000]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(title="adversarial examples", fontsize=8, title_fontsize=8, loc="lower right")
    figure.savefig(PICTURES / "updates.png", dpi=100)


def draw_density() -> None:
    """The density of the tutorial."""
    digits = data.load("digits").train
    batch = {"image": digits["image"] / jnp.float32(255), "label": digits["label"]}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(10)(nn.relu(nn.Dense(32)(x.reshape(len(x), -1))))

    def loss_fn(params: dict, batch: dict) -> jax.Array:
        logits = Net().apply(params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    params = Net().init(jax.random.key(0), batch["image"][:1])
    descend = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.3 * g, p, jax.grad(loss_fn)(p, batch)))
    for _ in range(150):
        params = descend(params)
    operator = curvature.hessian(loss_fn, params, batch)
    density = curvature.spectral_density(operator, params, jax.random.key(2), num_probes=10, num_iters=60)
    axes = plots.density(density)
    axes.set_title("digits, a network of 2,410 params")
    axes.figure.savefig(PICTURES / "density.png")


if __name__ == "__main__":
    draw_updates()
    draw_density()
