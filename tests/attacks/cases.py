"""Every attack as the contract suite calls it, and the small problems it is called on."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings

from hessabs import attacks
from hessabs.attacks import losses

CLASSES, PIXELS = 4, (2, 3)
FEW = settings(max_examples=3, deadline=None, derandomize=True)


class Case(NamedTuple):
    make: Callable  # (epsilon, **options) -> attack; minimal attacks make nothing of epsilon
    norm: str | None  # of epsilon; None: no epsilon
    effort: str | None = None  # the option that says how hard the attack tries
    plain: bool = True  # takes losses without logits
    tolerance: float = 1e-5  # between one run and another that rounds otherwise, of inputs in [0, 1]


def ascent(name, norm, **options):
    size = {"linf": 0.1, "l2": 0.2, "l1": 0.3}[norm]
    fixed = {} if name == "apgd" else {"step_size": size / 4}
    factory = functools.partial(getattr(attacks, name), norm=norm)
    return Case(
        lambda epsilon, **more: factory(epsilon, **{"steps": 6, **fixed, **options, **more}), norm, "steps"
    )


def minimal(name, **options):
    factory = functools.partial(getattr(attacks, name), **options)
    return Case(lambda _, **more: factory(**more), None, "steps", plain=False)


def square(norm):
    def make(epsilon, **options):
        return attacks.square(epsilon, norm=norm, **{"queries": 12, **options})

    return Case(make, norm, "queries")


def ensemble(norm):
    def make(epsilon, **options):
        return attacks.ensemble(epsilon, norm=norm, **{"steps": 4, "num_targets": 1, "queries": 8, **options})

    return Case(make, norm, plain=False)


CASES = {
    "fgsm": Case(attacks.fgsm, "linf"),
    "l2grad": Case(attacks.l2grad, "l2"),
    "bim": ascent("bim", "linf"),
    "mi_fgsm": ascent("mi_fgsm", "l2"),
    "pgd-linf": ascent("pgd", "linf", restarts=2),
    "pgd-l2": ascent("pgd", "l2"),
    "pgd-l1": ascent("pgd", "l1"),
    "adam_pgd": ascent("adam_pgd", "linf"),
    "apgd-linf": ascent("apgd", "linf", restarts=2),
    "apgd-l2": ascent("apgd", "l2"),
    "apgd-l1": ascent("apgd", "l1"),
    "square-linf": square("linf"),
    "square-l2": square("l2"),
    "square-l1": square("l1"),
    "ensemble": ensemble("linf"),
    "ensemble-l1": ensemble("l1"),
    "fhsm": Case(attacks.fhsm, "linf"),
    "l2hess": Case(attacks.l2hess, "l2"),
    "trust_region-l2": minimal("trust_region", radius=0.05),
    "trust_region-linf": minimal(
        "trust_region", radius=0.02, norm="linf", adaptive=False, ratio="published", rival="hardest"
    ),
    "deepfool-l2": minimal("deepfool"),
    "deepfool-linf": minimal("deepfool", norm="linf"),
    "carlini_wagner": minimal(
        "carlini_wagner", steps=40, binary_search_steps=4, learning_rate=0.05, initial_weight=0.1
    )._replace(effort="binary_search_steps", tolerance=2e-3),  # Adam makes steps of a vanishing gradient
}


FAST = ("fgsm", "pgd-linf", "trust_region-l2")


def mostly_slow(values, fast):
    """Params of a test; those beside a few, which are to show its kind of fault at once, are slow."""
    return [
        value if value in fast else pytest.param(*_tuple(value), marks=pytest.mark.slow) for value in values
    ]


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def names(wanted=lambda case: True, fast=FAST):
    """The cases for which something holds, as params of a test; those beside FAST are slow."""
    return mostly_slow([name for name, case in CASES.items() if wanted(case)], fast)


def one_of_each(*more, fast=FAST):
    """The first case of every attack, and some more, for what does not depend on the norm of its ball."""
    first = {name.partition("-")[0]: name for name in reversed(CASES)}
    return mostly_slow([name for name in CASES if name in first.values() or name in more], fast)


@jax.jit  # an attack that is not compiled then compiles two programs, not one for each operation
def logits_fn(params, inputs):
    """A piecewise linear network: its input Hessian has no negative eigenvalues, and few others."""
    x = inputs.reshape(inputs.shape[0], -1)
    x = jax.nn.relu((x - 0.5) @ params["hidden"] + params["bias"])
    return x @ params["head"]


def numpy_logits(params, inputs):
    """The same network, which compiles nothing."""
    x = np.asarray(inputs).reshape(len(inputs), -1)
    hidden, bias, head = (np.asarray(params[name]) for name in ("hidden", "bias", "head"))
    return np.maximum((x - 0.5) @ hidden + bias, 0) @ head


LOSS = losses.cross_entropy(logits_fn)


def plain_loss(params, batch):
    """The same loss, that carries no logits."""
    return LOSS(params, batch)


def make_params(seed=0, dtype=jnp.float32, scale=3.0):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": (int(np.prod(PIXELS)), 8), "bias": (8,), "head": (8, CLASSES)}
    return {name: jnp.asarray(scale * rng.normal(size=s) / np.sqrt(s[0]), dtype) for name, s in shapes.items()}


def make_batch(params, seed=0, n=8, low=0.0, high=1.0, model=numpy_logits):
    """Examples whose labels are what the network says, the last one excepted, and targets of other classes."""
    rng = np.random.default_rng(seed)
    image = np.float32(low + (high - low) * rng.uniform(0.1, 0.9, (n, *PIXELS)))
    image[0, 0, 0], image[1 % n, 0, 0] = low, high
    label = np.asarray(model(params, jnp.asarray(image))).argmax(axis=-1).astype(np.int32)
    label[-1] = (label[-1] + 1) % CLASSES
    batch = {"image": image, "label": label, "weight": np.arange(n, dtype=np.float32), "id": np.arange(n)}
    return jax.tree.map(jnp.asarray, batch)


def fallen(params, batch, loss_fn=LOSS):
    if loss_fn is LOSS:
        return numpy_logits(params, batch["image"]).argmax(axis=-1) != np.asarray(batch["label"])
    return np.asarray(losses.per_example(loss_fn, params, batch, "image")[1])


def size_of(step, norm):
    flat = np.abs(np.asarray(step, np.float64).reshape(len(step), -1))
    return {"linf": flat.max(1), "l2": np.sqrt((flat**2).sum(1)), "l1": flat.sum(1)}[norm]


KEY = jax.random.key(0)

PARAMS = make_params()
