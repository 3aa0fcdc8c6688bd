"""The top eigenpairs of one network by every tool, in turn, each tool in a process of its own."""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import curvature_peers as peers
from experiments.benchmarks.curvature_problem import LOSSES, problem
from hessabs import curvature, trees

OURS = "hessabs"
_RTOL = 1e-3
_SLACK = 1.01  # a residual is recomputed in another order
_EXAMPLES = 512
_SLOW = 15.0  # seconds: what takes longer runs once
_TOO_SLOW = 20.0  # seconds of the first run: what takes longer is not run again, its compilation included
_GIVE_UP = 100.0  # seconds after which a tool is ended


@dataclasses.dataclass
class _Tool:
    name: str
    process: Any
    pipe: Connection
    first: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    answer: Any = None

    def run(self) -> float:
        """Let the tool run once; returns its own seconds, and keeps those of the first run."""
        self.pipe.send("run")
        if not self.pipe.poll(_GIVE_UP):
            self.process.terminate()
            self.first = _GIVE_UP
            return _GIVE_UP
        seconds, self.answer = self.pipe.recv()
        self.first = self.first or seconds
        return seconds


def table(data: dict[str, np.ndarray], part: str, rounds: int) -> list[str]:
    """Run every tool on one problem, in turn."""
    network, k = part.split("-")[0], int(part.split("-")[1])
    loss_fn, params, batch = problem(network, data, _EXAMPLES)
    judge = jax.jit(curvature.hessian(loss_fn, params, batch))
    arrays = jax.tree.map(np.asarray, (params, batch))
    ours, *gradients = _start(part, (OURS, "gradient, XLA", "gradient, PyTorch"), 0, arrays)
    ours.run()
    steps = ours.answer[2]
    tools = [ours, *_start(part, peers.names(steps), steps, arrays)]
    try:
        for tool in [*tools, *gradients]:
            if not tool.first:
                tool.run()
            if tool.first > _TOO_SLOW:
                tool.times.append(tool.first)
        for number in range(rounds):
            for tool in [*tools, *gradients]:
                if not tool.times or tool.times[0] <= _SLOW:
                    tool.times.append(tool.run())
            print(f"{part}: round {number + 1} of {rounds}", flush=True)
    finally:
        for tool in [*tools, *gradients]:
            tool.process.terminate()
    xla, torch = (1e3 * statistics.median(tool.times) for tool in gradients)
    return [
        f"## Top {k} of the {network.upper()}, {_EXAMPLES} images, to a relative residual of 1e-3",
        "",
        f"{sum(x.size for x in jax.tree.leaves(params)):,} params. A gradient: XLA {xla:.1f} ms, PyTorch "
        f"{torch:.1f} ms, ratio {xla / torch:.2f}.",
        "",
        "| tool | seconds | of ours | products | largest residual | reached | compile, s |",
        "|---|---|---|---|---|---|---|",
        *(_row(tool, ours, k, judge) for tool in tools),
        "",
        *_verdict(tools, ours, k, judge),
    ]


def _verdict(tools: list[_Tool], ours: _Tool, k: int, judge: Callable[[Any], Any]) -> list[str]:
    mine = statistics.median(ours.times)
    lines = []
    for whose, told in (("not told how many steps suffice", False), ("told", True)):
        reached = [
            (statistics.median(tool.times), tool.name)
            for tool in tools
            if tool is not ours and tool.answer and ("(told)" in tool.name) == told
            if _largest_residual(tool, k, judge) <= _RTOL * _SLACK
        ]
        if reached:
            seconds, name = min(reached)
            lines.append(f"- The fastest that reached it, {whose}: {name}, {seconds / mine:.1f} times ours.")
        else:
            lines.append(f"- None reached it of those {whose}.")
    return [*lines, ""]


def _largest_residual(tool: _Tool, k: int, judge: Callable[[Any], Any]) -> float:
    values, vectors, _ = tool.answer
    return max(_residual(judge, values[i], jax.tree.map(lambda x, i=i: x[i], vectors)) for i in range(k))


def _row(tool: _Tool, ours: _Tool, k: int, judge: Callable[[Any], Any]) -> str:
    if tool.answer is None:
        return f"| {tool.name} | over {_GIVE_UP:.0f}, ended | | | | | |"
    products, worst = tool.answer[2], _largest_residual(tool, k, judge)
    seconds = statistics.median(tool.times)
    note = f"{seconds:.3f}" + (" (one run)" if len(tool.times) == 1 else "")
    compiling = "in the run" if tool.first > _TOO_SLOW else f"{max(tool.first - seconds, 0):.1f}"
    return (
        f"| {tool.name} | {note} | {seconds / statistics.median(ours.times):.1f} | {products or ''} "
        f"| {worst:.1e} | {'yes' if worst <= _RTOL * _SLACK else 'no'} | {compiling} |"
    )


def _residual(judge: Callable[[Any], Any], value: float, vector: Any) -> float:
    # In float64 but for the product.
    flat = np.asarray(trees.ravel(vector)[0], np.float64)
    product = np.asarray(trees.ravel(judge(vector))[0], np.float64)
    return float(np.linalg.norm(product - value * flat) / np.linalg.norm(flat) / abs(value))


def _start(part: str, names: Sequence[str], steps: int, arrays: Any) -> list[_Tool]:
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU has to hold all of them
    tools = []
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, part, name, steps, arrays), daemon=True)
        process.start()
        there.close()
        tools.append(_Tool(name, process, here))
    for tool in tools:
        tool.pipe.recv()  # it has built its problem: nothing runs beside a tool
    return tools


def _serve(pipe: Connection, part: str, name: str, steps: int, arrays: Any) -> None:
    network, k = part.split("-")[0], int(part.split("-")[1])
    params, batch = jax.tree.map(jnp.asarray, arrays)
    run = _make(name, network, k, steps, LOSSES[network], params, batch)
    pipe.send("ready")
    while True:
        pipe.recv()
        started = time.perf_counter()
        answer = run()
        seconds = time.perf_counter() - started
        pipe.send((seconds, answer and (*jax.tree.map(np.asarray, tuple(answer[:2])), *answer[2:], None)[:3]))


def _make(
    name: str, network: str, k: int, steps: int, loss_fn: Any, params: Any, batch: Any
) -> Callable[[], Any]:
    if name == "gradient, XLA":
        gradient = jax.jit(jax.grad(loss_fn))
        return lambda: jax.block_until_ready(gradient(params, batch)) and None
    if name == OURS:
        v0 = trees.normal_like(jax.random.key(0), params)

        def ours() -> tuple[np.ndarray, Any, int]:
            operator = curvature.hessian(loss_fn, params, batch, linearize=True)
            result = curvature.eigsh(operator, v0, k, rtol=_RTOL)
            return result.eigenvalues, jax.block_until_ready(result.eigenvectors), result.num_matvecs

        return ours
    jax.config.update("jax_default_matmul_precision", "highest")  # ours needs no such word
    contest = peers.Contest(network, loss_fn, params, batch)
    return contest.torch_gradient if name == "gradient, PyTorch" else contest.tools(k, steps)[name]
