"""Small runs that tests interrupt, and what they leave, without the seconds."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.data import Dataset, load
from hessabs.training import Config

N, TEST, MICRO = 200, 30, 8  # 25 micro-batches an epoch: odd, so that epochs end inside updates
CONFIG = Config(
    dataset="digits",
    epochs=4,
    batch_size=2 * MICRO,
    micro_batch_size=MICRO,
    max_batch_size=8 * MICRO,
    lr=0.02,
    lr_decay_epochs=(3,),
    patience=1,
    hessian_batch_size=16,
    hessian_iters=3,
    epsilon=0.05,
)


def small_digits():
    """The first of the digits, with few test images."""
    digits = load("digits")
    return Dataset(
        "digits",
        {name: array[:N] for name, array in digits.train.items()},
        {name: array[:TEST] for name, array in digits.test.items()},
        10,
    )


def again(run):
    """A run like one whose state may be used up, with the same compiled functions."""
    return run._replace(state=jax.tree.map(jnp.copy, run.state))


def bits(params):
    """A digest of every bit of a tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    text = b"".join(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes() for path, leaf in leaves)
    return hashlib.sha256(text).hexdigest()


def lines(workdir):
    """The lines of metrics.jsonl without their seconds."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]
