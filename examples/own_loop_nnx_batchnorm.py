"""A loop of Flax NNX with batch norm and dropout whose batch grows; saved in the middle of a batch and resumed.

    python examples/own_loop_nnx_batchnorm.py

``nnx.Optimizer`` passes keyword arguments of ``update`` (an ``eigenvalue``, say) on to the chain. ``seesaw``
wants none: the batch grows as a cosine lets the learning rate fall. All there is, what is added up so far too,
is one ``nnx.state``: orbax saves it after any micro-batch, and the resumed run ends with the same bits.
"""

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits

import hessabs

EPOCHS, TRAIN = 6, 1408  # passes; examples of the training set
MICRO, LARGEST = 32, 256  # examples of a micro-batch, which is the first batch, and of the largest batch
STEPS, STOP = EPOCHS * TRAIN // MICRO, 198  # micro-batches of the run, and of the one that is broken off


class Network(nnx.Module):
    """A hidden layer with batch norm and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Draw the params."""
        self.hidden, self.out = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def make(tx: optax.GradientTransformationExtraArgs, seed: int) -> tuple[Network, nnx.Optimizer]:
    """Make the model and its optimizer."""
    model = Network(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def make_tx() -> optax.GradientTransformationExtraArgs:
    """Chain AdamW, the rule and the schedule, once for each batch."""
    cosine = optax.cosine_decay_schedule(3e-3, STEPS)
    rule = hessabs.batch_size.seesaw(
        MICRO, LARGEST, lr_schedule=lambda samples: float(cosine(samples / MICRO)), total=STEPS * MICRO
    )
    per_batch = optax.chain(
        hessabs.by_examples(optax.scale_by_adam, batch_size=MICRO)(),  # its betas follow the batch
        optax.add_decayed_weights(0.01),
        hessabs.adaptive_batch_size(hessabs.batch_size.with_coupling(rule, "sqrt")),
        hessabs.by_samples(cosine, MICRO),
    )
    return hessabs.accumulate(per_batch, micro_batch_size=MICRO)


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, batch: Any) -> None:
    """Add a micro-batch, and update the params if it is the last one of its batch."""

    def loss_fn(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"]).mean()

    optimizer.update(model, nnx.grad(loss_fn)(model))


def train(model: Network, optimizer: nnx.Optimizer, data: Any, first: int, last: int) -> None:
    """Train on micro-batches ``first`` to ``last``, whose examples follow from their number."""
    model.train()
    for number in range(first, last):
        epoch, place = divmod(number, TRAIN // MICRO)
        rows = np.random.default_rng(epoch).permutation(TRAIN)[place * MICRO : (place + 1) * MICRO]
        step(model, optimizer, jax.tree.map(lambda x, rows=rows: x[rows], data))


def bits(*parts: Any) -> list[bytes]:
    """Return the bytes of all the state: NaN equals NaN, and 0 is not -0."""
    leaves = jax.tree.leaves(nnx.as_pure(nnx.state(parts)))
    arrays = [x if isinstance(x.dtype, np.dtype) else jax.random.key_data(x) for x in leaves]
    return [np.asarray(x).tobytes() for x in arrays]


def main() -> None:
    """Train without a break, then with one, and compare."""
    digits, order = load_digits(), np.random.default_rng(0).permutation(1797)
    data: Any = {"image": np.float32(digits.data[order] / 16), "label": np.int32(digits.target[order])}

    tx = make_tx()
    model, optimizer = make(tx, seed=0)
    for first in range(0, STEPS, STEPS // EPOCHS):
        train(model, optimizer, data, first, first + STEPS // EPOCHS)
        now = hessabs.read(optimizer.opt_state)
        print(f"{int(now.samples):5d} examples: next batch {int(now.batch_size)}")
    model.eval()
    predicted = jnp.argmax(model(data["image"][TRAIN:]), axis=-1)
    print(f"accuracy {100 * np.mean(predicted == data['label'][TRAIN:]):.1f} %")

    stopped, resumed = make(tx, seed=0), make(tx, seed=1)  # of the second only the structure counts
    train(*stopped, data, 0, STOP)
    added, size = stopped[1].opt_state.num_accumulated, hessabs.read(stopped[1].opt_state).batch_size
    print(f"saved after {STOP} micro-batches, with {int(added)} of {int(size) // MICRO} added up")
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(folder, "checkpoint"), nnx.state(stopped))
        checkpointer.wait_until_finished()
        nnx.update(resumed, checkpointer.restore(pathlib.Path(folder, "checkpoint"), nnx.state(resumed)))
    train(*resumed, data, STOP, STEPS)
    print("the same bits:", bits(*resumed) == bits(model, optimizer))


if __name__ == "__main__":
    main()
