"""How many micro-batches one call handles: always one a device, or as many as the batch has and memory holds.

A batch that grows leaves a device idle between small micro-batches. A call may handle 1, 2, 4, ... of them, up
to a limit; beyond it there are several calls. Each of these sizes is one more program, compiled on a thread of
its own while the size below is in use. What a call handles depends on the batch size, the limit and the
position in the data only, never on how far that thread has come: where a program is not ready, the training
waits for it, and a run gives the same bits twice.

On accelerators memory is the limit. On the CPU it is the size from which XLA needs longer for each example
(``hessabs.cpu.footprint``).
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax

from hessabs import compiling
from hessabs.cpu import footprint
from hessabs.data import Position
from hessabs.training.mesh import split
from hessabs.training.run import Run
from hessabs.training.step import TrainState

_HOST_PART = 0.5  # of the host's memory, for the devices that live in it: the data is there as well
_DEVICE_PART = 0.9  # of what an accelerator reports
_MANY = 8192  # examples: enough that params weigh little beside them


def make_sizes(run: Run, state: TrainState) -> "Sizes":
    """Make the choice of how many micro-batches one call handles in a run."""
    settings, functions, devices, objective = run.settings, run.functions, run.devices, run.objective
    limit: int | None = devices
    if settings.micro_batch == "auto":
        most = settings.max_micro_batch_size
        limit = None if most is None else most // run.micro_batch_size * devices
    elif jax.default_backend() != "cpu":
        limit = None  # a compiled loop over those that fit
    if objective.per_micro_batch and objective.replays > 1:
        limit = 1  # what it carries is that of one micro-batch
    if limit == devices == 1 or run.rule.batch_sizes == (run.micro_batch_size,) * 2:
        return Sizes(functions.add, (), 1)
    batch, totals = split(run.read_from(Position(0, 0))(1)[0], run.mesh), functions.begin(state)
    # With the fraction of an objective that always applies, or without one and with the rule's.
    fraction = objective.fraction
    kinds: list[float | None] = [None] if fraction is None else []
    if fraction is None and objective.perturb is not None:
        fraction = objective.max_fraction
    kinds += [fraction] if fraction else []
    examples = []
    for kind in kinds:
        given = batch if run.perturb is None or kind is None else run.perturb(state, 0, batch, kind)
        examples.append((state, totals, given, kind, 0))
    if limit is None and devices == 1 and jax.default_backend() == "cpu":
        limit = fitting_caches(functions.add, state, totals, batch, None, 0)
    return Sizes(functions.add, examples, limit, devices, divides=run.dealt)


class Sizes:
    """How many micro-batches a call handles; it owns the thread that compiles.

    ``function`` is the jitted ``add`` of an update, ``examples`` what it is called with, ``(state, totals, one
    micro-batch, *rest)`` for each kind of call. ``limit`` is the most micro-batches in a call, a power of two
    times the ``devices`` over which they are split, or None: what fits ``memory_budget``. ``divides``: several
    micro-batches may be split over more devices than there are of them.
    """

    def __init__(
        self,
        function: Any,
        examples: Sequence[tuple[Any, ...]],
        limit: int | None,
        devices: int = 1,
        *,
        divides: bool = True,
    ) -> None:
        self._function = function
        self._examples = [
            (*jax.tree.map(_abstract, example[:3]), *example[3:]) for example in examples if limit != devices
        ]
        self._limit, self._devices, self._divides = limit, devices, divides
        self._budget = memory_budget()
        self._pool = ThreadPoolExecutor(1, "hessabs-compile")
        self._bytes: dict[tuple[int, int], Future[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, count: int) -> None:
        """Start to compile what calls of up to ``count`` micro-batches will need."""
        size = self._largest(count)
        while size > self._devices:
            for kind in range(len(self._examples)):
                if (kind, size) not in self._bytes:
                    self._bytes[kind, size] = self._pool.submit(self._compile, kind, size)
            size = self._largest(size - 1)

    def choose(self, count: int) -> int:
        """Decide how many micro-batches the next call handles, of ``count`` that are wanted."""
        size = self._largest(count)
        while size > self._devices:
            self.prepare(size)
            with compiling.waiting():
                needed = [self._bytes[kind, size].result() for kind in range(len(self._examples))]
            if all(number <= self._budget for number in needed):
                return size
            size = self._limit = size // 2
        return size

    def _largest(self, count: int) -> int:
        count = count if self._limit is None else min(count, self._limit)
        if count >= self._devices:
            return self._devices << ((count // self._devices).bit_length() - 1)
        return 1 << (count.bit_length() - 1) if self._divides else 1

    def _compile(self, kind: int, size: int) -> int:
        state, totals, batch, *rest = self._examples[kind]
        batch = jax.tree.map(lambda x: x.update(shape=(size * x.shape[0], *x.shape[1:])), batch)
        try:
            # A later call of the jitted function finds this program: JAX keeps what it has lowered.
            memory = self._function.lower(state, totals, batch, *rest).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return self._budget + 1
            raise
        return int(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )


def fitting_caches(function: Any, state: Any, totals: Any, batch: Any, *rest: Any) -> int:
    """Return how many micro-batches, a power of two, a call may handle before XLA slows down on a CPU."""
    num_examples = len(batch["weight"])
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((_MANY, *x.shape[1:]), x.dtype), batch)
    state, totals = jax.tree.map(_abstract, (state, totals))
    per_example = footprint.bytes_per_row(function, _MANY, state, totals, many, *rest)
    fits = int(footprint.CACHED / (per_example * num_examples))
    return 1 << (fits.bit_length() - 1) if fits else 1


def memory_budget() -> int:
    """Return how many bytes a program may need on a device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_DEVICE_PART * stats["bytes_limit"])
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(_HOST_PART * host / jax.local_device_count())


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    sharding = x.sharding if x.committed else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=x.aval.weak_type)
