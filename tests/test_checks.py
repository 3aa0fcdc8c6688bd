"""What parameters must be: each range at its ends, what is no number, and the ranges that settings declare."""

import math
from typing import Annotated, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import checks
from hessabs.training.assemble import SETTINGS
from hessabs.training.durability import Durability
from hessabs.training.look import advise, attack, spectrum

INF, NAN = math.inf, math.nan
DECLARING = [*SETTINGS, Durability, advise.Options, attack.Options, spectrum.Options]
ENDS = {  # what: (what is that, what is not)
    "be at least 0": ((0, 0.5, 10**9), (-1, -1e-9, INF)),
    "be at least 0 and finite": ((0.0, 1e30), (-1e-9, INF)),
    "be at least 0 seconds": ((0.0, 1e9), (-1.0, INF)),
    "be at least 0 examples": ((0, 2**60), (-1, 2**60 + 1)),
    "be at least 1": ((1, 1.0, 10**9), (0, 0.99, INF)),
    "be a whole number of at least 0": ((0, 1.0, 10**9), (-1, 0.5, INF)),
    "be a whole number of at least 1": ((1, 1.0, 10**9), (0, 1.5, INF)),
    "be at least 1 example": ((1, 2**60 - 1), (0, 2**60)),
    "be above 1": ((1.01, 10**9), (1.0, INF)),
    "be positive and finite": ((1e-30, 1e30), (0.0, -1.0, INF)),
    "lie in (0, 1)": ((0.5,), (0.0, 1.0)),
    "lie in (0, 1]": ((1e-9, 1.0), (0.0, 1.01)),
    "lie in [0, 1)": ((0.0, 0.99), (-0.01, 1.0)),
    "lie in [0, 1]": ((0.0, 1.0), (-0.01, 1.01)),
    "be a power of two observations": ((1, 2, 1024), (0, 3, -2)),
    "be positive epochs in ascending order": (((), (1, 2)), ((0, 1), (2, 2), (3, 1))),
    "be positive counts of examples that ascend": (((), (1, 2**60 - 1)), ((0,), (2, 1), (2**60,))),
}


@pytest.mark.parametrize("what", ENDS)
def test_ranges_at_their_ends(what):
    fits, others = ENDS[what]
    for value in fits:
        checks.require(what, x=value)
    for value in (*others, *([] if isinstance(fits[0], tuple) or "power" in what else [NAN])):
        with pytest.raises(ValueError, match=r"^`x` must ") as caught:
            checks.require(what, y=fits[-1], x=value)
        assert str(caught.value) == f"`x` must {what}, got {value}."


def test_every_range_that_a_setting_declares_is_one():
    said = [
        what
        for settings in DECLARING
        for hint in get_type_hints(settings, include_extras=True).values()
        for what in hint.__metadata__[1:]
    ]
    assert len(said) > 40
    assert {*said} <= {*ENDS}
    for settings in DECLARING:
        checks.require_ranges(settings())


def test_a_setting_out_of_its_range_is_named():
    class Settings(NamedTuple):
        rate: Annotated[float | None, "of learning", "lie in [0, 1)"] = None
        seed: Annotated[int, "of all that is drawn"] = -1

    checks.require_ranges(Settings())
    with pytest.raises(ValueError, match=r"^`rate` must lie in \[0, 1\), got 1.0\.$"):
        checks.require_ranges(Settings(1.0))


@pytest.mark.parametrize("value", ["1", None, [1], np.ones(2), jnp.ones(1)], ids=str)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match=r"^`x` must be a number, got "):
        checks.require("be at least 0", x=value)


@pytest.mark.parametrize("value", [np.float32(1), np.int64(1), np.array(1), jnp.float32(1), True], ids=repr)
def test_scalars_of_arrays_are_numbers(value):
    checks.require("be at least 1", x=value)


def test_a_traced_value():
    with pytest.raises(ValueError, match=r"^`x` must be known before tracing"):
        jax.jit(lambda x: checks.require("be at least 0", x=x))(1.0)


def test_what_is_not_read():
    read_with = {"a": ("one", "two"), "b": ("three",)}
    checks.refuse_unread({"a", "other"}, read_with, kind="two")
    checks.refuse_unread({"a", "b"}, read_with, kind=("two", "three"))
    with pytest.raises(
        ValueError, match=r"^`a` is read with kind=one, two, and not with kind=None; leave it out"
    ):
        checks.refuse_unread({"b", "a"}, read_with, kind=None)
    with pytest.raises(ValueError, match=r"^`b` is read with kind=three, and not with kind=one, two; leave"):
        checks.refuse_unread({"b"}, read_with, kind=("one", "two"))
