"""Counts beyond int32, against Python's own integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hessabs.batch_size.counting import NEVER, Count, at, counts, divide, minimum

numbers = st.one_of(
    st.integers(0, NEVER - 1),
    st.sampled_from([0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32, 10**13, 10**18, NEVER - 1]),
)
DIVISORS = (1, 50_000, 2**30 - 1, 2**30, 10**12 + 39, NEVER - 1)


@jax.jit
def calculate(a, b):
    return (a + b, a >= b, a > b, a == b, a <= b, a < b, a != b, minimum(a, b)), a.to_float()


@settings(max_examples=100, deadline=None)
@given(numbers, numbers)
def test_it_calculates_and_compares_like_a_number(a, b):
    got, as_float = calculate(Count.of(a), Count.of(b))
    want = (a + b, a >= b, a > b, a == b, a <= b, a < b, a != b, min(a, b))
    assert tuple(int(value) for value in got) == want
    np.testing.assert_allclose(as_float, float(a), rtol=2e-7)
    difference = Count.of(max(a, b)) - Count.of(min(a, b))
    assert int(difference) == abs(a - b)
    on_host = Count(*divmod(a, 2**30)) > Count(*divmod(b, 2**30))
    assert bool(on_host) == (a > b)
    assert 0 <= int(difference.low) < 2**30


@pytest.mark.parametrize("divisor", DIVISORS)
def test_division_is_exact(divisor):
    divided = jax.jit(lambda count: divide(count, divisor))

    @settings(max_examples=20, deadline=None)
    @given(st.one_of(numbers, st.integers(1, (NEVER - 1) // divisor).map(lambda k: k * divisor - 1)))
    def check(number):
        quotient, rest = divided(Count.of(number))
        assert (int(quotient), int(rest)) == divmod(number, divisor)

    check()
    if divisor == 50_000:  # and not compiled as a whole
        assert [int(part) for part in divide(Count.of(10**13), divisor)] == list(divmod(10**13, divisor))


@pytest.mark.parametrize("other", [5, np.int32(5), np.int64(5), jnp.int32(5), Count.of(5)])
def test_numbers_of_all_kinds_may_stand_on_either_side(other):
    four = Count.of(4)
    assert bool(other >= four)
    assert bool(other > four)
    assert not bool(four == other)
    assert bool(four <= other)
    assert int(four + other) == int(other + four) == 9


def test_integers_of_the_host_are_split_however_large():
    assert int(Count.of(np.int64(10**13))) == 10**13
    assert [int(at(counts([3, 10**18]), index)) for index in (0, 1)] == [3, 10**18]
    traced = jax.jit(lambda n: Count.of(n) + 2**40)(jnp.int32(2**31 - 1))
    assert int(traced) == 2**31 - 1 + 2**40
    assert [leaf.dtype for leaf in traced] == [jnp.int32, jnp.int32]
    with jax.enable_x64(True):
        wide = Count.of(jnp.asarray(10**13))
        assert (int(wide), wide.low.dtype) == (10**13, jnp.int32)


def test_what_is_no_count_is_refused():
    for value in (1.0, jnp.float32(1), True, "many", np.arange(2)):
        with pytest.raises(TypeError, match="must be a whole number, got"):
            Count.of(value)
    for value in (-1, NEVER + 1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 2\*\*60\], got"):
            Count.of(value)


def test_a_float_is_rounded_to_a_count():
    assert [int(Count.from_float(jnp.float32(value))) for value in (0.0, 2.6, 2.0**40, 3.0 * 2**33)] == [
        0,
        3,
        2**40,
        3 * 2**33,
    ]
