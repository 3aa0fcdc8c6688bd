"""What a trained network makes of new inputs: classes and their probabilities."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import data, programs, trees
from hessabs.training import files
from hessabs.training.task import Task
from hessabs.typing import Params


def predict(task: Task, params: Params, model_state: Any, inputs: Any, *, batch_size: int = 1000) -> np.ndarray:
    """Predict the probabilities of the classes.

    Args:
      task: What was learnt; it has ``logits`` of classes, and its inputs are continuous (images).
      params, model_state: The network; ``model_state`` is {} without any.
      inputs: As the data of the task has them: images uint8, or float32 scaled already, shape (n, ...).
      batch_size: Inputs in one pass of the network.

    Returns:
      Probabilities, shape (n, classes), float32; each row sums to 1.

    Raises:
      ValueError: If the task does not predict classes, or the inputs have another shape than its own.

    Example:
      >>> from hessabs import data, models
      >>> from hessabs.training import tasks
      >>> digits = data.load("digits")
      >>> task = tasks.linen(models.mlp(10), digits)
      >>> predict(task, *task.init(jax.random.key(0)), digits.test["image"][:3]).shape
      (3, 10)
    """
    example = _example(task)
    inputs = np.asarray(inputs)
    shape = example[task.inputs_key].shape[1:]
    if not len(inputs) or inputs.shape[1:] != shape:
        raise ValueError(
            f"`inputs` must be at least one input of {task.name}, shape (n, {', '.join(map(str, shape))}), got "
            f"shape {inputs.shape}."
        )
    found = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        # What else an example has is that of the first one: no prediction looks at it.
        batch = jax.tree.map(lambda x, part=part: np.repeat(x, len(part), axis=0), example)
        batch = {**batch, task.inputs_key: part, "weight": np.ones(len(part), np.float32)}
        functions = Partial(task.prepare), Partial(task.logits), trees.Static(task.inputs_key)
        found.append(np.asarray(_probabilities(*functions, params, model_state, batch)))
    return np.concatenate(found)


def predict_files(
    task: Task, params: Params, model_state: Any, files: Sequence[str], *, resize: int | None = None
) -> list[dict[str, Any]]:
    """Predict the class of images in files: a row each, of ``image``, ``class``, ``label``, ``probability`` and
    the ``probabilities`` of all classes.
    """
    own = _example(task)[task.inputs_key]
    shape = own.shape[1:]
    if own.dtype != np.uint8 and task.bounds != (0, 1):
        raise ValueError(
            f"An image of a file becomes numbers in [0, 1], and the inputs of {task.name} are {own.dtype} in "
            f"{task.bounds}: prepare images as your data are, and give the arrays to `training.predict`."
        )
    # Read as the images of the data were.
    how = {name: task.settings.get(name) for name in ("image_size", "resize")}
    if resize and how["image_size"]:
        raise ValueError(
            f"`resize` is not read: the run brings images to image_size={how['image_size']} in its own way."
        )
    how["resize"] = resize or how["resize"]
    images = np.stack([data.read_image(file, shape, **how) for file in files])
    rows = []
    for file, row in zip(files, predict(task, params, model_state, images), strict=True):
        label = int(row.argmax())
        rows.append(
            {
                "image": file,
                "class": task.class_name(label),
                "label": label,
                "probability": float(row[label]),
                "probabilities": row.tolist(),
            }
        )
    return rows


def _example(task: Task) -> Any:
    if not task.attackable:
        raise ValueError(
            f"The task {task.name} predicts no classes: it needs `logits` and continuous inputs (`bounds`)."
        )
    return task.test.take(np.arange(1))


def check_output(path: pathlib.Path | None) -> None:
    """Refuse a file of another kind than ``write`` writes."""
    if path is not None and path.suffix not in (".json", ".csv"):
        raise ValueError(f"`output` must end in .json or .csv, got {path}.")


def write(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write predictions: all of them as JSON, or a line for each image as CSV, by the suffix."""
    if path.suffix == ".json":
        files.write_json(path, {"predictions": rows})
    else:
        files.write_csv(path, rows, ("image", "class", "label", "probability"))


@programs.jit
def _probabilities(
    prepare: Partial, logits: Partial, key: trees.Static, params: Params, model_state: Any, batch: Any
) -> jax.Array:
    out = logits(params, model_state, prepare(batch)[key.value])
    if out.ndim != 2:
        raise ValueError(f"Logits of classes have the shape (n, classes), got {out.shape}.")
    return jax.nn.softmax(out.astype(jnp.float32))
