"""What every way to make a task shares: data as images or batches, and the loss of a network's outputs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.data import Arrays, Dataset, Source, as_source, check_examples, crop_flip, in_memory
from hessabs.data.source import View
from hessabs.data.tokens import Tokens
from hessabs.training.task import LossOutput, Task, as_it_is
from hessabs.training.tasks.losses import Mean, OutputLoss, classification, next_token, targets

_AT_ONCE = 4096  # examples whose labels are looked at

Data = Dataset | tuple[Any, Any]
"""A ``hessabs.data.Dataset``, or (train, test): what ``hessabs.data.as_source`` takes, each."""

Apply = Callable[[Any, Any, Any, jax.Array, bool], tuple[Any, Any]]
"""``apply(params, model_state, inputs, key, train) -> (outputs, model state)``."""


class Fields(NamedTuple):
    """What of a task follows from its data."""

    train: Source
    test: Source
    inputs: Callable[[Any], Any]  # of a prepared batch: what the network is applied to
    loss: OutputLoss
    rest: dict[str, Any]  # further fields of the task
    example: Any  # inputs of one prepared example, for the network to be drawn


def scale_images(batch: Any) -> dict[str, Any]:
    """Turn images of uint8 into float32 in [0, 1], on the device, augmented where the stream drew a "shift"."""
    batch = dict(batch)
    if "shift" in batch:
        batch["image"] = crop_flip(batch["image"], batch.pop("shift"))
    if batch["image"].dtype == jnp.uint8:
        batch["image"] = batch["image"].astype(jnp.float32) / 255
    return batch


def read_data(data: Data, inputs: str | Callable[[Any], Any] | None, loss: OutputLoss | None) -> Fields:
    """Find out what the examples are, and what a network is to make of them; the arguments are ``linen``'s."""
    if isinstance(data, Dataset):
        data = check_examples(data)
    elif not isinstance(data, (tuple, list)) or len(data) != 2:
        got = f"{len(data)} of them" if isinstance(data, (tuple, list)) else f"one {type(data).__name__}"
        raise ValueError(f"`data` must be a hessabs.data.Dataset or the pair (train, test), got {got}.")
    train, test = map(as_source, (data.train, data.test) if isinstance(data, Dataset) else data)
    example = train.take(np.arange(1))
    known = "image" if "image" in example else "tokens" if "tokens" in example else None
    if known is None and (inputs is None or loss is None):
        raise ValueError(
            f"Examples with the keys {sorted(example)} need `inputs` (the key that the network is applied to, "
            "or a function of a batch) and `loss` (outputs, batch) -> Mean(mean, weight, metrics); a dict of "
            '"image" and "label", or of "tokens", does not.'
        )
    rest: dict[str, Any] = {}
    prepare = as_it_is
    if known == "image":
        prepare = scale_images
        rest = {"prepare": prepare, "inputs_key": "image", "bounds": (0.0, 1.0)}
    if known is not None and isinstance(data, Dataset):
        rest |= {"num_classes": data.num_classes, "class_names": data.class_names}
    if inputs is None:
        get = (lambda batch: batch["image"]) if known == "image" else (lambda batch: batch["tokens"][:, :-1])
    elif isinstance(inputs, str):
        name: str = inputs
        get, rest["inputs_key"] = (lambda batch: batch[name]), name
    else:
        get = inputs
    if loss is None:
        loss = classification if known == "image" else next_token
    weighted = {**example, "weight": np.ones(1, np.float32)}
    return Fields(train, test, get, loss, rest, get(prepare(weighted)))


