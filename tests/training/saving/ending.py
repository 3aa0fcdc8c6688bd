"""Runs to which something happens before a micro-batch, such as their end."""

import pytest

from hessabs.training.loop import train
from tests.training.runs import again


class Broken(Exception):
    """What ends a run in the middle."""


def before(run, count, act):
    """A run like one, with a state of its own, that calls ``act`` before its ``count``-th micro-batch.

    Where a call handles several, on an accelerator, before the call that has it.
    """
    seen = 0

    class Counted:
        def __init__(self, function):
            self.function, self._cache_size, self.lower = function, function._cache_size, function.lower

        def __call__(self, *arguments):
            nonlocal seen
            before = seen
            seen += (
                sum(len(part["weight"]) for part in arguments[1:] if isinstance(part, dict))
                // run.micro_batch_size
            )
            if before < count <= seen:
                act()
            return self.function(*arguments)

    names = ("add", "whole")
    functions = run.functions._replace(**{name: Counted(getattr(run.functions, name)) for name in names})
    return again(run)._replace(functions=functions)


def break_off(run, count, workdir, durability):
    """Train a run in a folder, and end before its ``count``-th micro-batch."""

    def end():
        raise Broken

    with pytest.raises(Broken):
        train(before(run, count, end), workdir, durability)
