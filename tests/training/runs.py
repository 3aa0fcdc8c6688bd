"""Small runs, and what they leave, without the seconds."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.data import load, subset
from hessabs.models import create
from hessabs.training import tasks
from hessabs.training.assemble import assemble
from hessabs.training.run import prepare

N, TEST, MICRO = 200, 30, 8  # 25 micro-batches an epoch: odd, so that epochs end inside updates
SETTINGS = {
    "epochs": 4,
    "batch_size": 2 * MICRO,
    "micro_batch_size": MICRO,
    "lr": 0.02,
    "lr_decay_epochs": (3,),
    "hessian_batch_size": 16,
    "hessian_iters": 3,
}
GROWING = {"max_batch_size": 8 * MICRO, "patience": 1}
ABSA = {"method": "absa", **GROWING, "epsilon": 0.05}


def small_digits(train=N, test=TEST):
    """The first of the digits."""
    digits = load("digits")
    return digits._replace(
        train=subset(digits.train, np.arange(train)), test=subset(digits.test, np.arange(test))
    )


@functools.lru_cache(8)
def digits_task(train=N, test=TEST, model="mlp"):
    """A task of few digits; one for all tests, so that they share what is compiled."""
    return tasks.linen(
        create(model, 10),
        small_digits(train, test),
        name="digits",
        settings={"dataset": "digits", "model": model},
    )


def make_run(task=None, **settings):
    """A run of some settings, ready to go; of ABSA unless they say otherwise."""
    method = {} if settings.get("method", "absa") != "absa" else ABSA
    parts = assemble({**SETTINGS, **method, **settings}, task or digits_task())
    return prepare(parts.task, parts.optimizer, parts.rule, **parts.options)


def again(run):
    """A run like one whose state may be used up, with the same compiled functions."""
    return run._replace(state=jax.tree.map(jnp.copy, run.state))


def like(run, **settings):
    """A run of other settings that need no other programs, with the compiled functions of one."""
    shared = ("functions", "evaluate", "final", "measure", "measure_final", "track")
    return make_run(**settings)._replace(**{name: getattr(run, name) for name in shared})


def bits(tree):
    """A digest of every bit of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    text = b"".join(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes() for path, leaf in leaves)
    return hashlib.sha256(text).hexdigest()


def without_seconds(records):
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]


def lines(workdir):
    """The lines of metrics.jsonl without their seconds."""
    return without_seconds(json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
