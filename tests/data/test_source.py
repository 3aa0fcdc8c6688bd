"""Sources: whatever a caller has, by index; what has no random access or no one shape is refused."""

import os
import pathlib
import pickle
import subprocess
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.data import (
    Arrays,
    Source,
    as_source,
    epoch_order,
    eval_batches,
    fingerprint,
    hold_out,
    in_memory,
    micro_batches,
    reader,
    subset,
)


class Pair(NamedTuple):
    x: np.ndarray
    y: np.ndarray


class Squares:
    """Examples that are read one at a time."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"x": np.array([index, index**2])}


class OwnSource:
    def __len__(self):
        return 7

    def take(self, indices):
        return {"x": np.stack([indices, indices**2], 1)}


SQUARES = np.stack([np.arange(7), np.arange(7) ** 2], 1)
SOURCES = {
    "dict": lambda: {"x": SQUARES},
    "jax": lambda: {"x": jnp.asarray(SQUARES)},
    "arrays": lambda: Arrays({"x": SQUARES}),
    "items": Squares,
    "own": OwnSource,
    "subset": lambda: subset(as_source({"x": SQUARES[::-1]}), np.arange(7)[::-1]),
    "subset of items": lambda: subset(subset(as_source(Squares()), np.arange(7)[::-1]), np.arange(7)[::-1]),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_the_same_batches(make):
    source = as_source(make())
    assert as_source(source) is source
    assert len(source) == 7
    np.testing.assert_array_equal(source.take(np.array([6, 0, 6]))["x"], SQUARES[[6, 0, 6]])
    read = reader(make(), 3, seed=2, keep_remainder=True)
    order = epoch_order(2, 0, 7)
    for start in (0, 3, 6):
        batch, _ = read(1)
        np.testing.assert_array_equal(batch["x"], SQUARES[np.concatenate([order, order])[start : start + 3]])
    assert batch["weight"].tolist() == [1, 0, 0]
    rows = np.array([3, 0, 5])
    batch, position = reader(make(), 3, seed=2, own_rows=lambda number: rows % number)(2)
    np.testing.assert_array_equal(batch["x"], SQUARES[order[rows]])
    assert position == (1, 0)
    whole = np.concatenate([batch["x"] for batch in eval_batches(make(), 4)])
    np.testing.assert_array_equal(whole, SQUARES[[*range(7), 0]])


def test_trees_keep_their_structure():
    pair = Pair(np.arange(5), np.arange(10).reshape(5, 2))
    got = as_source({"pair": pair, "nested": {"z": np.ones(5)}}).take(np.array([4, 1]))
    assert isinstance(got["pair"], Pair)
    np.testing.assert_array_equal(got["pair"].y, [[8, 9], [2, 3]])
    assert got["nested"]["z"].shape == (2,)
    for tree in (pair, tuple(pair), list(pair), np.arange(5)):
        batch, _ = next(micro_batches(tree, 2, seed=0))
        assert type(batch["example"]) is type(tree)


def test_grain_map_datasets():
    grain = pytest.importorskip("grain", reason="not installed")
    dataset = grain.MapDataset.source(list(range(7))).map(lambda i: {"x": np.array([i, i**2])})
    source = as_source(dataset)
    np.testing.assert_array_equal(source.take(np.array([5, 2]))["x"], SQUARES[[5, 2]])
    with pytest.raises(ValueError, match=r"random access.*MapDataset that an IterDataset was made of"):
        as_source(dataset.to_iter_dataset())
    with pytest.raises(ValueError, match=r"leave `repeat\(\)` out"):
        as_source(dataset.repeat())
    with pytest.raises(ValueError, match=r"must hold arrays, got None as the first"):
        as_source(dataset.filter(lambda example: example["x"][0] > 0))


class Weighted(Squares):
    def __getitem__(self, index):
        return {"x": index, "weight": 1.0}


class Empty(Squares):
    def __len__(self):
        return 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"a": np.zeros(4), "b": {"c": np.zeros(3)}}, r"same leading size, got {'a': 4, 'b/c': 3}"),
        ({"a": np.zeros(4), "b": np.float32(1)}, r"got {'a': 4, 'b': 'no axis'}"),
        ([{"x": 1}, {"x": 2}], r"A list of examples is to be stacked, or wrapped in a class"),
        ({}, r"same leading size, got {}"),
        ((), r"same leading size, got {}"),
        ({"a": np.zeros((0, 3))}, r"at least one example, got {'a': 0}"),
        (Empty(), r"from one example to \d+, got 0 in a Empty"),
        ({"weight": np.zeros(3)}, r"must not hold 'weight'"),
        (Weighted(), r"must not hold 'weight'"),
        ((i for i in range(3)), r"random access.*which generator does not have.*Read an iterator into arrays"),
        (3, r"random access.*int does not have"),
    ],
)
def test_refusals(data, said):
    with pytest.raises(ValueError, match=said):
        as_source(data)


def test_a_class_with_items_and_take_says_what_it_is():
    class Both(Squares, OwnSource, Source):
        pass

    both = Both()
    assert as_source(both) is both
    assert in_memory(Arrays({"x": SQUARES}))
    assert not in_memory(both)


def test_fingerprints_tell_examples_apart():
    seen = [
        {"x": SQUARES},
        {"x": SQUARES[::-1]},
        {"x": SQUARES.astype(np.float32)},
        {"x": SQUARES[:6]},
        {"x": SQUARES, "label": np.arange(7)},
        {"x": SQUARES, "label": np.arange(7)[::-1]},
    ]
    assert len({fingerprint(as_source(data)) for data in seen}) == len(seen)
    items = as_source(Squares())
    assert fingerprint(items) == fingerprint(pickle.loads(pickle.dumps(items)))
    assert fingerprint(subset(items, np.arange(6))) != fingerprint(subset(items, np.arange(1, 7)))


LABELLED = Arrays(
    {
        "image": np.arange(1000, dtype=np.uint8).reshape(1000, 1, 1, 1),
        "label": np.arange(1000, dtype=np.int32),
    }
)


def test_parts_are_disjoint_whole_and_stay_the_same():
    rest, held = hold_out(LABELLED, 300)
    both = np.concatenate([rest["label"], held["label"]])
    assert (len(rest), len(held)) == (700, 300)
    assert set(both.tolist()) == set(range(1000))
    for part in (rest, held):
        assert (np.diff(part["label"]) > 0).all()
        np.testing.assert_array_equal(part["image"].ravel(), part["label"].astype(np.uint8))
    again, held_again = hold_out(LABELLED, 300)
    np.testing.assert_array_equal(held_again["label"], held["label"])
    assert fingerprint(again) == fingerprint(rest) != fingerprint(held)
    assert 450 < held["label"].mean() < 550  # from everywhere


def test_a_larger_split_contains_a_smaller_one():
    small, large = (set(hold_out(LABELLED, n)[1]["label"].tolist()) for n in (100, 200))
    assert small < large


def test_none_leaves_the_data_set_alone():
    rest, held = hold_out(LABELLED, 0)
    assert rest is LABELLED
    assert len(held) == 0


@pytest.mark.parametrize("number", [-1, 1000])
def test_a_split_out_of_range(number):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 999\], for there are 1000 .* got {number}"):
        hold_out(LABELLED, number)


@pytest.mark.slow
def test_worker_processes_read_sources_of_the_caller():
    options = {"seed": 1, "keep_remainder": True}
    alone, helped = reader(Squares(), 3, **options), reader(Squares(), 3, num_workers=2, **options)
    for count in (1, 2, 3, 1):
        one, two = alone(count), helped(count)
        assert one[1] == two[1]
        np.testing.assert_array_equal(one[0]["x"], two[0]["x"])


class Numbers:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": np.float32(index)}


@pytest.mark.parametrize("kind", [Numbers, lambda: {"x": np.arange(10.0)}])
def test_a_subset_by_a_mask_by_a_list_and_none(kind):
    source, mask = as_source(kind()), np.arange(10) % 3 == 1
    for indices in (mask, [1, 4, 7], np.array([1, 4, -3])):
        part = subset(source, indices)
        assert part.take(np.arange(len(part)))["x"].tolist() == [1, 4, 7]
    for wrong in (mask[:-1], [10], [0.5]):
        with pytest.raises(ValueError, match=r"mask must be of shape|must be whole numbers within the 10"):
            subset(source, wrong)


@pytest.mark.slow
def test_workers_of_a_script_that_is_not_guarded_are_explained(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from hessabs.data import reader\n"
        "from tests.data.test_source import Squares\n"
        "reader(Squares(), 3, seed=0, num_workers=1)(1)\n"
    )
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert 'must stand under `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]
