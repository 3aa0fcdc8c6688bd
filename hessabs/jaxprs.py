"""Programs inside programs."""

from collections.abc import Iterator
from typing import Any, TypeGuard

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """List the programs inside an equation: the body of a loop, the branches of a cond, what a call calls."""
    inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr)
    return [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in inner if is_jaxpr(x)]


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Walk over all equations of a program, those of the programs inside it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def is_jaxpr(x: Any) -> TypeGuard[Jaxpr | ClosedJaxpr]:
    """Tell whether something is a program, closed or not."""
    return isinstance(x, (Jaxpr, ClosedJaxpr))


def is_used(program: ClosedJaxpr, number: int) -> bool:
    """Tell whether the results of a program depend on one of its arguments."""
    live = {id(atom) for atom in program.jaxpr.outvars}
    for eqn in reversed(program.jaxpr.eqns):
        if any(id(var) in live for var in eqn.outvars):
            live |= {id(atom) for atom in eqn.invars}
    return id(program.jaxpr.invars[number]) in live
