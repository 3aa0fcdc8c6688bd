"""What every room asks of its parameters, in one line, with what was got."""

from collections.abc import Sequence
from typing import Any


def require_one_of(known: Sequence[Any], **parameters: Any) -> None:
    """Raise ``ValueError`` unless parameters are among the words that are known."""
    for name, value in parameters.items():
        if value not in known:
            raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}.")
