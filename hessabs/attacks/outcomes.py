"""What one attack did to one batch, example by example, and the numbers that sum it up."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import compiling, programs, trees
from hessabs.attacks import losses
from hessabs.attacks.losses.examples import has_fallen
from hessabs.attacks.norms import Bounds, Norm
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import Attack, LossFn, Params

CLEAN = "clean"
WORST = "worst case"
_RTOL = 1e-5  # of the norm of a perturbation that float32 computed, for a few entries
_ROWS = 256  # examples that are measured at once, for float64 takes twice the memory
_COMPILED = (0.01, 1e-3)  # for more than this part of its time, and more seconds: the first run of programs
_ORDERS: dict[Norm, float] = {"linf": np.inf, "l2": 2, "l1": 1}

Found = TypeVar("Found", bound=Any)  # a NamedTuple


class Clean(NamedTuple):
    """What n examples are before an attack."""

    right: np.ndarray  # (n,), bool: classified rightly
    non_finite: np.ndarray  # (n,), bool: the network gives logits that say nothing (NaN, or infinite)
    lengths: np.ndarray  # (n,), float: the norm of each input


class Outcome(NamedTuple):
    """What an attack did to n examples."""

    stands: np.ndarray  # (n,), bool: not felled; right, without finite logits, or at no input that there can be
    sizes: np.ndarray  # (n,), float: the norm of each perturbation
    seconds: float  # wall clock of the attack, without those in which JAX traced and compiled
    seconds_compile: float  # wall clock in which JAX traced and compiled
    non_finite: np.ndarray  # (n,), bool: the logits after the attack say nothing
    least: np.ndarray  # (n,), float: the norm less what rounding may have added; nan: not finite, out of bounds
    first_run: bool = False  # of some program: JAX sets it up then, besides compiling it


class Evaluation(NamedTuple):
    """What one attack does at one epsilon; "worst case" is the worst of all attacks for each example."""

    attack: str
    epsilon: float
    accuracy: float  # part of the examples that are classified rightly, in [0, 1]
    mean_relative: float  # ||x' - x|| / ||x||, mean over those that fell and were right before; 0 if none
    max_relative: float  # the largest of them
    seconds_per_image: float  # wall clock of the attack, compilation not included
    withstood: np.ndarray  # (n,), bool: which examples are classified rightly
    non_finite: np.ndarray  # (n,), bool: whose logits say nothing, before or after: neither robust nor fallen
    seconds_compile: float  # wall clock in which JAX compiled the attack
    first_run: bool = False  # whether seconds_per_image is of a first run alone, and less in the next ones


def look(loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, norm: Norm) -> Clean:
    """Look at a batch before any attack; the loss carries its logits."""
    right, finite = _judge(loss_fn, params, batch, inputs_key)
    inputs = np.asarray(get_inputs(batch, inputs_key))
    return Clean(right, ~finite, measure(inputs, np.zeros_like(inputs), norm)[0])


def run(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    key: jax.Array | None,
    *,
    norm: Norm,
    bounds: Bounds,
    inputs_key: str | int,
    source: tuple[LossFn, Params] | None = None,
) -> tuple[Outcome, Any]:
    """Attack a batch, and look what has become of it: the outcome, and the attacked batch.

    ``loss_fn`` carries its logits: the network that judges. The examples are made on ``source``, another (loss,
    params), or on the same.
    """
    start, before = time.perf_counter(), compiling.seconds(everywhere=True)  # an attack may have threads
    attacked = jax.block_until_ready(attack(*(source or (loss_fn, params)), batch, key))
    compiled = compiling.seconds(everywhere=True) - before
    seconds = time.perf_counter() - start - compiled
    points, inputs = (np.asarray(get_inputs(each, inputs_key)) for each in (attacked, batch))
    # By the labels that the batch has: an attack may have made them targets.
    judged = with_inputs(batch, inputs_key, get_inputs(attacked, inputs_key))
    right, finite = _judge(loss_fn, params, judged, inputs_key)
    flat = points.reshape(len(points), -1)
    there_is = np.isfinite(flat).all(axis=1)
    if bounds is not None:
        low, high = np.asarray(bounds, flat.dtype)
        there_is &= (flat >= low).all(axis=1) & (flat <= high).all(axis=1)
    sizes, least = measure(points, inputs, norm)
    stands, least = right | ~finite | ~there_is, np.where(there_is, least, np.nan)
    first_run = compiled > max(_COMPILED[0] * seconds, _COMPILED[1])
    return Outcome(stands, sizes, seconds, compiled, ~finite & there_is, least, first_run), attacked


def join(parts: Sequence[Found]) -> Found:
    """Put a ``Clean``, ``Outcome`` or ``Misleading`` of several batches end to end.

    Seconds add up. Where some batches were no first run, their time stands for that of the others.

    Example:
      >>> join([Clean(*np.ones((3, 2))), Clean(*np.zeros((3, 1)))]).right
      array([1., 1., 0.])
    """
    kind, times = type(parts[0]), _times(parts) if isinstance(parts[0], Outcome) else {}
    arrays = {name: [getattr(part, name) for part in parts] for name in kind._fields if name not in times}
    return kind(**{name: np.concatenate(x) for name, x in arrays.items()}, **times)


def _times(parts: Sequence[Outcome]) -> dict[str, Any]:
    timed = [part for part in parts if not part.first_run] or parts
    share = sum(len(part.stands) for part in timed) / sum(len(part.stands) for part in parts)
    return {
        "seconds": float(sum(part.seconds for part in timed)) / share,
        "seconds_compile": float(sum(part.seconds_compile for part in parts)),
        "first_run": all(part.first_run for part in parts),
    }


def measure(points: np.ndarray, inputs: np.ndarray, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    """Return the norm of each perturbation, and what it is at least, were nothing rounded, in float64.

    An attack adds a perturbation to an input and rounds, by up to a unit in the last place of the larger one,
    in its dtype: nothing beside a perturbation of 0.1, much beside one of 0.001, or in bfloat16.
    """
    sizes, least = np.empty(len(points)), np.empty(len(points))
    for rows in (slice(i, i + _ROWS) for i in range(0, len(points), _ROWS)):
        here, there = (x[rows].reshape(len(x[rows]), -1).astype(np.float64) for x in (inputs, points))
        moved, order = np.abs(there - here), _ORDERS[norm]
        rounding = float(jnp.finfo(points.dtype).eps) * np.maximum(np.abs(here), np.abs(there))
        accumulated = _RTOL + 4 * float(jnp.finfo(jnp.float32).eps) * np.sqrt(moved.shape[1])
        with np.errstate(invalid="ignore"):  # inf - inf, at a point that is none
            shortest = np.linalg.norm(np.maximum(moved - rounding, 0), order, axis=1)
        sizes[rows], least[rows] = np.linalg.norm(moved, order, axis=1), shortest / (1 + accumulated)
    return sizes, least


def table(clean: Clean, results: Mapping[tuple[str, float], Outcome], *, keep_fallen: bool) -> list[Evaluation]:
    """Sum up what attacks did, by name and epsilon; every attack has a result at every epsilon.

    The clean examples come first, then each epsilon with every attack and, if there are several, the worst
    case. ``keep_fallen``: an example that an attack felled at a smaller epsilon has fallen at a larger one too.
    """
    right = clean.right
    rows = [Evaluation(CLEAN, 0.0, float(right.mean()), 0.0, 0.0, 0.0, right, clean.non_finite, 0.0)]
    names = dict.fromkeys(name for name, _ in results)
    for epsilon in dict.fromkeys(epsilon for _, epsilon in results):
        every = []
        for name in names:
            before = [
                outcome._replace(seconds=0.0, seconds_compile=0.0, first_run=False)
                for (other, smaller), outcome in results.items()
                if keep_fallen and other == name and smaller < epsilon
            ]
            outcomes = [*before, results[name, epsilon]]
            rows.append(_evaluation(name, epsilon, clean, outcomes))
            every += outcomes
        if len(names) > 1:
            rows.append(_evaluation(WORST, epsilon, clean, every))
    return rows


def _evaluation(name: str, epsilon: float, clean: Clean, outcomes: Sequence[Outcome]) -> Evaluation:
    # What any of them felled has fallen, by the smallest perturbation; larger ones than epsilon, by more than
    # rounding, have felled nothing. The time is that of all together.
    inside = [outcome.least <= epsilon for outcome in outcomes]
    felled = np.stack([clean.right & ~o.stands & here for o, here in zip(outcomes, inside, strict=True)])
    lost = np.any([clean.right & o.non_finite & here for o, here in zip(outcomes, inside, strict=True)], axis=0)
    fell = felled.any(axis=0)
    lost &= ~fell
    smallest = np.min(np.where(felled, [o.sizes for o in outcomes], np.inf), axis=0)
    relative = smallest[fell] / np.where(clean.lengths[fell] > 0, clean.lengths[fell], 1)
    mean, largest = (float(relative.mean()), float(relative.max())) if fell.any() else (0.0, 0.0)
    stands = clean.right & ~fell & ~lost
    return Evaluation(
        name,
        epsilon,
        float(stands.mean()),
        mean,
        largest,
        sum(outcome.seconds for outcome in outcomes) / len(stands),
        stands,
        clean.non_finite | lost,
        sum(outcome.seconds_compile for outcome in outcomes),
        any(outcome.first_run for outcome in outcomes),
    )


def _judge(loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int) -> tuple[np.ndarray, np.ndarray]:
    # Which examples are classified rightly, and whether their logits say anything.
    right, finite = _judged(trees.as_partial(loss_fn), params, batch, trees.Static(inputs_key))
    return np.asarray(right), np.asarray(finite)


@programs.jit
def _judged(loss_fn: Partial, params: Params, batch: Any, key: trees.Static) -> tuple[jax.Array, jax.Array]:
    logits_fn, spec = losses.parts(loss_fn)
    logits = logits_fn(params, get_inputs(batch, key.value))
    finite = losses.usable(logits)
    return finite & ~has_fallen(spec, logits, batch), finite
