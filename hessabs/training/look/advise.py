"""``hessabs advise``: which rate, first batch and growth to begin with, from minutes of trials on this machine.

The rate is that of short runs with a whole schedule each, by factors of two until both sides are worse on
held-out training examples. The run begins with the batch of the trials, or a smaller one where the gradient is
less noisy than that, and ``ramp`` lets it grow. Nobody looks at the test set.
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import curvature
from hessabs.batch_size import constant
from hessabs.curvature import CriticalBatchSize
from hessabs.data import Source, eval_batches, hold_out, subset
from hessabs.training import fields
from hessabs.training.assemble import read_rule
from hessabs.training.look.plan import median_seconds
from hessabs.training.loop import train
from hessabs.training.optimizers import OptimizerSettings, make_optimizer
from hessabs.training.run import Run, prepare
from hessabs.training.schedules import make_schedule
from hessabs.training.settings import RunSettings
from hessabs.training.task import Task, evaluation_loss

_FEWEST_EXAMPLES = 100
_FEWEST_UPDATES = 40  # of a trial: with fewer, rates that diverge later look best
_TRIALS = 8  # about as many as the search takes
_BATCHES = 24  # of which the noise scale is estimated
_FURTHEST = 10  # factors of two from the first rate
_LARGER = 4  # factor between the batches whose gradients are timed


class Options(NamedTuple):
    """What the advice is for, and what it may cost."""

    epochs: Annotated[
        int, "passes over the training set of the run that the advice is for", "be at least 1"
    ] = 30
    minutes: Annotated[
        float, "about how long the trials may take; compilation comes on top", "be positive and finite"
    ] = 3.0
    seed: Annotated[int, "seed of the trials"] = 0
    output: Annotated[str | None, "file for a picture, advice.png say"] = None


class Advice(NamedTuple):
    """What to begin with, and what it was read from."""

    settings: Mapping[
        str, Any
    ]  # of the run, for `assemble`: lr, batch_size, max_batch_size, method, epochs, ...
    updates: int  # of the run, at most: those of a batch that grows as the rate falls, whatever the noise
    constant_updates: int  # of a run that keeps its first batch
    trials: Mapping[float, float]  # rate at `trial_batch_size` -> held-out loss in nats; inf: it diverged
    trial_batch_size: int
    trial_examples: int
    noise: CriticalBatchSize  # after the best trial
    seconds: Mapping[int, float]  # examples -> seconds of a gradient of so many at once


def advise(
    task: Task, optimizer: OptimizerSettings, *, epochs: int = 30, minutes: float = 3.0, seed: int = 0
) -> Advice:
    """Find a rate, a first batch and how far it may grow, for a run with ``ramp`` and a linear schedule.

    It is a place to begin, not an optimum: what a whole run comes to is not measured. The first batch is that
    of the trials, for which the rate is known, unless the noise scale is smaller. The rate is half of the best
    one of the trials, for a long run wants a smaller one.

    Args:
      task: What is learnt; a tenth of its training examples, 2,000 at most, judges the trials, which are plain:
        no adversarial examples.
      optimizer: What makes the optimiser; its ``lr`` is where the search begins, None for its default.
      epochs: Passes of the run that the advice is for, at least 1.
      minutes: About how long the trials may take, above 0; compilation comes on top.
      seed: Of the trials.

    Raises:
      ValueError: If a number is out of its range, there are fewer than 100 training examples, the optimiser
        takes no rate, or every rate diverges or is best at the end of the search.

    Example:
      >>> from hessabs import data, models, training
      >>> task = training.tasks.linen(models.mlp(10, (16,)), data.load("digits"))
      >>> advice = training.advise(task, training.OptimizerSettings("adamw"), minutes=0.02)  # doctest: +SKIP
      >>> advice.settings["lr"] > 1e-4, advice.updates < advice.constant_updates  # doctest: +SKIP
      (True, True)

    References:
      McCandlish et al. (2018), arXiv:1812.06162, for the noise scale; Shallue et al. (2019), arXiv:1811.03600,
      tune the rate for each batch.
    """
    fields.check(Options(epochs, minutes, seed))
    number = len(task.train)
    if number < _FEWEST_EXAMPLES:
        raise ValueError(
            f"`task` must have at least {_FEWEST_EXAMPLES} training examples to try rates on, got {number}."
        )
    rest, judges = hold_out(task.train, min(2000, number // 10))
    size = _power_below(min(128, len(rest) // _FEWEST_UPDATES))
    made = make_optimizer(optimizer, batch_size=size, num_classes=task.num_classes)
    # Refused now if it takes no rate, which is what is looked for.
    make_optimizer(optimizer._replace(lr=made.lr), batch_size=size, num_classes=task.num_classes)

    seconds = _gradient_seconds(task, rest, size)
    affordable = int(60 * minutes / _TRIALS / seconds[size] / 3)  # an update is more than a gradient
    updates = min(max(affordable, _FEWEST_UPDATES), len(rest) // size)
    places = np.random.default_rng(seed).permutation(len(rest))[: updates * size]
    run = prepare(
        task._replace(train=subset(rest, places), test=judges, validation=None),
        made,
        constant(size),
        micro_batch_size=size,
        settings=RunSettings(seed=seed),
    )
    best: Any = None

    def loss_at(exponent: int) -> float:
        nonlocal best
        result = _trial(run, 2.0**exponent, updates * size)
        if result is None:
            return math.inf
        if best is None or result.summary["test_loss"] < best.summary["test_loss"]:
            best = result
        return float(result.summary["test_loss"])

    found = {0: loss_at(0)} if optimizer.optimizer == "prodigy" else bracket(loss_at)  # it finds its own
    rates = {float(f"{made.lr * 2.0**k:.3g}"): loss for k, loss in sorted(found.items())}
    loss_fn = evaluation_loss(task, best.model_state)
    noise = curvature.critical_batch_size(loss_fn, best.params, _batches(task, rest, size, _BATCHES, seed))
    first = _first_batch(noise.value, size)
    # Half: a long run wants a smaller rate than a short one. A smaller batch than that of the trials, too.
    lr = min(rates, key=lambda rate: rates[rate]) * math.sqrt(first / size) / 2
    schedule = {"epochs": epochs, "batch_size": first, "schedule": "linear", "warmup_epochs": epochs / 10}
    growing = {"method": "ramp", "max_batch_size": first * _power_below(max(number // 2 // first, 1))}
    planned, constantly = (
        read_rule({**schedule, **method}, number).plans(whole_updates=True).most.updates
        for method in (growing, {"method": "bl"})
    )
    return Advice(
        settings={"lr": float(f"{lr:.2g}"), **schedule, **growing},
        updates=planned,
        constant_updates=constantly,
        trials=rates,
        trial_batch_size=size,
        trial_examples=updates * size,
        noise=noise,
        seconds=seconds,
    )


def bracket(loss_at: Callable[[int], float]) -> dict[int, float]:
    """Try exponents until the best has worse ones on both sides: by two first, then by one.

    >>> sorted(bracket(lambda k: abs(k - 3.2)))
    [-2, 0, 2, 3, 4, 5, 6]
    """
    found = {k: loss_at(k) for k in (0, 2, -2)}

    def best() -> int:
        return min(found, key=lambda k: (found[k], k))  # where all diverge, the smallest

    for step in (2, 1):
        while missing := [k for k in (best() - step, best() + step) if k not in found]:
            if abs(best()) >= _FURTHEST:
                if math.isinf(found[best()]):
                    raise ValueError(
                        "no rate gave a finite loss; look at the data and the network, or pass a smaller `lr`."
                    )
                raise ValueError(
                    f"the best rate is {_FURTHEST} factors of two from the first; pass an `lr` nearer to it."
                )
            found |= {k: loss_at(k) for k in missing}
    return found


def _trial(run: Run, factor: float, total: int) -> Any:
    """Train once with a factor on the rate, None where it diverges."""
    falling = make_schedule("linear", total=total, warmup=total // 10)
    own = run._replace(state=jax.tree.map(jnp.copy, run.state), schedule=lambda n: factor * falling(n))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress is not that of the command
        try:
            return train(own)
        except FloatingPointError:
            return None


def _batches(task: Task, source: Source, size: int, number: int, seed: int) -> list[Any]:
    places = np.random.default_rng(seed).permutation(len(source))[: number * size]
    prepared = jax.jit(task.prepare)
    return [prepared(jax.device_put(batch)) for batch in eval_batches(subset(source, places), size)]


def _gradient_seconds(task: Task, source: Source, size: int) -> dict[int, float]:
    """Time gradients of more and more examples, while that makes an example cheaper and memory holds them."""
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    gradient, seconds = jax.jit(jax.grad(evaluation_loss(task, model_state))), {}
    while size <= len(source):
        (batch,) = _batches(task, source, size, 1, seed=0)
        try:
            seconds[size] = median_seconds(functools.partial(gradient, params, batch))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error) and seconds:
                break
            raise
        before = seconds.get(size // _LARGER, math.inf)
        if seconds[size] > 1 or seconds[size] > 0.9 * _LARGER * before:
            break
        size *= _LARGER
    return seconds


def _first_batch(noise: float, size: int) -> int:
    """Choose the batch of the trials, or the power of two nearest to a smaller noise scale, 8 at least."""
    if not 0 < noise < size:  # no signal is left, or the batch is below its noise anyway
        return size
    return min(max(2 ** round(math.log2(noise)), min(8, size)), size)


def _power_below(number: int) -> int:
    return 1 << (max(number, 1).bit_length() - 1)


def report(advice: Advice, command: str) -> str:
    """Write the advice down, with the numbers behind it and what it does not know."""
    rates = ", ".join(
        f"{rate:g}: {'diverged' if math.isinf(loss) else f'{loss:.4f}'}" for rate, loss in advice.trials.items()
    )
    speeds = ", ".join(f"{size:,}: {size / s:,.0f}" for size, s in advice.seconds.items())
    slowest, fastest = (f(size / s for size, s in advice.seconds.items()) for f in (min, max))
    gain = (
        "a larger batch saves updates, and on this device alone no time"
        if fastest < 1.5 * slowest
        else f"larger batches run up to {fastest / slowest:.1f} times faster here"
    )
    run, noise, looked_at = advice.settings, advice.noise, _BATCHES * advice.trial_batch_size
    scale = f"{noise.value:,.0f} ± {noise.standard_error:,.0f} examples"
    if not noise.value <= looked_at:
        scale = f"more than the {looked_at:,} examples it was looked for in"
    return "\n".join(
        [
            f"held-out loss by rate, after {advice.trial_examples:,} examples in batches of "
            f"{advice.trial_batch_size}: {rates}",
            f"gradient noise scale then: {scale}",
            f"examples a second by gradient: {speeds}: {gain}",
            "",
            f"first batch {run['batch_size']}, growing to {run['max_batch_size']} with the noise of the "
            f"gradient and as the rate falls; rate {run['lr']:g} (half of the best one above, by the root of "
            f"the batch), warm-up of {run['warmup_epochs']:g} epochs, linear decay.",
            f"{run['epochs']} epochs are at most {advice.updates:,} updates, fewer where noise lets the batch "
            f"grow sooner, to {advice.constant_updates:,} of a batch that does not grow.",
            "not known: the accuracy of a whole run; whether half of the rate is right for one of this length; "
            "the noise scale later on, and so how many updates there will be; whether a first batch many times "
            "larger does as well, as it may with Muon.",
            "",
            command,
        ]
    )
