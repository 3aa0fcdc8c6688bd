"""Programs inside programs."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Walk over all equations of a program, those of the programs inside it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


def digest(program: ClosedJaxpr) -> str:
    """Tell a program from another by what it does and the numbers in it: 16 digits of a SHA-256.

    Of an operation that is its name, its plain parameters (axes, say), its numbers and what it returns.
    """
    found = hashlib.sha256()
    for eqn in equations(program.jaxpr):
        numbers = [np.asarray(atom.val).tolist() for atom in eqn.invars if isinstance(atom, Literal)]
        plain = {name: value for name, value in sorted(eqn.params.items()) if _is_plain(value)}
        returned = [var.aval.str_short() for var in eqn.outvars]
        found.update(f"{eqn.primitive.name}{plain}{numbers}{returned}".encode())
    for constant in program.consts:
        found.update(np.asarray(constant).tobytes())
    return found.hexdigest()[:16]


def _is_plain(value: Any) -> bool:
    # What is written alike in every process, on any number of devices.
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, np.dtype))


def is_used(program: ClosedJaxpr, number: int) -> bool:
    """Tell whether the results of a program depend on one of its arguments."""
    live = {id(atom) for atom in program.jaxpr.outvars}
    for eqn in reversed(program.jaxpr.eqns):
        if any(id(var) in live for var in eqn.outvars):
            live |= {id(atom) for atom in eqn.invars}
    return id(program.jaxpr.invars[number]) in live
