"""What a layer is: the one place that says it, for the models of any library.

The leaves with one parent are a layer: kernel and bias of a ``Dense``, in Linen params (boxed or not), an NNX
state, an Equinox module, Haiku's flat names or plain dicts. A model that scans over its layers holds all of
them in one array each, with a leading axis of layers: its layers are the slices, when the caller says so
(``stacked=``) or the boxes of the arrays name an axis ``"layers"``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from hessabs.paths import Where, is_box, matcher, paths
from hessabs.typing import Params

IsLayer: TypeAlias = Callable[[str], str | None] | Sequence[str]
"""The caller's own word: ``path -> name of its layer`` (None for none), or the layers as prefixes of paths."""

_LAYERS = "layers"  # what flax models that scan call the axis (nn.PARTITION_NAME)
_ONE_LAYER = {"kernel", "weight", "w", "bias", "b"}  # leaves of one layer, without a key above
_NO_KERNEL = {"bias", "scale", "offset"}  # flax, haiku, Equinox: biases, and the scales of normalisation


class Layer(NamedTuple):
    """The leaves of one layer, or its slice of the leaves of a stack."""

    name: str  # the path of the layer, keys joined with "/"; "[i]" appended in a stack
    paths: tuple[str, ...]  # of its leaves, as ``hessabs.paths.paths`` writes them
    position: int | None = None  # which layer of the stack, or None for no stack
    axis: int = 0  # where the layers lie in the leaves of the stack


def layers(
    params: Params, is_layer: IsLayer | None = None, *, stacked: Where | None = None
) -> dict[str, Layer]:
    """Find the layers of a model.

    Args:
      params: Its params: a pytree of arrays.
      is_layer: A function from the path of a leaf to the name of its layer (None: of none), or a list of
        prefixes, of which the first that fits holds. None for the leaves that have one parent.
      stacked: Which leaves have a leading axis of layers, as part of a path or a predicate. None for those
        whose boxes name an axis ``"layers"``.

    Returns:
      ``Layer`` by name, in the order of the tree. Layers without a number are left out.

    Raises:
      ValueError: If ``is_layer`` or ``stacked`` finds nothing, or the leaves of a stacked layer disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"body": {"kernel": jnp.ones((2, 3, 3))}, "head": {"bias": jnp.ones(3)}}
      >>> list(layers(params)), list(layers(params, stacked="body"))
      (['body', 'head'], ['body[0]', 'body[1]', 'head'])
      >>> layers(params, ["head"])
      {'head': Layer(name='head', paths=('head/bias',), position=None, axis=0)}
    """
    names = paths(params)
    belongs = _naming(names, is_layer)
    leaves = jax.tree.leaves(params)
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        layer = belongs(name)
        if layer is not None and leaves[i].size:
            groups.setdefault(layer, []).append(i)
    if not groups:
        raise ValueError(f"`is_layer` finds no layer: got {is_layer!r}, there are {', '.join(names)}.")
    axes = stack_axes(params, stacked)
    found = {}
    for layer, members in groups.items():
        for one in _slices(layer, [(names[i], leaves[i].shape, axes[i]) for i in members]):
            found[one.name] = one
    return found


def last_layer_path(params: Params, num_outputs: int | None) -> str:
    """Find the last layer of a network: the last matrix with so many outputs.

    Args:
      params: The params of a network.
      num_outputs: Its number of classes, say; None is refused as not known.

    Returns:
      The path of the layer, as ``restrict`` takes it. Of names with numbers, the largest is the last.

    Raises:
      ValueError: If there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> last_layer_path({"Dense_9": {"kernel": jnp.ones((4, 2))}, "Dense_10": {"w": jnp.ones((2, 2))}}, 2)
      'Dense_10'
    """
    leaves = zip(paths(params), jax.tree.leaves(params), output_axes(params), strict=True)
    kernels = [(path, x.shape[axis]) for path, x, axis in leaves if x.ndim == 2 and axis is not None]
    heads = {path for path, outputs in kernels if outputs == num_outputs}
    there = layers(params)
    names = [name for name, layer in there.items() if heads & set(layer.paths)]
    if not names:
        known = num_outputs is not None
        what = (
            f"no matrix with {num_outputs} outputs is"
            if known
            else "its number of outputs (`num_classes`) is not"
        )
        raise ValueError(f"The last layer is not known: {what} there. Its layers are {', '.join(there)}.")
    return max(names, key=lambda name: (len(name), name))


