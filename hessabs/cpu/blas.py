"""NumPy's matrix products beside XLA: one thread of them, lest the two take the cores from each other."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import threadpoolctl

from hessabs import trees

F = TypeVar("F", bound=Callable[..., Any])


def one_blas_thread(solver: F) -> F:
    """Let a solver multiply with one BLAS thread while it runs, if its operator is JAX's.

    The threads of a BLAS go on spinning after each product, on the cores that the operator needs next; a Krylov
    basis is read as fast as memory gives it by a single one. A plain callable may be NumPy's own and keeps all
    threads.
    """

    @functools.wraps(solver)
    def run(matvec: Any, *args: Any, **kwargs: Any) -> Any:
        if not trees.is_operator(matvec):
            return solver(matvec, *args, **kwargs)
        with _blas().limit(limits=1):
            return solver(matvec, *args, **kwargs)

    return run  # type: ignore[return-value]


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
