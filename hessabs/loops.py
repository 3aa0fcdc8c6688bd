"""Where a loop runs: driven by Python, or compiled as a whole.

On the CPU backend XLA runs convolution gradients inside ``while``, ``scan``, ``fori_loop`` and ``cond`` 20 to
50 times slower than outside, because the pass that brings them to canonical form visits the entry computation
alone. There each iteration is one jitted function that Python calls again and again; on GPU and TPU, and under
somebody else's trace, the loop is compiled. This file is the one place that decides.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax

from hessabs import trees

Loop = Literal["host", "device"]
F = TypeVar("F", bound=Callable[..., Any])


def choose(loop: Loop | None, *operands: Any) -> Loop:
    """Decide where a loop over the operands runs."""
    if loop not in (None, "host", "device"):
        raise ValueError(f'`loop` must be "host", "device" or None, got {loop!r}.')
    traced = trees.is_traced(*operands)
    if loop == "host" and traced:
        raise ValueError(
            '`loop="host"` was asked for under a trace (jit, vmap, grad, pmap), where Python cannot read '
            'values; use "device" or None.'
        )
    host_only = any(_mark(operand) is False for operand in operands)
    if host_only and (loop == "device" or traced):
        raise ValueError(
            "The operator reads its data in Python and cannot run inside a compiled loop or under a trace; use "
            '`loop="host"` or None, outside of jit.'
        )
    if host_only:
        return "host"
    if loop is not None:
        return loop
    return "host" if jax.default_backend() == "cpu" and not traced else "device"


def keep_pace(ahead: deque[Any], value: Any, limit: int = 2) -> None:
    """Wait, in a loop that Python drives and that reads no value, until few programs are in flight.

    Without it the arrays of all iterations would be in memory at once. On several CPU devices each value is
    waited for: there two programs with collectives can wait for each other for ever.
    """
    ahead.append(value)
    leaf = jax.tree.leaves(value)[0]
    several = isinstance(leaf, jax.Array) and not trees.is_traced(leaf) and len(leaf.devices()) > 1
    while len(ahead) > (0 if several and jax.default_backend() == "cpu" else limit):
        jax.block_until_ready(ahead.popleft())


def driven_by_python(*, traceable: bool) -> Callable[[F], F]:
    """Mark the function of an operator as one that drives jitted functions from Python."""

    def mark(function: F) -> F:
        function.traceable = traceable  # type: ignore[attr-defined]
        return function

    return mark


def is_compiled(matvec: Any) -> bool:
    """Tell whether a loop on the host compiles an operator together with its iteration."""
    return isinstance(matvec, jax.tree_util.Partial) and _mark(matvec) is None


def _mark(operand: Any) -> bool | None:
    return getattr(getattr(operand, "func", None), "traceable", None)
