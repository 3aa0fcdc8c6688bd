"""Tasks by name: what ``hessabs train`` and the commands that look at a run are told."""

import inspect
import pathlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from flax import linen as linen_modules

from hessabs import models
from hessabs.data import Dataset, check_examples, hold_out, load
from hessabs.data.datasets import located
from hessabs.data.text import LENGTH, describe, is_text
from hessabs.explanations import has_class
from hessabs.training import factories, fields
from hessabs.training.factories import FACTORIES, Factory, call_factory, load_factory
from hessabs.training.fields import is_factory, nearest
from hessabs.training.task import Task
from hessabs.training.tasks.equinox import equinox
from hessabs.training.tasks.linen import linen
from hessabs.training.tasks.nnx import nnx


class TaskSettings(NamedTuple):
    """What is learnt."""

    task: Annotated[
        str | None,
        "FILE.py:factory, called as factory(), which returns a hessabs.training.Task; for dataset and model",
    ] = None
    dataset: Annotated[
        str,
        "digits (embedded), folder:PATH (a folder of images for each class, or train/ and test/ of these; val/ "
        "is read where there is no test/), a TFDS name such as cifar10, "
        "stdlib (text: the source of Python's standard library), or text:PATH (a file in UTF-8)",
    ] = "digits"
    data_dir: Annotated[str | None, "folder of prepared TFDS data sets; default: TFDS's own"] = None
    train_split: Annotated[str, "split to train on, or several joined by +, such as train+extra"] = "train"
    image_size: Annotated[
        int | None,
        "side of the images of a set that does not fit memory: they are decoded when they are used; "
        "default: images as they are, in memory",
    ] = None
    resize: Annotated[
        int | None, "side to which images are brought that differ in size; default: they must not"
    ] = None
    sequence_length: Annotated[
        int | None, f"characters that an example of text predicts; default: {LENGTH}"
    ] = None
    augment: Annotated[
        Literal["none", "crop_flip", "resized_crop"],
        "augmentation of the training images (resized_crop: with image_size); the same for an example of an "
        "epoch whatever else changes",
    ] = "none"
    data_workers: Annotated[
        int, "processes that read what is not in memory; 0: threads of this one", "be at least 0"
    ] = 0
    model: Annotated[
        str,
        f"network: {', '.join(sorted(models.MODELS))}, or FILE.py:factory, called as factory(num_classes=N): a "
        "Linen, NNX or Equinox module (with rngs=, key= where it has such a parameter)",
    ] = "mlp"
    validation_examples: Annotated[
        int,
        "training examples, the same for every seed, that are held out and only evaluated at the end",
        "be at least 0",
    ] = 0


def check_unread(given: Collection[str]) -> None:
    """Refuse settings that were given, be it their default, beside a task that says all itself."""
    unread = sorted({*given} & {*TaskSettings._fields} - {"task"}) if "task" in given else []
    if unread:
        raise ValueError(
            f"`{unread[0]}` is not read with `task`, which says itself what is learnt; leave it out."
        )


def check_named(settings: TaskSettings) -> None:
    """Check the fields that need no data to be checked; a ``ValueError`` says what was got and what to do."""
    fields.check(settings)
    if settings.task is not None:
        check_unread(fields.changed(settings))
    if settings.augment == "resized_crop" and settings.image_size is None:
        raise ValueError("`augment` resized_crop needs `image_size`, the side of the crops; got none.")
    if settings.task is None and not is_factory(settings.model) and settings.model not in models.MODELS:
        raise ValueError(
            f"`model` must be one of {', '.join(sorted(models.MODELS))}, or FILE.py:factory, got "
            f"{settings.model!r}{nearest(settings.model, models.MODELS)}."
        )
    if settings.task is None:
        _check_kind(settings)


def _check_kind(settings: TaskSettings) -> None:
    """Refuse what is for images where there is text, and the other way round."""
    name, of_text = settings.dataset, is_text(settings.dataset)
    if settings.model in models.MODELS and (settings.model in models.OF_TEXT) != of_text:
        known = sorted(name for name in models.MODELS if (name in models.OF_TEXT) == of_text)
        raise ValueError(
            f"`model` must be one of {', '.join(known)}, or FILE.py:factory, for {name}, which is "
            f"{'text' if of_text else 'no text'}, got {settings.model!r}."
        )
    if of_text and settings.augment != "none":
        raise ValueError(
            f"`augment` is for images, and {name} is text: leave it out, got {settings.augment!r}."
        )
    if settings.sequence_length is not None and not of_text:
        raise ValueError(f"`sequence_length` is for text, which {name} is not: leave it out.")


