"""Muon for the hidden matrices of any network; AdamW for its embeddings, head, biases and norms."""

from typing import Any

import jax
import optax
from optax import contrib

from hessabs.curvature.layers import output_axes, stack_axes
from hessabs.paths import paths
from hessabs.typing import Params

_HEADS = {"head", "lm_head", "logits", "classifier", "unembed"}
_PROJECTIONS = {"query", "key", "value"}  # of attention: kernels (inputs, heads, outputs)


def muon(beta: Any, adam_b1: Any, adam_b2: Any, *, num_classes: int | None) -> optax.GradientTransformation:
    """Make the direction of Muon, to be multiplied by minus the learning rate.

    Jordan (2024), "Muon: an optimizer for hidden layers". The steps have the size of Adam's, as in Liu et al.
    (2025), arXiv:2502.16982 (``consistent_rms=0.2``), so one rate serves both.
    """

    def of(params: Params) -> optax.GradientTransformationExtraArgs:
        # Of the whole tree: a function within optax's partition would see a part. Given as a function still, as
        # optax calls what can be called, and an Equinox module can.
        numbers = dimension_numbers(params, num_classes)
        return contrib.muon(
            -1.0,
            beta=beta,
            adam_b1=adam_b1,
            adam_b2=adam_b2,
            muon_weight_dimension_numbers=lambda _: numbers,
            consistent_rms=0.2,
        )

    def update(updates: optax.Updates, state: Any, params: Params | None = None) -> tuple[optax.Updates, Any]:
        return of(updates).update(updates, state, params)

    return optax.GradientTransformation(lambda params: of(params).init(params), update)


def dimension_numbers(params: Params, num_classes: int | None) -> Any:
    """Say of each leaf which axes are summed over and which are outputs; None for what is AdamW's.

    The matrix of a convolution has one row for each place and channel of its window. Embeddings and heads are
    known by their names, the head by its ``num_classes`` outputs too. Matrices that a scan stacks (three axes,
    and two of their bias) are each one by itself; without a box or a bias they look like a convolution.
    """
    names, leaves = paths(params), jax.tree.leaves(params)
    numbers: list[contrib.MuonDimensionNumbers | None] = []
    shapes = {name: leaf.shape for name, leaf in zip(names, leaves, strict=True)}
    for name, leaf, out, stack in zip(names, leaves, output_axes(params), stack_axes(params), strict=True):
        keys = name.lower().split("/")
        if stack is None and not _PROJECTIONS & set(keys) and _is_stacked(name, shapes):
            stack, out = 0, 1 if out == 0 else out  # Equinox has the outputs first
        others = [axis for axis in range(leaf.ndim) if axis not in (out, stack)]
        is_head = bool(_HEADS & set(keys)) or (out is not None and leaf.shape[out] == num_classes)
        if out is None or is_head or any("embed" in key for key in keys):
            numbers.append(None)
        elif len(others) == 2 and _PROJECTIONS & set(keys):
            numbers.append(contrib.MuonDimensionNumbers(others[:1], [others[1], out]))
        else:
            numbers.append(contrib.MuonDimensionNumbers(others, [out]))
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def _is_stacked(name: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    shape, bias = shapes[name], shapes.get(f"{name.rpartition('/')[0]}/bias", ())
    return len(shape) == 3 and len(bias) == 2 and bias[0] == shape[0] and bias[1] in shape[1:] and bias[1] > 1
