"""Sources: examples with random access, from whatever a caller has."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from hessabs.data.order import epoch_order

_THREADS = 4
_MOST = 2**40
_SAMPLED = 64  # examples of a source that are read to tell it from another
_HELD_OUT = 2**31 - 2  # the "epoch" whose order draws the examples that are held out


class Source(Protocol):
    """Examples with random access, so many as ``len(source)``; the same index gives the same bits every time.

    A source whose ``take`` costs no more than a copy sets ``in_memory = True``: it is read in larger blocks. A
    class that has ``__getitem__`` beside ``take`` inherits from ``Source`` to be known as one.
    """

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Stack the examples at ``indices``, int64 (n,): a dict of NumPy arrays, or of pytrees of them, of
        shape (n, ...). Several threads call it at once, and worker processes on a copy of the source.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Examples in memory; ``source[name]`` is one of the arrays."""

    arrays: dict[str, Any]  # arrays, or pytrees of them, of shape (N, ...)
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Gather rows."""
        # take: twice as fast as indexing, and a short micro-batch of a small network waits for it
        return jax.tree.map(lambda array: np.take(array, indices, axis=0), self.arrays)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(Source):
    """Examples that are read one at a time from ``items``, which has ``__len__`` and ``__getitem__``."""

    items: Any  # with `crops = True` if `__getitem__` takes random bits too, by which it crops an image
    spec: Any = None  # shapes and dtypes of example 0, which all others are to have; None if they surely have

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: np.ndarray, bits: np.ndarray | None = None) -> dict[str, Any]:
        """Read by threads, and stack; with 64 random bits of each example, images are cropped as these say."""
        arguments = [indices.tolist()] if bits is None else [indices.tolist(), bits.tolist()]
        if len(indices) == 1:
            read = list(map(self.items.__getitem__, *arguments))
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                read = list(pool.map(self.items.__getitem__, *arguments))
        examples = [_named(example) for example in read]
        for index, example in zip(arguments[0], examples, strict=True):
            if self.spec is not None and (spec := _spec(example)) != self.spec:
                raise ValueError(
                    f"All examples must have one structure, shapes and dtypes: example 0 has {self.spec}, "
                    f"example {index} has {spec}."
                )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


@dataclasses.dataclass(frozen=True, eq=False)
class View(Source):
    """Some examples of a source; ``check(indices, batch)`` looks at what is read."""

    source: Source
    indices: np.ndarray | None  # None: all of them
    check: Callable[[np.ndarray, dict[str, Any]], None] | None = None

    @property
    def in_memory(self) -> bool:
        return in_memory(self.source)

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def take(self, indices: np.ndarray, *bits: np.ndarray) -> dict[str, Any]:
        """Read from the source."""
        indices = indices if self.indices is None else self.indices[indices]
        batch = self.source.take(indices, *bits)
        if self.check is not None:
            self.check(indices, batch)
        return batch


def in_memory(source: Source) -> bool:
    """Say whether taking examples costs no more than a copy."""
    return bool(getattr(source, "in_memory", False))


def can_crop(source: Source) -> bool:
    """Say whether ``take`` accepts random bits, by which it crops the images that it decodes."""
    while isinstance(source, View):
        source = source.source
    return isinstance(source, Examples) and getattr(source.items, "crops", False)


def as_source(data: Any) -> Source:
    """Make a source of examples.

    Args:
        data: A dict of arrays (or of pytrees of arrays) of one leading size; a tuple, list or other pytree of
            arrays, which is then held under the key ``"example"``; a grain ``MapDataset``, or anything else
            whose ``__len__`` and ``__getitem__`` give one example by its index, a pytree (read ahead by threads
            or worker processes in a training run); or a ``Source``.

    Returns:
        The source; a ``Source`` comes back.

    Raises:
        ValueError: Leading sizes or examples differ, there are none, one has the key ``"weight"``, or there is
            no random access.

    Example:
        >>> source = as_source({"x": np.arange(6).reshape(3, 2), "label": np.array([4, 5, 6])})
        >>> len(source), source.take(np.array([2, 0]))["label"]
        (3, array([6, 4]))
        >>> squares = as_source([np.arange(3) ** 2])
        >>> squares.take(np.array([2]))
        {'example': [array([4])]}
    """
    if Source in type(data).__mro__:
        return data
    leaves = jax.tree.leaves(data, is_leaf=lambda node: isinstance(node, Iterator))
    are_arrays = all(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves)
    if isinstance(data, (Mapping, tuple, list)) or are_arrays:
        return _arrays(_named(data))
    if hasattr(data, "take") and hasattr(data, "__len__") and not hasattr(data, "__getitem__"):
        return data
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError(
            f"Examples need random access, `__len__` and `__getitem__`, which {type(data).__name__} does not "
            "have: a run goes on at any position of any epoch. Read an iterator into arrays, or pass the grain "
            "MapDataset that an IterDataset was made of."
        )
    if not 1 <= len(data) <= _MOST:
        raise ValueError(
            f"A source must hold from one example to {_MOST}, got {len(data)} in a {type(data).__name__}; "
            "leave `repeat()` out, for a run begins a new epoch by itself."
        )
    example = _named(data[0])
    _check_names(example)
    if not jax.tree.leaves(example):
        raise ValueError(f"An example must hold arrays, got {data[0]!r} as the first; filter before.")
    return Examples(data, _spec(example))


def subset(source: Source, indices: np.ndarray) -> Source:
    """Keep the examples at ``indices``, or those that a mask of bools says; without reading them where they are
    not in memory.
    """
    indices, size = np.asarray(indices), len(source)
    if indices.dtype == bool:
        if indices.shape != (size,):
            raise ValueError(f"A mask must be of shape ({size},), one for each example, got {indices.shape}.")
        indices = np.flatnonzero(indices)
    inside = not indices.size or (indices.dtype.kind in "iu" and -size <= indices.min() <= indices.max() < size)
    if not inside:
        raise ValueError(f"`indices` must be whole numbers within the {size} examples, got {indices}.")
    indices = indices.astype(np.int64) % size
    if isinstance(source, Arrays):
        return Arrays(jax.tree.map(lambda array: array[indices], source.arrays))
    return View(source, indices)


def hold_out(source: Any, number: int) -> tuple[Source, Source]:
    """Hold training examples out for choosing, the same ones whatever the seed of a run.

    Args:
        source: What ``as_source`` takes.
        number: How many to hold out; 0 leaves the source as it is.

    Returns:
        (the source without them, they); both keep the order of the source.

    Raises:
        ValueError: ``number`` is negative or leaves no example to train on.

    Example:
        >>> rest, held_out = hold_out({"label": np.arange(5)}, 2)
        >>> sorted([*rest["label"].tolist(), *held_out["label"].tolist()]), len(held_out)
        ([0, 1, 2, 3, 4], 2)
    """
    source = as_source(source)
    available = len(source)
    if not 0 <= number < available:
        reason = f"for there are {available} training examples"
        raise ValueError(f"`validation_examples` must lie in [0, {available - 1}], {reason}, got {number}.")
    held = np.zeros(available, bool)
    held[epoch_order(0, _HELD_OUT, available)[:number]] = True
    rest = subset(source, np.flatnonzero(~held)) if number else source
    return rest, subset(source, np.flatnonzero(held))


def fingerprint(source: Source) -> str:
    """Tell a source from another: 16 digits of the SHA-256 of its labels and of 64 examples, or of its
    arrays where it has no labels; of what lies on disk, of the names of its files and examples; of other
    sources, of 64 examples.
    """
    digest = hashlib.sha256()
    for part in _content(source):
        digest.update(part)
    return digest.hexdigest()[:16]


def _content(source: Source) -> Iterator[Any]:
    if isinstance(source, View) and source.indices is None:
        yield from _content(source.source)
        return
    yield str(len(source)).encode()
    if isinstance(source, View):
        yield from _content(source.source)
        yield np.ascontiguousarray(source.indices).data
    elif isinstance(source, Examples) and hasattr(source.items, "content"):
        yield source.items.content()
    else:
        sampled = np.linspace(0, len(source) - 1, min(len(source), _SAMPLED)).astype(np.int64)
        if not isinstance(source, Arrays):
            batches = [source.take(sampled)]
        elif "label" in source.arrays:
            batches = [{"label": source["label"]}, source.take(sampled)]
        else:
            batches = [source.arrays]
        for batch in batches:
            yield str(_spec(batch)).encode()
            yield from (np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))


def _arrays(tree: dict[str, Any]) -> Arrays:
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): len(leaf) if np.ndim(leaf) else "no axis"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(set(sizes.values())) != 1 or "no axis" in sizes.values():
        raise ValueError(
            f"All arrays of a source must have the same leading size, got {sizes}. A list of examples is to be "
            "stacked, or wrapped in a class with `__len__` and `__getitem__`."
        )
    _check_names(tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.asarray(leaf).dtype.kind not in "biufcV":  # V: bfloat16 and the like
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"A source must hold numbers, got {np.asarray(leaf).dtype} at {name!r}.")
    if 0 in sizes.values():
        raise ValueError(f"A source must hold at least one example, got {sizes}.")
    return Arrays(jax.tree.map(np.asarray, tree))


def _named(tree: Any) -> dict[str, Any]:
    return dict(tree) if isinstance(tree, Mapping) else {"example": tree}


def _check_names(tree: dict[str, Any]) -> None:
    if "weight" in tree:
        raise ValueError("A source must not hold 'weight': the stream makes the weights itself.")
    if {"image", "shift"} <= tree.keys():
        raise ValueError("A source of images must not hold 'shift': that is how the stream moves them.")


def _spec(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: f"{np.asarray(leaf).dtype}{np.shape(leaf)}", tree)
