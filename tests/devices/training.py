"""Training on several devices against one: whole runs, single updates, and what travels; prints JSON.

Run by test_training.py, with eight devices in a process of its own: their number is fixed when JAX starts.
"""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from hessabs import curvature, data, trees
from hessabs.models import mlp, resnet20
from hessabs.training import across, tasks
from hessabs.training.loop import train
from hessabs.training.measure import raw_loss, raw_weight
from hessabs.training.mesh import make_mesh, place, split
from hessabs.training.objectives import Objective
from hessabs.training.optimizers import OptimizerSettings, make_optimizer
from hessabs.training.run import _places
from hessabs.training.step import init_state, jit_functions, make_functions
from tests.devices.ways import DEVICES, collectives, largest_difference, same_bits
from tests.training.runs import again, digits_task, make_run, small_digits

MICRO = 16
SETTINGS = {
    "epochs": 5,
    "batch_size": MICRO,
    "micro_batch_size": MICRO,
    "max_batch_size": 16 * MICRO,
    "lr_decay_epochs": (3,),
    "hessian_batch_size": 64,
    "adversarial_epochs": 3,
}
DECIDED = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")


def make(task=None, **settings):
    settings = {**SETTINGS, **settings}
    if settings.get("method", "absa") != "absa":
        settings.pop("adversarial_epochs")
    if settings.get("method") == "bl":
        settings.pop("max_batch_size")
    return make_run(task or digits_task(600, 50), **settings)


def decisions(result):
    return [[record[field] for field in DECIDED] for record in result.records]


def whole_runs():
    """ABSA from a batch of two examples a device to 16 times that; epochs end inside updates."""
    one = train(make())
    results = {"grown to": one.records[-1]["batch_size"]}
    for name, changes in {
        "fixed": {"devices": DEVICES},
        "auto": {"micro_batch": "auto", "mesh": f"data={DEVICES}"},
    }.items():
        run = make(**changes)
        several, once_more = (train(again(run)) for _ in range(2))
        results[name] = {
            "params": largest_difference(several.params, one.params),
            "numbers": max(
                abs(a[field] - b[field]) / abs(b[field])
                for a, b in zip(several.records, one.records, strict=True)
                for field in ("train_loss", "test_accuracy", "eigenvalue")
                if b[field] == b[field]
            ),
            "decisions": decisions(several) == decisions(one),
            "same bits": same_bits(several.params, once_more.params),
            "compilations": several.summary["compilations"],
        }
    return results


def what_travels():
    """The collectives of each function of an update, and the number of params."""
    run = make(devices=DEVICES)
    functions, state = run.functions, run.state
    totals = functions.begin(state)

    def batch(count):
        whole = {**run.task.train.take(np.arange(count * MICRO)), "weight": np.ones(count * MICRO, np.float32)}
        return split(whole, run.mesh)

    lowered = {
        "begin": functions.begin.lower(state),
        "add": functions.add.lower(state, totals, batch(1), None, 0),
        "add several": functions.add.lower(state, totals, batch(DEVICES), None, 0),
        "add adversarial": functions.add.lower(state, totals, batch(1), 0.1, 0),
        "finish": functions.finish.lower(state, totals, 1.0),
        "whole": functions.whole.lower(state, batch(1), None, 1.0),
    }
    size = sum(x.size for x in jax.tree.leaves(state.params))
    return {"params": size, **{name: collectives(program) for name, program in lowered.items()}}


def rules_and_replays():
    """The rules that compare micro-batches, and replays under a perturbation that lives on, on 8 and on 1."""
    results = {}
    for name, changes in {
        "gns": {"method": "gns", "noise_scale": 4.0, "measure_every": 224},
        "norm_test": {"method": "norm_test", "tolerance": 0.5, "measure_every": 224},
        "free": {"method": "bl", "robust": "free", "free_replays": 2},
    }.items():
        changes = {"batch_size": 2 * MICRO, "epochs": 3, "lr_decay_epochs": (), **changes}
        one, several = (train(make(**changes, devices=devices)) for devices in (1, DEVICES))
        results[name] = {
            "params": largest_difference(several.params, one.params),
            "decisions": [decisions(run) for run in (several, one)],
            "loss": [run.records[-1]["train_loss"] for run in (several, one)],
        }
    return results


def on_one_device(params):
    """The part of the bytes of some arrays that the first device holds."""
    leaves = jax.tree.leaves(params)
    here = sum(
        shard.data.nbytes for x in leaves for shard in x.addressable_shards if shard.device == jax.devices()[0]
    )
    return here / sum(x.nbytes for x in leaves)


def pair(task, **settings):
    """A run on one device, and one whose params are split over two devices each, its batches over the pairs."""
    settings = {"optimizer": "adamw", "lr": 0.002, "ema": 500, "lr_decay_epochs": (), **settings}
    return [make(task, **settings, **mesh) for mesh in ({}, {"mesh": f"data={DEVICES // 2},model=2"})]


def compare(got, want, first):
    names = ("params", "opt_state", "average")
    return {
        "parts": {name: on_one_device(getattr(got, name)) for name in names if hasattr(got, name)},
        "params": largest_difference(got.params, want.params),
        "average": largest_difference(got.average, want.average),
        "moved": largest_difference(got.params, first),
    }


def sharded():
    """One update."""
    task = tasks.linen(mlp(10, (32,)), small_digits(64, 32))
    batch = {**task.train.take(np.arange(MICRO)), "weight": np.ones(MICRO, np.float32)}
    runs = pair(task, method="bl", epochs=1)
    first = jax.tree.map(np.asarray, runs[0].state.params)
    want, got = (run.functions.whole(run.state, split(batch, run.mesh), None, 1.0) for run in runs)
    return compare(got, want, first)


