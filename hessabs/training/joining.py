"""Joining the processes of a run, each of which runs the whole program on its own devices."""

from typing import Annotated, Any, NamedTuple

import jax

from hessabs.training import lost

HEARTBEAT_SECONDS = 20
"""A process that says nothing for so long is taken for dead, and the others end."""

DETECT = "detect"


class Processes(NamedTuple):
    """How the processes of a run find each other."""

    coordinator: Annotated[
        str | None, "host:port of process 0, for several processes; detect: from the cluster's environment"
    ] = None
    num_processes: Annotated[int | None, "number of processes"] = None
    process_id: Annotated[int | None, "number of this process, from 0"] = None


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the processes of a run; must come before JAX is used.

    Args:
      coordinator: ``host:port`` of process 0; ``"detect"`` takes all three from a cluster environment that JAX
        knows (Slurm, Open MPI, Kubernetes, Cloud TPU); None: there is one process.
      num_processes: Number of processes.
      process_id: Number of this one, from 0.

    Raises:
      ValueError: If what is needed is missing or out of range.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                "`coordinator` is required with num_processes and process_id: pass --coordinator=host:port, "
                "an address of process 0."
            )
        return
    if coordinator == DETECT:
        _initialize()
        return
    if num_processes is None or process_id is None:
        raise ValueError(
            f"`num_processes` and `process_id` are required with coordinator, got {num_processes} and "
            f"{process_id}; --coordinator={DETECT} takes them from the cluster's environment."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"`process_id` must lie in [0, num_processes={num_processes}), got {process_id}.")
    _initialize(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)


def _initialize(**options: Any) -> None:
    lost.watch()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of the CPU backend alone
    take_turns()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for a notice
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)


def take_turns() -> None:
    """Let several CPU devices run one program at a time; must come before JAX is used.

    A collective keeps a thread waiting for the other devices, of the few that run programs: with two programs
    in flight the devices can wait for each other for ever. Programs whose arguments are still being computed
    are in flight nevertheless: see ``hessabs.training.mesh.wait_for``. Other backends are not touched.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
