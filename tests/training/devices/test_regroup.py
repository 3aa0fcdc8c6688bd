"""Saved arrays on another number of devices."""

import numpy as np
import pytest
from hessabs.training.devices.regroup import regroup, saved_shape

from hessabs.training.mesh import all_rows


@pytest.mark.parametrize("dealt", [True, False])
@pytest.mark.parametrize(("saved", "now"), [(1, 4), (4, 2), (2, 1)])
def test_what_goes_with_examples_stays_with_them(dealt, saved, now):
    examples = np.arange(8.0)
    array = examples[all_rows(8, saved, dealt=dealt)]
    moved = regroup("train.memory", array, now, saved, dealt=dealt)
    np.testing.assert_array_equal(moved, examples[all_rows(8, now, dealt=dealt)])
    assert saved_shape("train.memory", (8,), now, saved) == (8,)


def test_keys_are_those_of_any_device():
    keys = np.array([[7, 2**31 + 1]] * 4, np.uint32)
    name = "train.model_state.dropout.Dropout_0.key"
    np.testing.assert_array_equal(regroup(name, keys, 1, 4), keys[0])
    np.testing.assert_array_equal(regroup(name, keys, 2, 4), keys[:2])