def make_task(name: str, fields: Fields, init: Any, apply: Apply, **rest: Any) -> Task:
    """Put a task together, of which ``apply`` is the network; nothing is computed before outputs, labels and
    loss are found to fit.
    """
    inputs, output_loss = fields.inputs, fields.loss
    inputs_key = {**fields.rest, **rest}.get("inputs_key")
    unknown = sorted(rest.keys() - set(Task._fields))
    if unknown:
        raise ValueError(f"A task has no field {unknown[0]!r}; its fields are: {', '.join(Task._fields)}.")

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array, train: bool) -> LossOutput:
        outputs, new_state = apply(params, model_state, inputs(batch), key, train)
        value = output_loss(outputs, batch)
        if not isinstance(value, Mean):
            raise ValueError(
                f"The loss of the task {name} must return Mean(mean, weight, metrics), got "
                f"{type(value).__name__}: a mean alone does not say what it is over."
            )
        return LossOutput(value.mean, value.weight, new_state if train else model_state, value.metrics, outputs)

    def logits(params: Any, model_state: Any, x: Any) -> Any:
        # What the network is applied to may be a function of what is perturbed: a normalisation, say.
        taken = x if inputs_key is None else inputs({inputs_key: x})
        return apply(params, model_state, taken, jax.random.key(0), False)[0]

    known = {"logits": logits, **fields.rest, **rest}
    if known.get("validation") is not None:
        known["validation"] = as_source(known["validation"])
    task = Task(name, init, loss, fields.train, fields.test, **known)
    example = {**task.train.take(np.arange(1)), "weight": np.ones(1, np.float32)}
    own = output_loss not in (classification, next_token)
    if not own:
        _check_whole_numbers(task, output_loss, example)

    def evaluate() -> LossOutput:
        key = jax.random.key(0)
        return task.loss(*task.init(key), task.prepare(example), key, False)

    found = jax.eval_shape(evaluate)
    if not own:
        task = _with_labels_checked(task, output_loss, found.outputs.shape)
    elif not rest.keys() & {"bounds", "logits"} and not _classifies(task, found, example):
        task = task._replace(logits=None, bounds=None)
    if "logits" not in rest and inputs_key is not None and not _reads_alone(inputs, inputs_key, task, example):
        task = task._replace(logits=None)
    return task


def _classifies(task: Task, found: LossOutput, example: Any) -> bool:
    """Tell whether a loss of the user's own is of classes: it has an accuracy, of logits and whole labels."""
    labels = np.asarray(example.get(task.label_key, 0.0))
    rows = isinstance(found.outputs, jax.ShapeDtypeStruct) and len(found.outputs.shape) == 2
    return "accuracy" in found.metrics and rows and labels.ndim == 1 and labels.dtype.kind in "iu"


def _reads_alone(inputs: Callable[[Any], Any], inputs_key: str, task: Task, example: Any) -> bool:
    """Tell whether the inputs of a network are a function of what attacks perturb, and of nothing else."""
    try:
        jax.eval_shape(lambda: inputs({inputs_key: task.prepare(example)[inputs_key]}))
    except KeyError:
        return False
    return True


def _check_whole_numbers(task: Task, output_loss: OutputLoss, example: Any) -> None:
    name = "label" if output_loss is classification else "tokens"
    if name not in example:
        got, advice = f"the keys {sorted(example)}", ""
    else:
        got, advice = str(np.asarray(example[name]).dtype), "make it int32, or "
    if name not in example or not np.issubdtype(np.asarray(example[name]).dtype, np.integer):
        raise ValueError(
            f"The task {task.name} needs whole numbers under the key {name!r}, got {got}; {advice}pass a "
            "`loss` of your own."
        )


def _with_labels_checked(task: Task, output_loss: OutputLoss, outputs: tuple[int, ...]) -> Task:
    """Refuse labels that are none of the outputs: now, or of data that are not in memory as they are read."""
    number = outputs[-1]
    if (task.num_classes or 0) > number:
        raise ValueError(
            f"The network of the task {task.name} has too few outputs: its data has {task.num_classes} "
            f"classes, got outputs of shape (n, {', '.join(map(str, outputs[1:]))})."
        )
    check = functools.partial(_check_labels, task.name, output_loss, number)

    def checked(source: Source) -> Source:
        if not in_memory(source) or isinstance(source, Tokens):  # these may be mapped from a file
            return View(source, None, check)
        if isinstance(source, Arrays):
            check(None, source.arrays)
            return source
        for start in range(0, len(source), _AT_ONCE):
            check(None, source.take(np.arange(start, min(start + _AT_ONCE, len(source)))))
        return source

    validation = None if task.validation is None else checked(task.validation)
    return task._replace(train=checked(task.train), test=checked(task.test), validation=validation)


def _check_labels(name: str, output_loss: OutputLoss, number: int, _: Any, batch: Mapping[str, Any]) -> None:
    labels = targets(output_loss, batch)
    wrong = labels[(labels < 0) | (labels >= number)]
    if wrong.size:
        raise ValueError(
            f"Outputs and labels of the task {name} do not fit: its network has {number} outputs, so labels "
            f"lie in 0..{number - 1}, got {wrong[0]}."
        )
