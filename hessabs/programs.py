"""Compiled programs that live as long as the functions they were compiled for.

A module-level ``jax.jit`` remembers the structure of its arguments for ever. Where an argument is a
``jax.tree_util.Partial``, that structure holds a function, and with it all that the function captured: a loop
that makes a new closure each time would keep every closure, its arrays and its programs. ``programs.jit`` keeps
one ``jax.jit`` for each combination of functions in the arguments, shows it the functions by weak references
alone, and drops it when one of them dies.
"""

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial


def jit(function: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = ()) -> "Jitted":
    """Compile a function whose arguments may hold functions, without keeping these alive.

    It is compiled as by ``jax.jit``, once for each combination of the functions in its arguments, of
    structures, shapes and dtypes; what is static rides in a ``trees.Static``. Give a module-level function: its
    programs live as long as it does.
    """
    return Jitted(function, donate_argnums)


class Jitted:
    """What ``jit`` returns: called, traced and shaped with one and the same look-up."""

    def __init__(self, function: Callable[..., Any], donate_argnums: int | tuple[int, ...]) -> None:
        self._function, self._donate_argnums = function, donate_argnums
        self._programs: dict[tuple[_Weak, ...], Any] = {}
        _JITTED.add(self)

    def __call__(self, *args: Any) -> Any:
        """Compute ``function(*args)``, compiled."""
        program, veiled = self._find(args)
        return program(*veiled)

    def trace(self, *args: Any) -> Any:
        """Trace the program of these arguments, as ``jax.jit(function).trace`` does."""
        program, veiled = self._find(args)
        return program.trace(*veiled)

    def eval_shape(self, *args: Any) -> Any:
        """Say which shapes and dtypes ``function(*args)`` has, as ``jax.eval_shape`` does."""
        program, veiled = self._find(args)
        return program.eval_shape(*veiled)

    def num_programs(self) -> int:
        """Count the combinations of functions in the arguments that are alive."""
        return len(self._programs)

    def forget(self, function: "_Weak") -> None:
        """Drop the programs that were compiled for a function."""
        for key in [key for key in list(self._programs) if function in key]:  # other threads may add some
            self._programs.pop(key, None)

    def _find(self, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        functions: list[_Weak] = []
        veiled = _veil(args, functions)
        key = tuple(functions)
        program = self._programs.get(key)
        if program is None:
            function = self._function

            def run(*veiled: Any) -> Any:
                return function(*_unveil(veiled))

            run.__name__ = run.__qualname__ = getattr(function, "__name__", "program")
            program = self._programs.setdefault(key, jax.jit(run, donate_argnums=self._donate_argnums))
        return program, veiled


_KNOWN: dict[tuple[int, ...], "_Weak"] = {}
_JITTED: "weakref.WeakSet[Jitted]" = weakref.WeakSet()


class _Weak:
    # A function by reference alone: equal to itself, and compared by identity, as functions are.
    def __init__(self, parts: tuple[Any, ...], key: tuple[int, ...]) -> None:
        # Bound here: when Python ends, the names of a module are gone before the last function dies.
        def died(_: Any, known: Any = _KNOWN, all_jitted: Any = _JITTED) -> None:
            if known.pop(key, None) is not None:
                for jitted in list(all_jitted):
                    jitted.forget(self)

        self._references = tuple(weakref.ref(part, died) for part in parts)

    def get(self) -> Callable[..., Any]:
        parts: list[Any] = [reference() for reference in self._references]
        if any(part is None for part in parts):
            raise ReferenceError("The function of this operator no longer exists; keep the operator itself.")
        return parts[0] if len(parts) == 1 else types.MethodType(*parts)

    def refers_to(self, parts: tuple[Any, ...]) -> bool:
        return all(reference() is part for reference, part in zip(self._references, parts, strict=True))


class _Strong(_Weak):
    # What has no weak references: equal where the functions are equal.
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def get(self) -> Callable[..., Any]:
        return self._function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Strong) and self._function == other._function

    def __hash__(self) -> int:
        return hash(self._function)


_SHIM = type(Partial(functools.partial(min)).func)


def _weak(function: Callable[..., Any]) -> _Weak:
    # JAX wraps what a Partial is made of when that is a functools.partial, anew at each time.
    function = getattr(function, "fun", function) if type(function) is _SHIM else function
    # A bound method is made anew at each access: its function and its object are what lives.
    parts: tuple[Any, ...] = (function,)
    if isinstance(function, types.MethodType):
        parts = (function.__func__, function.__self__)
    key = tuple(id(part) for part in parts)
    known = _KNOWN.get(key)
    if known is not None and known.refers_to(parts):
        return known
    try:
        return _KNOWN.setdefault(key, _Weak(parts, key))
    except TypeError:
        return _Strong(function)


@jax.tree_util.register_pytree_node_class
class _Veiled:
    # A Partial whose function JAX cannot see, and so cannot keep.
    def __init__(self, function: _Weak, args: Any, keywords: Any) -> None:
        self.function, self.args, self.keywords = function, args, keywords

    def tree_flatten(self) -> tuple[Any, _Weak]:
        return (self.args, self.keywords), self.function

    @classmethod
    def tree_unflatten(cls, function: _Weak, children: Any) -> "_Veiled":
        return cls(function, *children)


def _veil(tree: Any, functions: list[_Weak]) -> Any:
    leaves, treedef = jax.tree.flatten(tree, is_leaf=_is_partial)
    if not any(map(_is_partial, leaves)):
        return tree
    return jax.tree.unflatten(treedef, [_veiled(x, functions) if _is_partial(x) else x for x in leaves])


def _veiled(partial: Partial, functions: list[_Weak]) -> _Veiled:
    function = _weak(partial.func)
    functions.append(function)
    return _Veiled(function, _veil(partial.args, functions), _veil(partial.keywords, functions))


def _unveil(tree: Any) -> Any:
    def seen(x: Any) -> Any:
        if not isinstance(x, _Veiled):
            return x
        return Partial(x.function.get(), *_unveil(x.args), **_unveil(x.keywords))

    return jax.tree.map(seen, tree, is_leaf=lambda x: isinstance(x, _Veiled))


def _is_partial(x: Any) -> bool:
    return isinstance(x, Partial)
