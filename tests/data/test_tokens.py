"""Windows of tokens: each token but the first is predicted once, from memory or from a file."""

import numpy as np
import pytest

from hessabs.data import in_memory, reader, token_source

TOKENS = np.arange(50, 85).astype(np.uint16)


def sources(folder):
    np.save(folder / "tokens.npy", TOKENS)
    TOKENS.tofile(folder / "tokens.bin")
    TOKENS.astype(np.int32).tofile(folder / "wide.bin")
    yield token_source(TOKENS, 4)
    yield token_source(folder / "tokens.npy", 4)
    yield token_source(str(folder / "tokens.bin"), 4)
    yield token_source(folder / "wide.bin", 4, dtype=np.int32)


def test_windows(tmp_path):
    for source in sources(tmp_path):
        assert in_memory(source)
        assert len(source) == 8
        windows = source.take(np.arange(8))["tokens"]
        assert windows.dtype == np.int32
        np.testing.assert_array_equal(windows[:, 1:].ravel(), TOKENS[1:33])
        np.testing.assert_array_equal(windows[:, 0], TOKENS[0:32:4])
        batch, _ = reader(source, 4, seed=0)(2)
        assert sorted(batch["tokens"][:, 0]) == TOKENS[0:32:4].tolist()


@pytest.mark.parametrize(
    ("tokens", "length", "said"),
    [
        (np.zeros((3, 3), int), 2, r"integers of shape \(M,\), got int64\(3, 3\)"),
        (np.zeros(3), 2, r"integers of shape \(M,\), got float64"),
        (np.zeros(3, int), 3, r"lie in \[1, 2\], for 3 tokens, got 3"),
        (np.zeros(3, int), 0, r"lie in \[1, 2\], for 3 tokens, got 0"),
        ("no such file.npy", 2, r"an array or a \.npy or \.bin file, got no such file"),
        (__file__, 2, r"an array or a \.npy or \.bin file"),
    ],
)
def test_refusals(tokens, length, said):
    with pytest.raises(ValueError, match=said):
        token_source(tokens, length)


@pytest.mark.parametrize("tokens", [np.arange(5, dtype=np.uint32) * 10**9, np.array([0, -1, 2])])
def test_numbers_that_are_no_tokens_are_refused_as_they_are_read(tokens):
    source = token_source(tokens, 2)
    with pytest.raises(
        ValueError, match=r"Tokens must lie in 0\.\.2147483647, got .* say which `dtype` it holds"
    ):
        source.take(np.arange(len(source)))
