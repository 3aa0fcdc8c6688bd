"""Where a loop runs: driven by Python, or compiled as a whole.

On the CPU backend XLA runs convolution gradients inside ``while``, ``scan``, ``fori_loop`` and ``cond`` 20 to
50 times slower than outside, because the pass that brings them to canonical form visits the entry computation
alone. There each iteration is one jitted function that Python calls again and again; on GPU and TPU, and under
somebody else's trace, the loop is compiled. This file is the one place that decides.

So every iteration of the library takes ``loop=``: ``"host"`` (Python drives one jitted iteration), ``"device"``
(one compiled loop), or None, the default, to choose by backend and by whether the call is being traced.
"""

from collections import deque
from typing import Any, Literal

import jax

from hessabs import trees
from hessabs.typing import Operator

Loop = Literal["host", "device"]
READS_IN_PYTHON = (
    "The operator reads its data in Python and cannot run inside a compiled loop or under a trace; use "
    '`loop="host"` or None, outside of jit.'
)


def choose(loop: Loop | None, *operands: Any) -> Loop:
    """Decide where a loop over the operands runs; refuse what cannot run there."""
    if loop not in (None, "host", "device"):
        raise ValueError(f'`loop` must be "host", "device" or None, got {loop!r}.')
    traced = trees.is_traced(*operands)
    if loop == "host" and traced:
        raise ValueError(
            '`loop="host"` was asked for under a trace (jit, vmap, grad, pmap), where Python cannot read '
            'values; use "device" or None.'
        )
    if any(isinstance(operand, Operator) and operand.runs == "in Python" for operand in operands):
        if loop == "device" or traced:
            raise ValueError(READS_IN_PYTHON)
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


def is_compiled(matvec: Any) -> bool:
    """Tell whether a loop on the host compiles an operator together with its iteration; others it calls."""
    return trees.is_operator(matvec) and getattr(matvec, "runs", "compiled") == "compiled"
