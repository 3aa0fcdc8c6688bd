"""How many micro-batches a device handles at once: always one, or as many as the batch has and memory holds.

A batch that grows leaves a device idle between small micro-batches. With ``auto`` a device takes 1, 2, 4, ...
micro-batches as one, up to a limit; beyond it they are accumulated. Each of these sizes is one more program,
compiled on a thread of its own while the size below is in use. What is taken at once depends on the batch size,
the limit and the position in the data alone, never on how far that thread has come: where a program is not
ready, the training waits for it, and a run gives the same bits twice.

On accelerators memory is the limit. On the CPU it is the size from which XLA needs longer for each example
(``hessabs.cpu.footprint``).
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax

from hessabs import compiling
from hessabs.cpu import footprint
from hessabs.training.devices.mesh import split
from hessabs.training.feed import make_reader
from hessabs.training.setup import Run
from hessabs.training.state import TrainState

_HOST_PART = 0.5  # of the host's memory, for the devices that live in it: the data is there as well
_DEVICE_PART = 0.9  # of what an accelerator reports
_MANY = 8192  # examples: enough that params weigh little beside them


class AtOnce:
    """How much a device handles at once. A class, against the house rule: it owns a thread.

    Args:
      programs: By name, a jitted function of ``(state, batch, *rest)``, one micro-batch as it is called with
        it, and its ``rest``, Python numbers as the loop passes them.
      state: The state that it will be called with.
      limit: Most micro-batches at once, ``devices`` times a power of two, or None: as many as fit
        ``memory_budget``.
      devices: Number of devices, over which they are split.
      divides: Whether several micro-batches may be split over more devices than there are of them.
    """

    def __init__(
        self,
        programs: Mapping[str, tuple[Any, Any, tuple[Any, ...]]],
        state: Any,
        limit: int | None,
        devices: int = 1,
        *,
        divides: bool = True,
    ) -> None:
        self._programs = {
            name: (function, jax.tree.map(_abstract, batch), rest)
            for name, (function, batch, rest) in programs.items()
        }
        self._state = jax.tree.map(_abstract, state)
        self._limit, self._devices, self._divides = limit, devices, divides
        self._budget = memory_budget()
        self._pool = ThreadPoolExecutor(1, "hessabs-compile")
        self._bytes: dict[tuple[str, int], Future[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prepare(self, count: int) -> None:
        """Start to compile what ``count`` micro-batches at once will need, and what the ends of epochs do.

        Args:
          count: Micro-batches in a batch to come.
        """
        size = self._largest(count)
        while size > 1:
            for name in self._programs:
                if (name, size) not in self._bytes:
                    self._bytes[name, size] = self._pool.submit(self._compile, name, size)
            size = self._largest(size - 1)

    def choose(self, count: int) -> int:
        """Decide how many micro-batches to take at once.

        Args:
          count: Most that are wanted: what the update still needs, and the epoch still has.

        Returns:
          The largest size up to ``count`` that fits, its program compiled. Sizes are the number of devices
          times a power of two; up to one micro-batch a device always fits.
        """
        size = self._largest(count)
        while size > self._devices:
            self.prepare(size)
            with compiling.waiting():
                needed = [self._bytes[name, size].result() for name in self._programs]
            if all(number <= self._budget for number in needed):
                return size
            size = self._limit = size // 2
        return size

    def _largest(self, count: int) -> int:
        count = count if self._limit is None else min(count, self._limit)
        if count >= self._devices:
            return self._devices << ((count // self._devices).bit_length() - 1)
        return 1 << (count.bit_length() - 1) if self._divides else 1

    def _compile(self, name: str, size: int) -> int:
        function, batch, rest = self._programs[name]
        batch = jax.tree.map(lambda x: x.update(shape=(size * x.shape[0], *x.shape[1:])), batch)
        try:
            # A later call of the jitted function finds this program: JAX keeps what it has lowered.
            memory = function.lower(self._state, batch, *rest).compile().memory_analysis()
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


def make_at_once(run: Run, state: TrainState) -> AtOnce:
    """Make the sizes of a run.

    Args:
      run: The run.
      state: The state that its training starts from.

    Returns:
      An ``AtOnce``, to be used in a ``with`` block; always one micro-batch with ``micro_batch=fixed``.
    """
    config, functions = run.config, run.functions
    devices = run.devices
    limit: int | None = devices
    if config.micro_batch == "auto":
        most = config.max_micro_batch_size
        limit = None if most is None else most // run.micro_batch_size * devices
    if config.robust == "free":
        limit = 1  # its perturbation is that of one micro-batch
    if limit == 1:
        return AtOnce({}, state, limit)
    batch = split(make_reader(run)(1)[0], run.mesh)
    if limit is None and devices == 1 and jax.default_backend() == "cpu":
        limit = _cached(functions.accumulate, state, batch, run.micro_batch_size)
    programs: dict[str, Any] = {}
    fraction = run.objective.fraction
    if fraction is None:  # the rule may end the adversarial examples
        programs["accumulate"] = (functions.accumulate, batch, ())
        fraction = config.adversarial_fraction
    if fraction:
        attacked = functions.perturb(state, batch, fraction)
        programs["accumulate_adversarial"] = (functions.accumulate_adversarial, attacked, (fraction,))
    return AtOnce(programs, state, limit, devices, divides=run.dealt)


def _cached(function: Any, state: TrainState, batch: dict[str, Any], size: int) -> int:
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((_MANY, *x.shape[1:]), x.dtype), batch)
    per_example = footprint.bytes_per_row(function, _MANY, jax.tree.map(_abstract, state), many)
    fits = int(footprint.CACHED / (per_example * size))
    return 1 << (fits.bit_length() - 1) if fits else 1


def memory_budget() -> int:
    """Say how many bytes a program may need on a device.

    Returns:
      Nine tenths of the device's memory; for devices that live in the host's memory half of that, shared.
    """
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
