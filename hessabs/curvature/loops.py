"""Where a loop runs: driven by Python, or compiled as a whole.

On the CPU backend XLA runs convolution gradients inside ``while``, ``scan``, ``fori_loop`` and ``cond`` 20 to
50 times slower than outside, because the pass that brings them to canonical form visits the entry computation
alone. There each iteration is one jitted function that Python calls again and again; on GPU and TPU, and under
somebody else's trace, the loop is compiled. This file is the one place that decides.
"""

from typing import Any, Literal

import jax

from hessabs import trees

Loop = Literal["host", "device"]


def choose(loop: Loop | None, *operands: Any) -> Loop:
    """Decide where a loop over the operands runs.

    Args:
      loop: ``"host"``, ``"device"``, or None to choose by backend and by whether the operands are traced.
      *operands: The pytrees that enter the loop.

    Returns:
      ``"host"`` or ``"device"``.

    Raises:
      ValueError: If ``loop`` is something else, or ``"host"`` under a trace, where Python cannot read values.

    Example:
      >>> choose("device", 1.0)
      'device'
    """
    if loop not in (None, "host", "device"):
        raise ValueError(f'`loop` must be "host", "device" or None, got {loop!r}.')
    traced = trees.is_traced(*operands)
    if loop == "host" and traced:
        raise ValueError(
            '`loop="host"` was asked for under a trace (jit, vmap, grad, pmap), where Python cannot read values; '
            'use "device" or None.'
        )
    if loop is not None:
        return loop
    return "host" if jax.default_backend() == "cpu" and not traced else "device"
