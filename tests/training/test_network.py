"""The trained network on disk: what is not of the task is named by its path."""

import re

import numpy as np
import pytest

from hessabs.training.network import load_network, save_network

SAVED = {
    "params": {"a": {"bias": np.ones(3, np.float32), "kernel": np.ones((2, 3), np.float32)}},
    "model_state": {},
}


def other(**params):
    return {"params": params, "model_state": {}}


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (other(a={"kernel": np.ones((2, 3))}), "params.a.bias is only in the folder."),
        (other(**SAVED["params"], b=np.ones(1)), "params.b is only in the task."),
        (
            other(c={"kernel": np.ones((2, 3)), "bias": np.ones(3)}),
            "params.a.bias is only in the folder, params.c.bias is only in the task.",
        ),
        ({**SAVED, "model_state": {"mean": np.ones(3)}}, "model_state.mean is only in the task."),
        (
            other(a={**SAVED["params"]["a"], "bias": np.ones(4, np.float32)}),
            "params.a.bias is float32[3] there and",
        ),
    ],
)
def test_the_first_path_that_differs_is_named(tmp_path, like, said):
    save_network(tmp_path, SAVED)
    with pytest.raises(ValueError, match=re.escape(f"holds another network than the task says: {said}")):
        load_network(tmp_path, like)


def test_what_was_saved_is_read(tmp_path):
    save_network(tmp_path, SAVED)
    got = load_network(tmp_path, SAVED)
    np.testing.assert_array_equal(got["params"]["a"]["kernel"], SAVED["params"]["a"]["kernel"])
