"""One attack on one chunk of the test images, found again where it was finished before."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

import hessabs
from hessabs import trees
from hessabs.attacks import losses, misleading, outcomes
from hessabs.attacks.outcomes import CLEAN
from hessabs.training.analysis import finished
from hessabs.training.analysis.attack_menu import is_minimal, make
from hessabs.training.analysis.attack_pictures import Shown
from hessabs.training.analysis.finished import Arrays
from hessabs.training.analysis.trained import Trained
from hessabs.training.losses import evaluation_logits, scale_images
from hessabs.typing import Params

_FORMAT = 2  # of the arrays that are kept of a chunk
_SHOWN = 6  # images of each chunk that are kept for the sheet


class Network(NamedTuple):
    """A trained network under attack."""

    loss_fn: Partial  # carries its logits
    params: Params
    digest: str


class Task(NamedTuple):
    """All that the chunks share."""

    folder: pathlib.Path  # of what is finished
    network: Network  # that judges
    source: Network  # that the examples are made on
    options: Any


def network(trained: Trained) -> Network:
    """Describe the network of a run.

    Args:
      trained: The run.

    Returns:
      A ``Network``.
    """
    loss_fn = losses.cross_entropy(evaluation_logits(trained.model, trained.model_state))
    digest = finished.identify(
        model=trained.config.model, arrays=finished.digest((trained.params, trained.model_state))
    )
    return Network(trees.as_partial(loss_fn), trained.params, digest)


def chunks(test: dict[str, np.ndarray], options: Any) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Cut the test set into batches.

    Args:
      test: image, label.
      options: How many images, and how many at once.

    Returns:
      Pairs of the number of the first image and a batch.
    """
    number = min(options.num_examples or len(test["label"]), len(test["label"]))
    return [
        (i, {name: test[name][i : min(i + options.batch_size, number)] for name in ("image", "label")})
        for i in range(0, number, options.batch_size)
    ]


def clean(task: Task, start: int, batch: dict[str, np.ndarray]) -> Arrays:
    """Look at the clean images of a chunk.

    Args:
      task: What the chunks share.
      start: Number of the first image.
      batch: image uint8 or float32 (n, height, width, channels), label (n,).

    Returns:
      Arrays right, lengths and zero_gradient (n,), random (1,).
    """
    loss_fn, params, digest = task.network
    norm = task.options.norm
    images = finished.digest(batch)
    identity = finished.identify(what=CLEAN, network=digest, norm=norm, images=images, format=_FORMAT)
    known = finished.find(task.folder, f"{CLEAN}-{start}", identity)
    if known is not None:
        return known
    scaled = scale_images(batch)
    arrays = {
        **outcomes.look(loss_fn, params, scaled, "image", norm)._asdict(),
        **misleading.look(loss_fn, params, scaled, "image")._asdict(),
    }
    finished.keep(task.folder, f"{CLEAN}-{start}", identity, arrays)
    return arrays


def attacked(task: Task, name: str, epsilon: float, start: int, batch: dict[str, np.ndarray]) -> Arrays:
    """Attack a chunk, unless that has been done.

    Args:
      task: What the chunks share.
      name: Of the attack.
      epsilon: Its radius.
      start: Number of the first image.
      batch: image, label.

    Returns:
      The arrays of an ``Outcome``, seconds and seconds_compile (1,); of the first images that fell, places,
      images, and the predicted labels before and after.
    """
    options, (loss_fn, params, digest) = task.options, task.network
    identity = finished.identify(
        what=name,
        epsilon=None if is_minimal(name) else epsilon,  # then one result serves every epsilon
        network=digest,
        source=task.source.digest,
        images=finished.digest(batch),
        start=start,
        version=hessabs.__version__,
        format=_FORMAT,
        **{field: getattr(options, field) for field in ("norm", "steps", "restarts", "queries", "seed")},
    )
    label = f"{name}-{start}" if is_minimal(name) else f"{name}-{epsilon:g}-{start}"
    known = finished.find(task.folder, label, identity)
    if known is not None:
        return known
    outcome, attacked = outcomes.run(
        make(name, epsilon, options),
        loss_fn,
        params,
        scale_images(batch),
        jax.random.fold_in(jax.random.key(options.seed), start),
        norm=options.norm,
        bounds=(0.0, 1.0),
        inputs_key="image",
        source=(task.source.loss_fn, task.source.params),
    )
    images = np.asarray(attacked["image"])
    logits_fn, _ = losses.parts(loss_fn)
    before, after = (np.argmax(logits_fn(params, x), axis=-1) for x in (scale_images(batch)["image"], images))
    felled = np.flatnonzero((before == batch["label"]) & ~outcome.stands)[:_SHOWN]
    arrays = {
        **{field: np.atleast_1d(value) for field, value in outcome._asdict().items()},
        "places": felled,
        "images": images[felled],
        "before": before[felled],
        "after": after[felled],
    }
    finished.keep(task.folder, label, identity, arrays)
    return arrays


def join(parts: Sequence[Arrays]) -> Arrays:
    """Put the arrays of chunks behind each other.

    Args:
      parts: A dict of arrays for each chunk.

    Returns:
      One dict of arrays.
    """
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def shown(title: str, batch: dict[str, np.ndarray], part: Arrays, epsilon: float) -> Shown | None:
    """Choose the images of a sheet.

    Args:
      title: Of the sheet.
      batch: The chunk.
      part: What was done to it.
      epsilon: Only perturbations up to this size.

    Returns:
      A ``Shown``, or None if nothing fell.
    """
    within = part["least"][part["places"]] <= epsilon
    if not within.any():
        return None
    clean = np.asarray(scale_images(batch)["image"])[part["places"][within]]
    return Shown(title, clean, part["images"][within], part["before"][within], part["after"][within])
