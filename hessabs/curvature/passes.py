"""Passes over the batches of a data set: from an object that can be read again, or a function that opens it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from hessabs.typing import Batch

Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]
"""An iterable of batches, or a function without arguments that returns one."""

_EMPTY = "The data set is empty: iterating over `batches` gave no batch."


def one_pass(batches: Batches) -> Iterator[Batch]:
    """Read batches once; an iterator will do."""
    _check(batches)
    empty = True
    for batch in _open(batches):
        empty = False
        yield batch
    if empty:
        raise ValueError(_EMPTY)


class Passes:
    """Batches that are read again and again; ``passes()`` starts one more pass.

    It remembers that there were batches, and so knows that a later pass without any is the second one over what
    can be read only once; and whether a loss was ``checked`` on them.
    """

    def __init__(self, batches: Batches) -> None:
        _check(batches)
        if isinstance(batches, Iterator):
            raise ValueError(_only_once(type(batches).__name__))
        self._batches = batches
        self._read = False
        self.checked = False

    def __call__(self) -> Iterator[Batch]:
        empty = True
        for batch in _open(self._batches):
            empty = False
            self._read = True
            yield batch
        if empty:
            kind = type(self._batches).__name__
            raise ValueError(
                _only_once(kind, "gave batches in one pass and none in the next") if self._read else _EMPTY
            )


def _only_once(kind: str, what: str = "can be read only once") -> str:
    return (
        f"`batches` must start anew at each product, but {kind} {what}; pass a list, an object whose __iter__ "
        "starts again, or a function that opens the data (`lambda: iter(loader)`)."
    )


def _check(batches: Any) -> None:
    if isinstance(batches, Mapping):
        raise ValueError(
            f"`batches` must be an iterable of batches, got a {type(batches).__name__}; `[batch]` for one."
        )
    if not (_is_iterable(batches) or callable(batches)):
        raise ValueError(
            "`batches` must be an iterable of batches, or a function that returns one, got "
            f"{type(batches).__name__}."
        )


def _open(batches: Any) -> Iterable[Batch]:
    if _is_iterable(batches):
        return batches
    opened = batches()
    if not _is_iterable(opened):
        raise ValueError(f"`batches` must return an iterable of batches, but returned {type(opened).__name__}.")
    return opened


def _is_iterable(x: Any) -> bool:
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")
