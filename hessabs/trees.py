"""Checks and products on pytrees that ``optax.tree`` does not have."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeGuard, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hessabs import explanations
from hessabs.typing import Operator

_DRAWN_AT_ONCE = 2**24  # random numbers, 64 MiB


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A hashable value that rides in a pytree as structure, not as a leaf."""

    value: Any


def nodes(tree: Any, kind: type[Any]) -> list[Any]:
    """List the nodes of a tree that are of one class of NamedTuples, such as states in that of an optimizer."""
    found = optax.tree.get_all_with_path(tree, kind.__name__)
    return [node for _, node in found if isinstance(node, kind)]


def by_path(tree: Any) -> dict[str, Any]:
    """List the leaves of a tree by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def describe(leaf: Any) -> str:
    """Say what a leaf is, dtype and shape, in a message."""
    return "nothing" if leaf is None else f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def size(tree: Any) -> int:
    """Count the entries of the leaves of a tree, of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@overload
def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial: ...
@overload
def as_partial(function: None) -> None: ...
def as_partial(function: Any) -> Any:
    """Make a callable a pytree, so that it may be an argument of a jitted function; None stays."""
    return function if function is None or is_operator(function) else jax.tree_util.Partial(function)


def is_operator(function: Any) -> TypeGuard[Any]:
    """Tell whether something is a callable AND a pytree: an ``Operator`` or a ``jax.tree_util.Partial``."""
    return isinstance(function, (Operator, jax.tree_util.Partial))


def check_like(got: Any, want: Any, got_name: str, want_name: str, *, dtypes: bool = False) -> None:
    """Raise unless two pytrees have the same structure and leaf shapes (and dtypes), with both sides shown."""
    got_leaves, want_leaves = by_path(got), by_path(want)
    for path in [*want_leaves, *got_leaves]:
        left, right = got_leaves.get(path), want_leaves.get(path)
        if left is None or right is None or jnp.shape(left) != jnp.shape(right):
            what, advice = "structure", ""
        elif dtypes and jnp.result_type(left) != jnp.result_type(right):
            cast = f"jax.tree.map(lambda v, p: v.astype(p.dtype), {got_name}, {want_name})"
            what, advice = "dtypes", f"; cast it, `{cast}`"
        else:
            continue
        raise ValueError(
            f"`{got_name}` must have the {what} of `{want_name}`, but at {path or 'the root'} "
            f"`{got_name}` has {describe(left)} and `{want_name}` has {describe(right)}{advice}."
        )


def is_key(leaf: Any) -> bool:
    """Tell whether a leaf is a typed random key, of ``jax.random.key``."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def check_floating(tree: Any, name: str) -> None:
    """Raise unless every leaf is a floating-point array."""
    leaves = by_path(tree).items()
    if not leaves:
        raise ValueError(f"`{name}` must hold at least one array, got an empty pytree.")
    if reason := explanations.whole_model(tree):
        raise ValueError(f"`{name}` {reason}.")
    for path, leaf in leaves:
        if wrong := explanations.no_param(leaf):
            got = f"{wrong[0]} at {path or 'the root'}; {wrong[1]}"
            raise ValueError(f"`{name}` must hold floating-point arrays, got {got}.")
    if not any(leaf.size for _, leaf in leaves):
        raise ValueError(f"`{name}` must hold at least one number, got arrays of size zero only.")


def safe_inverse(x: jax.Array) -> jax.Array:
    """Return 1 / x, or 0 where x is 0; finite wherever 1 / x is representable."""
    return jnp.where(x != 0, 1 / jnp.where(x != 0, x, 1), 0)


def finite_or_zero(x: jax.Array) -> jax.Array:
    """Return an array with 0 in the place of each entry that is not finite."""
    return jnp.where(jnp.isfinite(x), x, 0)


def upcast(x: jax.Array) -> jax.Array:
    """Bring an array to float32 at the least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def coarseness(tree: Any) -> float:
    """Return the epsilon of the coarsest leaves, where they are coarser than float32; 0 otherwise."""
    coarsest = max(float(jnp.finfo(jnp.result_type(x)).eps) for x in jax.tree.leaves(tree))
    return coarsest if coarsest > float(jnp.finfo(jnp.float32).eps) else 0.0