def make_named(
    settings: TaskSettings, loaded: Mapping[str, Factory] | None = None, vocabulary: str | None = None
) -> Task:
    """Make the task of some settings; its own ``settings`` are these, and where its factories lie.

    ``loaded`` holds factories that are loaded already, by the name of their setting, ``model`` or ``task``;
    ``vocabulary`` the known characters of a text, where they are not its own.
    """
    check_named(settings)
    found = dict(loaded or {})
    for name in ("task", "model"):
        value = getattr(settings, name)
        if name not in found and value is not None and is_factory(value):
            found[name] = load_factory(value)
    kept = {name: factories.record(factory.origin) for name, factory in found.items()}
    said = {name: str(factory.origin) for name, factory in found.items()}  # from wherever it is looked at
    named = {"task": settings.task} if settings.task is not None else settings._asdict()
    if "dataset" in named:
        named = {**named, "dataset": located(settings.dataset)}
    record = {**named, **said, FACTORIES: kept}
    if settings.task is not None:
        if "task" not in found:
            raise ValueError(f"`task` must be FILE.py:factory, got {settings.task!r}.")
        task: Task = call_factory(found["task"], Task, "a hessabs.training.Task")
        return task._replace(settings=record)
    dataset = load(
        settings.dataset,
        data_dir=settings.data_dir,
        train_split=settings.train_split,
        image_size=settings.image_size,
        resize=settings.resize,
        sequence_length=settings.sequence_length,
        vocabulary=vocabulary if is_text(settings.dataset) else None,
    )
    if dataset.facts:
        record |= {"text": dataset.facts, "sequence_length": settings.sequence_length or LENGTH}
    dataset = check_examples(dataset)  # here too: what is held out is in no later check
    train, held_out = hold_out(dataset.train, settings.validation_examples)
    dataset = dataset._replace(train=train)
    options: dict[str, Any] = {
        "name": settings.dataset,
        "validation": held_out if settings.validation_examples else None,
        "augmentation": settings.augment,
        "num_workers": settings.data_workers,
        "settings": record,
    }
    if "model" in found:
        with factories.named_in_errors(found["model"]):
            return _of_factory(found["model"], dataset, options)
    return linen(models.create(settings.model, dataset.num_classes), dataset, **options)


def _of_factory(factory: Factory, dataset: Dataset, options: dict[str, Any]) -> Task:
    """Make a task of the network that a factory returns: Linen, NNX or Equinox."""
    parameters = inspect.signature(factory.function).parameters
    kinds = "a Linen, NNX or Equinox module"

    def make(**drawn: Any) -> Any:
        return call_factory(factory, _is_module, kinds, num_classes=dataset.num_classes, **drawn)

    if "rngs" in parameters:
        return nnx(lambda rngs: make(rngs=rngs), dataset, **options)
    if "key" in parameters:
        return equinox(lambda key: make(key=key), dataset, **options)
    module = make()
    if isinstance(module, linen_modules.Module):
        return linen(module, dataset, **options)
    if has_class(module, "Module", "flax.nnx"):
        return nnx(lambda rngs: make(), dataset, **options)
    return equinox(lambda key: make(), dataset, **options)


def _is_module(made: Any) -> bool:
    if isinstance(made, linen_modules.Module) or has_class(made, "Module", "flax.nnx"):
        return True
    return has_class(made[0] if isinstance(made, tuple) and made else made, "Module", "equinox")


def recorded_task(
    workdir: pathlib.Path, record: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[Task, list[str]]:
    """Make the task of a run again, from what its folder recorded and what was named now.

    A factory that the folder recorded is run without being named only if it lies outside the folder and is
    unchanged: a folder is data, and one that came from somebody else must not run code.

    Args:
      workdir: The folder of the run.
      record: What its ``config.json`` holds.
      given: Settings that were named now, by the fields of ``TaskSettings``; they replace the recorded ones.

    Returns:
      The task, and lines that say which named factories differ from the recorded ones.
    """
    config = record.get("config", {})
    recorded = {name: config[name] for name in TaskSettings._fields if name in config}
    kept = config.get(FACTORIES) if isinstance(config.get(FACTORIES), Mapping) else None
    named = {name: value for name, value in given.items() if value is not None}
    if kept is None and "task" not in named:
        raise ValueError(
            f"The task of the run in {workdir} was made in Python: pass --task=FILE.py:factory, or look at it "
            "in Python with that task."
        )
    settings = TaskSettings(**(named if "task" in named else {**recorded, **named}))
    fields.check(settings)
    loaded: dict[str, Factory] = {}
    lines: list[str] = []
    for name in ("task", "model"):
        value = getattr(settings, name)
        if value is None or (name == "model" and settings.task is not None) or not is_factory(value):
            continue
        if name in named:
            loaded[name] = load_factory(value)
            line = factories.changed(loaded[name].origin, (kept or {}).get(name, {}), f"--{name}")
            lines += [line] if line and kept and name in kept else []
        else:
            loaded[name] = factories.trusted((kept or {}).get(name, {}), workdir, f"--{name}")
    text = _recorded_text(workdir, config)
    task = make_named(settings, loaded, text.get("vocabulary"))
    now = task.settings.get("text")
    if now and text and now["sha256"] != text["sha256"] and "dataset" not in named:
        lines.append(
            f"{describe(task.name, now)} It is not the text of the run, SHA-256 {text['sha256'][:16]}"
            f"{' of Python ' + str(text['python']) if 'python' in text else ''}, whose characters are known."
        )
    return task, lines


def _recorded_text(workdir: pathlib.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text", {})
    fits = isinstance(text, Mapping) and all(isinstance(text.get(k), str) for k in ("sha256", "vocabulary"))
    if text and not fits:
        raise ValueError(f"The record of the text of the run in {workdir} is damaged: train it again.")
    return text
