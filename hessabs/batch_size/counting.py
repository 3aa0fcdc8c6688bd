"""Counts of examples (or tokens) far beyond int32, exact, under jit and without x64; and events among them.

A run of language models sees 1e13 tokens, an int32 holds 2e9. A ``Count`` is two of them. It adds, subtracts
and compares like a number, with Python ints and int32 arrays too::

    samples = Count.of(0)
    samples = samples + state.batch_size  # in a jitted loop
    due = samples >= state.observe_at  # a bool array
    int(samples)  # on the host
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.checks import NEVER as NEVER  # the count that stands for "never"; all others are below it

_BITS = 30
_MASK = 2**_BITS - 1
_DIGIT = 8  # bits of a quotient that are found at once


class _Pair(NamedTuple):
    high: Any  # int32
    low: Any  # int32


class Count(_Pair):
    """A whole number, ``high * 2**30 + low`` with ``0 <= low < 2**30``; a named tuple of two int32 arrays."""

    __slots__ = ()
    __array_ufunc__ = None  # NumPy scalars on the left leave operators to this class

    @classmethod
    def of(cls, value: Any) -> "Count":
        """Make a count of a number.

        Args:
          value: A Python or NumPy integer from 0 to 2**60, an integer array of JAX, or a count.

        Raises:
          TypeError: If it is no integer.
          ValueError: If a number of the host lies outside its range.

        Example:
          >>> int(Count.of(10**13) + jnp.int32(4_000_000))
          10000004000000
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, jax.Array):
            if not jnp.issubdtype(value.dtype, jnp.integer):
                raise TypeError(f"A count must be a whole number, got an array of {value.dtype}.")
            return cls((value >> _BITS).astype(jnp.int32), (value & _MASK).astype(jnp.int32))
        if isinstance(value, bool) or np.ndim(value) or np.asarray(value).dtype.kind not in "iu":
            raise TypeError(f"A count must be a whole number, got {value!r}.")
        several = counts([int(value)])
        return cls(jnp.asarray(several.high[0]), jnp.asarray(several.low[0]))

    def __int__(self) -> int:
        return (int(self.high) << _BITS) + int(self.low)

    def __add__(self, other: Any) -> "Count":
        other = Count.of(other)
        return _carried(self.high + other.high, self.low + other.low)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Count":
        other = Count.of(other)
        return _carried(self.high - other.high, self.low - other.low)

    def __ge__(self, other: Any) -> jax.Array:  # type: ignore[override]
        other = Count.of(other)
        return (self.high > other.high) | ((self.high == other.high) & (self.low >= other.low))

    def __gt__(self, other: Any) -> jax.Array:  # type: ignore[override]
        other = Count.of(other)
        return (self.high > other.high) | ((self.high == other.high) & (self.low > other.low))

    def __le__(self, other: Any) -> jax.Array:  # type: ignore[override]
        return Count.of(other) >= self

    def __lt__(self, other: Any) -> jax.Array:  # type: ignore[override]
        return Count.of(other) > self

    def __eq__(self, other: object) -> jax.Array:  # type: ignore[override]
        other = Count.of(other)
        return (self.high == other.high) & (self.low == other.low)

    def __ne__(self, other: object) -> jax.Array:  # type: ignore[override]
        other = Count.of(other)
        return (self.high != other.high) | (self.low != other.low)

    __hash__ = None  # type: ignore[assignment]

    def to_float(self) -> jax.Array:
        """Return the count as float32, rounded."""
        # The product is exact, so a compiler that fuses it with the sum gives the same bits.
        return jnp.asarray(self.high, jnp.float32) * 2.0**_BITS + jnp.asarray(self.low, jnp.float32)

    @classmethod
    def from_float(cls, value: jax.Array) -> "Count":
        """Round a float32 scalar, from 0 to below 2**60, to a count."""
        value = jnp.round(value)
        high = jnp.floor(value * 2.0**-_BITS)
        return cls(high.astype(jnp.int32), (value - high * 2.0**_BITS).astype(jnp.int32))


