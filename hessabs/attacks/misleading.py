"""What makes the accuracy under attack look better than it is: signs of it, each with a sentence."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks import losses
from hessabs.attacks.losses.examples import has_fallen
from hessabs.attacks.outcomes import CLEAN, WORST, Clean, Evaluation, Outcome
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import LossFn, Params

_SAME = 1e-3  # of the largest logit: what other rows of the batch may change, by rounding
_SUM, _NARROW_SUM = 1e-3, 0.03  # by which the sum of probabilities may differ from 1, below float32 the second
_CLEAR = 0.05  # of the largest logit: a lead that no rounding makes
_SURE = 2.0  # standard deviations from which on a difference between attacks is none of chance


class Misleading(NamedTuple):
    """What was seen of one batch, or of several: the parts of a field are joined end to end."""

    zero_gradient: np.ndarray  # (n,), bool: examples at which the gradient of the loss is zero
    non_finite_gradient: np.ndarray  # (n,), bool: examples at which some entry of it is not finite
    random: np.ndarray  # (batches,), bool: whether the network gives other logits for the same inputs again
    mixing: np.ndarray  # (batches,), bool: whether the logits of an example depend on the others
    probabilities: np.ndarray  # (batches,), bool: whether the logits look like probabilities
    stale: np.ndarray  # (n,), bool: examples that the compiled network classifies otherwise than this one

    def messages(self, right: np.ndarray) -> list[str]:
        """Say it, in a line each; ``right``, (n,), tells which examples are classified rightly."""
        mixing = self.mixing.any()
        flat, broken = np.sum(self.zero_gradient & right), np.sum(self.non_finite_gradient)
        seen = {
            f"The gradient of {flat} of {right.sum()} rightly classified examples is zero: attacks that follow "
            "it cannot move them, which is no robustness. Try another loss, minimal attacks or square.": flat,
            f"The gradient of {broken} of {len(right)} examples has entries that are not finite: attacks do "
            "not move these. Look for a square root, a norm or a logarithm at 0 in the network.": broken,
            "The network gives other logits for the same inputs at a second call: it is not deterministic, and "
            "the accuracies are those of single draws.": self.random.any(),
            "The logits of an example depend on the other examples of its batch, as with batch norm in "
            "training mode: attacks then move what they do not mean to. Pass it in evaluation mode.": mixing,
            "The logits lie in [0, 1] and sum to 1 for each example, as probabilities do: a second softmax "
            "hides the gradient. Pass logits, from before the softmax.": self.probabilities.all(),
            "The network has changed since it was compiled, and the accuracies are those of an earlier one: it "
            "reads arrays that are no arguments. Bind them with jax.tree_util.Partial, or make them params.": (
                self.stale.any() and not self.random.any()
            ),
        }
        return [line for line, is_so in seen.items() if is_so]


def look(loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, right: np.ndarray) -> Misleading:
    """Look for what misleads attacks, in a loss that carries its logits and a batch; ``right`` of ``Clean``."""
    logits_fn, spec = losses.parts(loss_fn, "look")
    gradient = np.asarray(_gradient(trees.as_partial(loss_fn), params, batch, trees.Static(inputs_key)))
    gradient = gradient.reshape(len(gradient), -1)
    inputs = get_inputs(batch, inputs_key)
    raw = [np.asarray(logits_fn(params, x)) for x in (inputs, inputs, _first_everywhere(inputs))]
    first, second, alone = (x.astype(np.float32) if x.dtype.itemsize < 4 else x for x in raw)
    random = not np.array_equal(first, second, equal_nan=True)
    largest = np.max(np.abs(first[0]), initial=0, where=np.isfinite(first[0]))
    same = np.allclose(first[0], alone[0], rtol=0, atol=_SAME * largest, equal_nan=True)
    tolerance = _SUM if raw[0].dtype.itemsize >= 4 else _NARROW_SUM
    probable = (first.min() >= 0) & (np.abs(first.sum(axis=1) - 1) <= tolerance).all()
    second_best, best = np.sort(first, axis=1)[:, -2:].T
    is_clear = np.isfinite(best) & (best - second_best > _CLEAR * np.abs(best))  # by more than rounding
    return Misleading(
        zero_gradient=np.all((gradient == 0) | ~np.isfinite(gradient), axis=1),
        non_finite_gradient=~np.isfinite(gradient).all(axis=1) & np.isfinite(first.max(axis=1)),
        random=np.array([random]),
        mixing=np.array([not random and not same]),
        probabilities=np.array([bool(probable)]),
        stale=is_clear & (right == np.asarray(has_fallen(spec, jnp.asarray(raw[0]), batch))),
    )


def not_finite(rows: Sequence[Evaluation]) -> list[str]:
    """Say where logits are not finite."""
    before = rows[0].non_finite
    found = [f"{before.sum()} as they are"] if before.any() else []
    for row in rows[1:]:
        if row.attack != WORST and (more := int((row.non_finite & ~before).sum())):
            found.append(f"{more} after {row.attack} at epsilon {row.epsilon:g}")
    if not found:
        return []
    return [
        f"The logits of some of {len(before)} examples are not finite: {', '.join(found)}. These count neither "
        "as robust nor as fallen (`non_finite`), so the accuracy may be too low by as many."
    ]


def outside(results: Mapping[tuple[str, float], Outcome], clean: Clean, minimal: Collection[str]) -> list[str]:
    """Say which results lie outside the ball, where an attack is not ``minimal``, or the bounds."""
    found: dict[str, list[str]] = {}
    for (name, epsilon), outcome in results.items():
        is_out = np.isnan(outcome.least) | (outcome.least > (np.inf if name in minimal else epsilon))
        if out := int(np.sum(is_out & clean.right)):
            found.setdefault(name, []).append(f"{out} of {int(clean.right.sum())} at epsilon {epsilon:g}")
    return [
        f"Results of {name} lie outside the ball or the bounds and count as no success: {', '.join(counts)}. "
        "Are its norm, epsilon and bounds those of the evaluation?"
        for name, counts in found.items()
    ]


def barely_fallen(stopped: Collection[str]) -> list[str]:
    """Say which attacks ``stopped`` at the first error of another network than the one that judges."""
    if not stopped:
        return []
    return [
        f"Few examples transfer from the first error of their source, where {', '.join(sorted(stopped))} "
        "stopped: pass early_exit=False to attacks that take it, and judge transfer by these."
    ]


def masked(rows: Sequence[Evaluation], black_box: Collection[str]) -> list[str]:
    """Say where a ``black_box`` attack, one that follows no gradient, fells more than those that follow it."""
    lines = []
    for epsilon in dict.fromkeys(row.epsilon for row in rows[1:]):
        at = [row for row in rows if row.epsilon == epsilon and row.attack not in (CLEAN, WORST)]
        felled_by = {row.attack: ~row.withstood & ~row.non_finite for row in at}
        follow = [felled for name, felled in felled_by.items() if name not in black_box]
        for name in (name for name in felled_by if name in black_box and follow):
            felled, others = felled_by[name], np.any(follow, axis=0)
            alone, never = int(np.sum(felled & ~others)), int(np.sum(others & ~felled))
            if alone - never > _SURE * np.sqrt(alone + never):
                lines.append(
                    f"At epsilon {epsilon:g} {name}, which follows no gradient, fells {alone} examples that no "
                    f"attack along the gradient fells, and misses {never} of theirs: gradients are masked, or "
                    "those attacks are too weak. Try more steps and restarts, and another loss."
                )
    return lines


def _first_everywhere(inputs: Any) -> Any:
    # A batch of the same shape and place, so that nothing is compiled again, in which the others are the first.
    host = np.asarray(inputs)
    copies = np.ascontiguousarray(np.broadcast_to(host[:1], host.shape))
    return jax.device_put(copies, inputs.sharding) if isinstance(inputs, jax.Array) else copies


@programs.jit
def _gradient(loss_fn: Partial, params: Params, batch: Any, inputs_key: trees.Static) -> jax.Array:
    def total(inputs: jax.Array) -> jax.Array:
        moved = with_inputs(batch, inputs_key.value, inputs)
        return jnp.sum(losses.per_example(loss_fn, params, moved, inputs_key.value)[0])

    return trees.upcast(jax.grad(total)(get_inputs(batch, inputs_key.value)))
