"""Sequences of tokens: windows of one long array, in memory or mapped from a file."""

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hessabs.data.source import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens(Source):
    """Windows of ``length + 1`` tokens; see ``token_source``."""

    tokens: np.ndarray
    length: int
    in_memory: ClassVar[bool] = True  # as far as the system keeps the pages

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Copy windows."""
        windows = self.tokens[indices[:, None] * self.length + np.arange(self.length + 1)]
        tokens = windows.astype(np.int32)
        if (tokens < 0).any() or (tokens != windows).any():
            raise ValueError(
                f"Tokens must lie in 0..{2**31 - 1}, got {windows.min()} to {windows.max()}, {windows.dtype}; "
                "of a .bin file say which `dtype` it holds."
            )
        return {"tokens": tokens}


def token_source(
    tokens: np.ndarray | str | os.PathLike[str], length: int, *, dtype: str | np.dtype = "uint16"
) -> Source:
    """Cut a sequence of tokens into windows that overlap by one, so that each token but the first is predicted.

    Args:
        tokens: Integers, shape (M,); or the path of a ``.npy`` file, or of a ``.bin`` file of numbers of
            ``dtype`` and nothing else. Files are mapped, not read.
        length: The tokens that a window predicts, at least 1.
        dtype: Of the numbers of a ``.bin`` file.

    Returns:
        A source of ``(M - 1) // length`` examples ``{"tokens": int32 (length + 1,)}``.

    Raises:
        ValueError: The tokens are no integers in one dimension or too few, or ``length`` is below 1; as they
            are read, if some are no tokens.

    Example:
        >>> token_source(np.arange(8), 3).take(np.array([0, 1]))["tokens"].tolist()
        [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    if isinstance(tokens, (str, os.PathLike)):
        path = Path(tokens).expanduser()
        if not path.is_file() or path.suffix not in (".npy", ".bin"):
            raise ValueError(f"`tokens` must be an array or a .npy or .bin file, got {path}.")
        tokens = np.load(path, mmap_mode="r") if path.suffix == ".npy" else np.memmap(path, dtype, "r")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"`tokens` must be integers of shape (M,), got {tokens.dtype}{tokens.shape}.")
    if not 1 <= length < len(tokens):
        raise ValueError(
            f"`length` must lie in [1, {len(tokens) - 1}], for {len(tokens)} tokens, got {length}."
        )
    return Tokens(tokens, length)
