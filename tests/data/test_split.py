"""The validation split: disjoint, the same at every call, in the order of the training set."""

import numpy as np
import pytest

from hessabs.data import Arrays, fingerprint, hold_out

TRAIN = Arrays(
    {
        "image": np.arange(1000, dtype=np.uint8).reshape(1000, 1, 1, 1),
        "label": np.arange(1000, dtype=np.int32),
    }
)


def test_parts_are_disjoint_whole_and_stay_the_same():
    rest, held = hold_out(TRAIN, 300)
    both = np.concatenate([rest["label"], held["label"]])
    assert (len(rest), len(held)) == (700, 300)
    assert set(both.tolist()) == set(range(1000))
    for part in (rest, held):
        assert (np.diff(part["label"]) > 0).all()
        np.testing.assert_array_equal(part["image"].ravel(), part["label"].astype(np.uint8))
    again, held_again = hold_out(TRAIN, 300)
    np.testing.assert_array_equal(held_again["label"], held["label"])
    assert fingerprint(again) == fingerprint(rest) != fingerprint(held)
    assert 450 < held["label"].mean() < 550  # from everywhere


def test_a_larger_split_contains_a_smaller_one():
    small, large = (set(hold_out(TRAIN, n)[1]["label"].tolist()) for n in (100, 200))
    assert small < large


def test_none_leaves_the_data_set_alone():
    rest, held = hold_out(TRAIN, 0)
    assert rest is TRAIN
    assert len(held) == 0


@pytest.mark.parametrize("number", [-1, 1000])
def test_refusals(number):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 999\], for there are 1000 .* got {number}"):
        hold_out(TRAIN, number)