def stack_axes(params: Params, stacked: Where | None = None) -> list[int | None]:
    """Say which axis of each leaf counts the layers of a stack."""
    names = paths(params)
    if stacked is not None:
        axes = [0 if matcher(stacked)(name) else None for name in names]
        if not any(axis == 0 for axis in axes):
            raise ValueError(f"`stacked` finds no leaf: got {stacked!r}, there are {', '.join(names)}.")
        return axes
    known = _named_axes(params)
    belongs = _naming(names, None)
    # A scan stacks all leaves of a layer alike, and may have boxed some of them only.
    by_layer = {belongs(name): axis for name, axis in zip(names, known, strict=True) if axis is not None}
    return [by_layer.get(belongs(name)) for name in names]


def output_axes(
    params: Params, output_axis: int | None = None, *, stacked: Where | None = None
) -> list[int | None]:
    """Say which axis of each leaf counts the outputs of its layer: filters, units, classes."""
    found: list[int | None] = []
    leaves, names, stacks = jax.tree.leaves(params), paths(params), stack_axes(params, stacked)
    for leaf, name, equinox, stack in zip(leaves, names, _equinox_layers(params), stacks, strict=True):
        own = [axis for axis in range(leaf.ndim) if axis != stack]
        parent, _, key = name.rpartition("/")
        haiku_bias = key == "b" and f"{parent}/w" in names
        if len(own) < 2 or key in _NO_KERNEL or haiku_bias or "Norm" in equinox:
            found.append(None)
        elif output_axis is not None:
            found.append(own[output_axis])
        else:
            found.append(own[0 if equinox else -1])
    return found


def _naming(names: list[str], is_layer: IsLayer | None) -> Callable[[str], str | None]:
    if callable(is_layer):
        return is_layer
    if is_layer is not None:
        prefixes = [prefix.strip("/") for prefix in ([is_layer] if isinstance(is_layer, str) else is_layer)]
        for prefix in prefixes:
            if not any(f"{name}/".startswith(f"{prefix}/") for name in names):
                raise ValueError(f"`is_layer` names {prefix!r}, but no leaf lies there: {', '.join(names)}.")
        return lambda path: next((p for p in prefixes if f"{path}/".startswith(f"{p}/")), None)
    root = [name for name in names if "/" not in name]
    one = len(root) > 1 and set(root) <= _ONE_LAYER

    def parent(path: str) -> str:
        if "/" in path:
            return path.rpartition("/")[0]
        return path.rpartition(".")[0] or ("root" if one else path)  # "layers.0.weight", as PyTorch names it

    return parent


def _slices(layer: str, members: list[tuple[str, tuple[int, ...], int | None]]) -> Iterator[Layer]:
    names = tuple(name for name, _, _ in members)
    axis, *others = {axis for _, _, axis in members}
    if axis is None and not others:
        yield Layer(layer, names)
        return
    if axis is None or others or any(not shape for _, shape, _ in members):
        raise ValueError(
            f"The leaves of a stacked layer must all have the axis of layers, but in {layer} "
            f"{', '.join(f'{name} has {axis}' for name, _, axis in members)}."
        )
    length, *unlike = {shape[axis] for _, shape, _ in members}
    if unlike:
        raise ValueError(
            f"The leaves of a stacked layer must have one number of layers, but in {layer} "
            f"{', '.join(f'{name} has shape {shape}' for name, shape, _ in members)}."
        )
    for position in range(length):
        yield Layer(f"{layer}[{position}]", names, position, axis)


def _named_axes(params: Params) -> list[int | None]:
    axes: list[int | None] = []
    for node in jax.tree.leaves(params, is_leaf=is_box):
        names: Any = ()
        if hasattr(type(node), "get_metadata"):
            metadata = node.get_metadata()
            names = metadata.get("out_sharding") or metadata.get("sharding_names") or ()
        elif is_box(node):
            names = getattr(node, "names", ())
        axis = list(names).index(_LAYERS) if _LAYERS in tuple(names) else None
        axes += [axis] * len(jax.tree.leaves(node))
    return axes


def _equinox_layers(node: Any, layer: str = "") -> list[str]:
    # The class of the layer of `equinox.nn` that each leaf hangs from, or "". A box is as good as a leaf.
    children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    if is_box(node) or any(child is node for child in children):
        return [layer] * len(jax.tree.leaves(node))
    kind = type(node)
    layer = kind.__name__ if any(c.__module__.startswith("equinox.nn") for c in kind.__mro__) else ""
    return [name for child in children for name in _equinox_layers(child, layer)]