def counts(values: Sequence[int]) -> Count:
    """Make the counts of several Python ints from 0 to 2**60: to be looked up by ``at``, or compared at once.

    >>> int(at(counts([0, 10**12]), 1))
    1000000000000
    """
    for value in values:
        if not 0 <= value <= NEVER:
            raise ValueError(f"A count must lie in [0, 2**60], got {value}.")
    high, low = [value >> _BITS for value in values], [value & _MASK for value in values]
    return Count(np.asarray(high, np.int32), np.asarray(low, np.int32))


def at(several: Count, index: Any) -> Count:
    """Look one of several counts up, by an index that may be traced."""
    return jax.tree.map(lambda part: jnp.asarray(part)[index], several)


def where(condition: Any, yes: Any, no: Any) -> Count:
    """Choose between two counts or whole numbers."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), Count.of(yes), Count.of(no))


def minimum(a: Any, b: Any) -> Count:
    """Return the smaller of two counts or whole numbers."""
    a = Count.of(a)
    return where(a <= b, a, b)


def num_passed(samples: Count, events: Sequence[int]) -> jax.Array:
    """Count the events at or below a number of examples, a scalar int32.

    >>> int(num_passed(Count.of(300), (100, 300, 400)))
    2
    """
    return jnp.sum(samples >= counts(events), dtype=jnp.int32)


def next_event(samples: Count, events: Sequence[int | Count]) -> Count:
    """Find the first event after a count of examples, in whatever order they are; NEVER for none.

    >>> int(next_event(Count.of(300), (100, 300, 400)))
    400
    """
    # However many are known beforehand, they are one look-up.
    known = sorted(event for event in events if isinstance(event, int))
    first = at(counts([*known, NEVER]), num_passed(samples, known))
    for event in events:
        if not isinstance(event, int):
            first = minimum(first, where(event > samples, event, NEVER))
    return first


def next_multiple(samples: Count, every: int) -> Count:
    """Return the first multiple of ``every`` above a count of examples, or NEVER.

    >>> int(next_multiple(Count.of(1200), 1000))
    2000
    """
    _, beyond = divide(samples, every)
    return minimum(samples + (Count.of(every) - beyond), NEVER)


def divide(count: Count, divisor: int) -> tuple[Count, Count]:
    """Divide a count below 2**60 by a whole number from 1 to below 2**60: quotient and remainder, exact.

    >>> [int(part) for part in divide(Count.of(10**13 + 7), 10**6)]
    [10000000, 7]
    """
    if divisor <= _MASK:
        return _divide_short(count, divisor)
    # Long division, eight bits of the quotient at a time: of the 256 multiples that a digit may stand for the
    # largest that still fits. Those beyond the range are cut to NEVER, which never fits.
    quotient = multiple = Count.of(0)
    for shift in reversed(range(0, NEVER.bit_length() - divisor.bit_length(), _DIGIT)):
        digits = [digit << shift for digit in range(1 << _DIGIT)]
        multiples = multiple + counts([min(digit * divisor, NEVER) for digit in digits])
        digit = jnp.sum(multiples <= count, dtype=jnp.int32) - 1
        multiple = at(multiples, digit)
        quotient = quotient + (digit << shift)
    return quotient, count - multiple


def _divide_short(count: Count, divisor: int) -> tuple[Count, Count]:
    # Long division with a digit as large as leaves room for the remainder before it in 32 bits.
    high, low, by = (jnp.asarray(x, jnp.uint32) for x in (count.high, count.low, divisor))
    quotient, rest = jnp.zeros((), jnp.uint32), high % by
    left = _BITS
    while left:
        bits = min(left, 32 - divisor.bit_length())
        left -= bits
        rest = (rest << bits) | ((low >> left) & ((1 << bits) - 1))
        quotient, rest = (quotient << bits) | (rest // by), rest % by
    parts = [part.astype(jnp.int32) for part in (high // by, quotient, rest)]
    return Count(parts[0], parts[1]), Count(jnp.zeros_like(parts[2]), parts[2])


def _carried(high: Any, low: Any) -> Count:
    # The shift keeps the sign: it carries a sum over, and borrows for a difference.
    return Count(high + (low >> _BITS), low & _MASK)
