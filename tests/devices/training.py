"""Training on eight devices against one: whole runs, single updates, and what travels; prints JSON.

Run by test_training.py in a process of its own, for the number of devices is fixed when JAX starts.
"""

import functools
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hessabs.training.devices import parallel, rows
from hessabs.training.setup import make_optimizer
from hessabs.training.state import init_state

from hessabs.data import Dataset, load
from hessabs.models import mlp, resnet20
from hessabs.training import Config, set_up, train
from hessabs.training.mesh import make_mesh, split
from hessabs.training.step import jit_each, make_step_functions
from tests.devices.ways import DEVICES, collectives, largest_difference, same_bits

CONFIG = Config(
    dataset="digits",
    epochs=5,
    batch_size=16,
    micro_batch_size=16,
    max_batch_size=256,
    lr=0.02,
    lr_decay_epochs=(3,),
    patience=1,
    hessian_batch_size=64,
    epsilon=0.05,
    adversarial_epochs=3,
)
DECIDED = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")


def small_digits():
    digits = load("digits")
    return Dataset(
        "digits",
        {name: array[:600] for name, array in digits.train.items()},
        {name: array[:50] for name, array in digits.test.items()},
        10,
    )


def whole_runs():
    """ABSA from a batch of two examples a device to 16 times that; epochs end inside updates."""
    data = small_digits()
    one = train(set_up(CONFIG, data))
    results = {"grown to": one.records[-1]["batch_size"]}
    for name, changes in {
        "fixed": {},
        "auto": {"micro_batch": "auto", "mesh": "data=8", "devices": None},
    }.items():
        several, again = (train(set_up(CONFIG._replace(**{"devices": 8, **changes}), data)) for _ in range(2))
        results[name] = {
            "params": largest_difference(several.params, one.params),
            "numbers": max(
                abs(a[field] - b[field]) / abs(b[field])
                for a, b in zip(several.records, one.records, strict=True)
                for field in ("train_loss", "test_accuracy", "eigenvalue")
                if b[field] == b[field]
            ),
            "decisions": [[record[field] for field in DECIDED] for record in several.records]
            == [[record[field] for field in DECIDED] for record in one.records],
            "same bits": same_bits(several.params, again.params),
            "compilations": several.summary["compilations"],
        }
    return results


def what_travels():
    """The collectives of each function of a step, and the number of params."""
    run = set_up(CONFIG._replace(devices=8), small_digits())
    functions, state = run.functions, run.state
    places = jax.tree.map(lambda x: x[: 8 * 16], {**run.dataset.train, "weight": np.ones(600, np.float32)})
    batch = split(places, run.mesh)
    lowered = {
        "accumulate": functions.accumulate.lower(state, batch),
        "accumulate_adversarial": functions.accumulate_adversarial.lower(state, batch, 0.1),
        "apply_update": functions.apply_update.lower(state, 1.0),
        "update": functions.update.lower(state, batch, 1.0),
        "update_adversarial": functions.update_adversarial.lower(state, batch, 0.1, 1.0),
    }
    size = sum(x.size for x in jax.tree.leaves(state.params))
    return {"params": size, **{name: collectives(program) for name, program in lowered.items()}}


def rules_and_replays():
    """The rules that compare micro-batches, and replays under a perturbation that lives on, on 8 and on 1."""
    data, results = small_digits(), {}
    for name, changes in {
        "gns": {"method": "gns", "noise_scale": 4.0},
        "norm_test": {"method": "norm_test", "tolerance": 0.5},
        "free": {"method": "bl", "robust": "free", "free_replays": 2},
    }.items():
        config = CONFIG._replace(**{"batch_size": 32, "epochs": 3, "lr_decay_epochs": (), **changes})
        one, several = (train(set_up(config._replace(devices=devices), data)) for devices in (1, 8))
        results[name] = {
            "params": largest_difference(several.params, one.params),
            "decisions": [
                [[record[field] for field in DECIDED] for record in run.records] for run in (several, one)
            ],
            "loss": [run.records[-1]["train_loss"] for run in (several, one)],
        }
    return results


class Dropped(nn.Module):
    """A small network with dropout, twice."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x.reshape(x.shape[0], -1))
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return nn.Dropout(0.1, deterministic=not train)(nn.Dense(10)(x))


class Normed(nn.Module):
    """A small network with batch norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(10)(jnp.tanh(x))


def batch_norm(model, shape, micro):
    """Two updates: one of a single micro-batch, split, and one of two micro-batches a device."""
    rng = np.random.default_rng(0)
    dtype = jnp.zeros(()).dtype  # float64 where JAX_ENABLE_X64 says so

    def batch(n):
        return {
            "image": rng.uniform(size=(n, *shape)).astype(dtype),
            "label": rng.integers(0, 10, n).astype(np.int32),
            "weight": np.ones(n, np.float32),
        }

    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, *shape))))
    variables = jax.tree.map(lambda x: x.astype(dtype) if rows.is_mean(x) else x, variables)
    params = variables.pop("params")
    optimizer = make_optimizer(Config(lr=0.1))
    mesh = make_mesh(DEVICES)
    single, several = batch(micro), [batch(DEVICES * micro) for _ in range(2)]

    def follow(compiled, state, place, parts):
        functions = make_step_functions(model, optimizer, compiled=compiled)
        state = functions.update(state, place(single), 1.0)
        for batch in several:
            for part in parts(batch):
                state = functions.accumulate(state, place(part))
        state = functions.accumulate(state, place(single))
        return functions.apply_update(state, 1.0), functions

    def micro_batches(batch):
        return [jax.tree.map(lambda x, i=i: x[i : i + micro], batch) for i in range(0, DEVICES * micro, micro)]

    def first():
        return init_state(*jax.tree.map(jnp.copy, (params, variables)), optimizer)

    one, _ = follow(jit_each, first(), lambda batch: batch, micro_batches)
    on_mesh = functools.partial(parallel.on_mesh, mesh=mesh, dealt=False, micro_batch_size=micro)
    start = rows.spread(first(), mesh)
    got, functions = follow(on_mesh, start, lambda batch: split(batch, mesh), lambda batch: [batch])
    lowered = functions.accumulate.lower(got, split(several[0], mesh))
    return {
        "params": largest_difference(got.params, one.params),
        "moved": largest_difference(got.params, params),
        "statistics": largest_difference(rows.collect(got).model_state, one.model_state),
        "one row": same_bits(*(jax.tree.map(lambda x, i=i: x[i], got.model_state) for i in (0, 7))),
        "loss": abs(float(rows.collect(got).loss) / float(one.loss) - 1),
        "compilations": functions.compilations(),
        "accumulate": collectives(lowered),
    }


PARTS = {
    "runs": whole_runs,
    "rules and replays": rules_and_replays,
    "dropout": lambda: batch_norm(Dropped(), (4, 4, 1), 8),
    "travels": what_travels,
    "batch norm": lambda: batch_norm(Normed(), (4, 4, 1), 8),
    "resnet20": lambda: batch_norm(resnet20(10), (8, 8, 3), 8),
    "mlp": lambda: batch_norm(mlp(10, (7,)), (4, 4, 1), 8),
}

if __name__ == "__main__":
    print(json.dumps({name: PARTS[name]() for name in sys.argv[1:] or PARTS}))
