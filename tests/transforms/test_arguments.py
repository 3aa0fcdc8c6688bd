"""What an update was not given, or is not all of, is said."""

import jax.numpy as jnp
import optax
import pytest

from hessabs.transforms.arguments import require_arguments

pytestmark = pytest.mark.sampled

W = jnp.ones(3)


def test_what_an_update_was_not_given():
    require_arguments("tx", params=W, loss_fn=len)
    with pytest.raises(ValueError, match=r"^tx needs params, batch: call update\(.*batch=\.\.\.\)\.$"):
        require_arguments("tx", params=None, loss_fn=len, batch=None)
    with pytest.raises(ValueError, match=r"batch=\.\.\.\), the loss in evaluation mode\."):
        require_arguments("tx", ", the loss in evaluation mode.", params=W, batch=None)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": W, "b": optax.MaskedNode()}, r"^tx evaluates the loss and needs all params: put it outside of"),
        ({"a": W, "b": abs}, r"take the arrays of an Equinox module"),
    ],
)
def test_params_that_are_not_all_and_only_params(params, message):
    with pytest.raises(ValueError, match=message):
        require_arguments("tx", params=params)