def normalize(tree: Any) -> tuple[Any, jax.Array]:
    """Scale a pytree to norm 1, the zero tree to zero; return it and its norm, in at least float32."""
    # Scaled by the largest entry first, neither tiny nor huge trees lose their norm to under- or overflow.
    largest = optax.tree.norm(tree, ord=jnp.inf).astype(_norm_dtype(tree))
    scaled = jax.tree.map(lambda x: x * safe_inverse(largest), tree)
    norm = jnp.sqrt(vdot(scaled, scaled))
    unit = jax.tree.map(lambda x, like: (x * safe_inverse(norm)).astype(like.dtype), scaled, tree)
    return unit, norm * largest


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Draw a pytree of independent standard normal numbers."""
    return random_like(key, tree, jax.random.normal)


def random_like(key: jax.Array, tree: Any, sampler: Callable[..., jax.Array]) -> Any:
    """Draw a pytree of independent random numbers, sharded as a tree is; they do not depend on how it is."""
    # XLA takes a quarter of a second or more to compile a draw. So small leaves are cut from one, of a power of
    # two of numbers, which many trees share; a large leaf has its own, computed where it lies.
    leaves = jax.tree.leaves(tree)
    together: list[list[Any]] = []
    for leaf in leaves:
        if not together or size([*together[-1], leaf]) > _DRAWN_AT_ONCE:
            together.append([])
        together[-1].append(leaf)
    draw = _cut_traced if is_traced(key, tree) else _cut
    keys = jax.random.split(key, len(together))
    drawn = [x for one, few in zip(keys, together, strict=True) for x in draw(one, few, sampler)]
    return jax.tree.unflatten(jax.tree.structure(tree), drawn)


def ravel(tree: Any) -> tuple[jax.Array, Static]:
    """Concatenate the leaves of a pytree into one vector, in at least float32, and say how to ``unravel`` it:
    by a static value, not by a new function, so that a jitted function which takes it is compiled once.
    """
    dtype = _norm_dtype(tree)
    flat = jnp.concatenate([jnp.ravel(x).astype(dtype) for x in jax.tree.leaves(tree)])
    return flat, shape_of(tree)


def shape_of(tree: Any) -> Static:
    """Say by a static value how a vector is cut into the leaves of a pytree, as ``ravel`` does."""
    leaves, treedef = jax.tree.flatten(tree)
    return Static((treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)))


def unravel(flat: Any, shape: Static) -> Any:
    """Cut a vector, or several with leading axes, into the leaves of a pytree; the inverse of ``ravel``."""
    treedef, shapes = shape.value
    ends = np.cumsum([math.prod(s) for s, _ in shapes])
    parts = [flat[..., end - math.prod(s) : end] for end, (s, _) in zip(ends, shapes, strict=True)]
    lead = flat.shape[:-1]
    return treedef.unflatten(
        [p.reshape((*lead, *s)).astype(dtype) for p, (s, dtype) in zip(parts, shapes, strict=True)]
    )


def vdot(a: Any, b: Any) -> jax.Array:
    """Inner product of two pytrees, accumulated in at least float32."""
    dtype = _norm_dtype((a, b))
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def constant(tree: Any) -> Any:
    """Let no derivative go through the leaves of a tree that are traced."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_traced(leaf) else leaf, tree)


def is_traced(*trees: Any) -> bool:
    """Tell whether any leaf is a tracer, that is, whether the caller itself is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def cut_like(numbers: Any, tree: Any) -> Any:
    """Cut a vector, in NumPy where nothing is traced, into leaves like those of a tree, sharded as they are."""
    if is_traced(numbers, tree):  # what is added carries the axes of a leaf, where they are explicit
        return jax.tree.map(lambda x, like: x + jnp.zeros_like(like), unravel(numbers, shape_of(tree)), tree)

    def place(part: np.ndarray, like: Any) -> jax.Array:
        sharding = _of_several_devices(like)
        if sharding is None:
            return jax.device_put(part)
        return jax.make_array_from_callback(part.shape, sharding, part.__getitem__)

    return jax.tree.map(place, unravel(numbers, shape_of(tree)), tree)


def _of_several_devices(leaf: Any) -> jax.sharding.Sharding | None:
    return leaf.sharding if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 else None


def _cut(key: jax.Array, leaves: list[Any], sampler: Callable[..., jax.Array]) -> list[jax.Array]:
    """Draw leaves at once, and cut them on the host, where nothing is compiled for their shapes."""
    number, dtype = size(leaves), _norm_dtype(leaves)
    if number > _DRAWN_AT_ONCE:
        [leaf] = leaves
        draw = jax.jit(sampler, static_argnums=(1, 2), out_shardings=_of_several_devices(leaf))
        return [draw(key, leaf.shape, dtype).astype(leaf.dtype)]
    numbers = sampler(key, (1 << (number - 1).bit_length(),), dtype)
    drawn: list[jax.Array] = cut_like(np.asarray(numbers)[:number], leaves)
    return drawn


def _cut_traced(key: jax.Array, leaves: list[Any], sampler: Callable[..., jax.Array]) -> list[jax.Array]:
    shape = leaves[0].shape if len(leaves) == 1 else (size(leaves),)
    numbers = sampler(key, shape, _norm_dtype(leaves))
    numbers = jax.lax.optimization_barrier(numbers)  # else XLA draws them again in each leaf
    drawn: list[jax.Array] = cut_like(numbers.ravel(), leaves)
    return drawn


def _norm_dtype(tree: Any) -> Any:
    return jnp.result_type(jnp.float32, *[x.dtype for x in jax.tree.leaves(tree)])