def sharded_run():
    """A whole run of ABSA with a partition of the task's own (the rows of matrices), and its spectrum."""

    def rows(mesh, params):
        return jax.tree.map(lambda x: P("model") if x.ndim > 1 else P(), params)

    task = digits_task(600, 50)._replace(partition=rows)
    batch = next(data.eval_batches(task.train, 64))

    def spectrum(params):
        loss, weight = raw_loss(task, {}), raw_weight(task, params, {})
        operator = curvature.hessian(loss, params, batch, weight=weight)
        v0 = trees.normal_like(jax.random.key(0), params)
        return curvature.eigsh(operator, v0, 2, rtol=1e-4, max_matvecs=100)

    runs = pair(task, epochs=3, adversarial_epochs=1)
    first = jax.tree.map(np.asarray, runs[0].state.params)
    want, got = map(train, runs)
    pairs = [spectrum(each.params) for each in (got, want)]
    return {
        **compare(got, want, first),
        "decisions": decisions(got) == decisions(want),
        "grown to": got.records[-1]["batch_size"],
        "eigenvalue": [each.summary["eigenvalue"] for each in (got, want)],
        "measured": [[record["eigenvalue"] for record in each.records] for each in (got, want)],
        "spectrum": [np.asarray(each.eigenvalues).tolist() for each in pairs],
        "vectors": on_one_device(pairs[0].eigenvectors),
        "converged": bool(np.all(pairs[0].converged)),
    }


class Normed(nn.Module):
    """A small network with batch norm, and dropout, twice."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return nn.Dropout(0.1, deterministic=not train)(nn.Dense(10)(x))


def cross_entropy(outputs, batch):
    """The loss in the precision of the network."""
    values = optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])
    weight = jnp.sum(batch["weight"])
    return tasks.Mean((jnp.sum(values * batch["weight"]) / weight).astype(jnp.float32), weight, {})


def whole_micro_batches(model, shape, micro):
    """Two updates: one of a single micro-batch, split, and one of two micro-batches a device and a single."""
    rng = np.random.default_rng(0)
    dtype = jnp.zeros(()).dtype  # float64 where JAX_ENABLE_X64 says so

    def batch(n):
        return {
            "image": rng.uniform(size=(n, *shape)).astype(dtype),
            "label": rng.integers(0, 10, n).astype(np.int32),
            "weight": np.ones(n, np.float32),
        }

    example = {name: array for name, array in batch(2).items() if name != "weight"}
    made = tasks.linen(model, (example, example), loss=cross_entropy)

    def init(key):
        params, model_state = made.init(key)
        return jax.tree.map(lambda x: x.astype(dtype), (params, model_state))

    task = made._replace(init=init)
    optimizer = make_optimizer(OptimizerSettings(lr=0.1), batch_size=micro)
    functions, _ = make_functions(task, optimizer, Objective())
    mesh = make_mesh({"data": DEVICES})
    single, several = batch(micro), [batch(DEVICES * micro) for _ in range(2)]

    def first():
        return init_state(task, optimizer, jax.random.key(0), (), average=False)

    def follow(functions, state, place, parts):
        state = functions.whole(state, place(single), None, 1.0)
        totals, number = functions.begin(state), 0
        for batch in several:
            for part in parts(batch):
                totals = functions.add(state, totals, place(part), None, number)
                number += len(part["weight"]) // micro
        totals = functions.add(state, totals, place(single), None, number)
        return functions.finish(state, totals, 1.0)

    def micro_batches(batch):
        return [jax.tree.map(lambda x, i=i: x[i : i + micro], batch) for i in range(0, DEVICES * micro, micro)]

    one = follow(jit_functions(functions, micro, one_by_one=True), first(), lambda batch: batch, micro_batches)
    places = _places(task, first(), mesh)
    several_functions = across.on_mesh(
        functions, mesh, places, dealt=False, micro_batch_size=micro, one_by_one=True
    )
    spread = jax.tree.map(lambda x, where: place(np.asarray(x), where), first(), places)
    got = follow(several_functions, spread, lambda batch: split(batch, mesh), lambda batch: [batch])
    totals = several_functions.begin(got)
    lowered = several_functions.add.lower(got, totals, split(several[0], mesh), None, 0)
    rows = [
        jax.tree.map(lambda x, i=i: x.addressable_shards[i].data, got.model_state) for i in (0, DEVICES - 1)
    ]
    return {
        "params": largest_difference(got.params, one.params),
        "moved": largest_difference(got.params, first().params),
        "statistics": largest_difference(got.model_state, one.model_state) if one.model_state else None,
        "one state": same_bits(*rows),
        "loss": abs(float(got.loss) / float(one.loss) - 1),
        "compilations": several_functions.compilations(),
        "add": collectives(lowered),
    }


PARTS = {
    "runs": whole_runs,
    "rules and replays": rules_and_replays,
    "sharded": sharded,
    "sharded run": sharded_run,
    "travels": what_travels,
    "batch norm and dropout": lambda: whole_micro_batches(Normed(), (4, 4, 1), 8),
    "resnet": lambda: whole_micro_batches(resnet20(10).clone(blocks=(1, 1), widths=(8, 16)), (8, 8, 3), 8),
}


def find(names):
    return {name: PARTS[name]() for name in names}


if __name__ == "__main__":
    print(json.dumps(find(sys.argv[1:] or PARTS)))
