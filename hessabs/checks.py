"""What every room asks of its parameters, in one line, with what was got."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def require_one_of(known: Sequence[Any], **parameters: Any) -> None:
    """Raise ``ValueError`` unless parameters are among the words that are known."""
    for name, value in parameters.items():
        if value not in known:
            raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}.")


def refuse_unread(given: Collection[str], read_with: Mapping[str, Sequence[str]], **chosen: Any) -> None:
    """Refuse a setting that was given and is read with other values of the one that is chosen.

    >>> refuse_unread({"lr_end", "seed"}, {"lr_end": ("cosine", "wsd")}, schedule="step")
    Traceback (most recent call last):
    ...
    ValueError: `lr_end` is read with schedule=cosine, wsd, and not with schedule=step; leave it out.
    """
    [(name, choice)] = chosen.items()
    choices = choice if isinstance(choice, tuple) else (choice,)
    for setting in sorted({*given} & {*read_with}):
        readers = read_with[setting]
        if not {*choices} & {*readers}:
            raise ValueError(
                f"`{setting}` is read with {name}={', '.join(readers)}, and not with {name}="
                f"{', '.join(map(str, choices))}; leave it out."
            )
