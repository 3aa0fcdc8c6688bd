"""From a config to everything a loop needs; every complaint about the input comes from here."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from hessabs import attacks, models
from hessabs.batch_size import Controller, methods
from hessabs.data import Column, Dataset, Gather, check_images, epoch_order, eval_batches, hold_out, load
from hessabs.training import config as config_lib
from hessabs.training.config import Config
from hessabs.training.devices import parallel, rows
from hessabs.training.devices.mesh import make_mesh, num_devices, own_rows
from hessabs.training.devices.resident import make_gather
from hessabs.training.evaluate import Accuracy, Measure, make_accuracy, make_measure
from hessabs.training.machine import dealt
from hessabs.training.robust import Objective, make_objective
from hessabs.training.state import TrainState, init_state
from hessabs.training.step import StepFunctions, jit_each, make_step_functions
from hessabs.training.track import Track, last_layer, make_track, parse
from hessabs.transforms import scale_by_batch_size

_HESSIAN_DRAW = 2**31 - 1  # the "epoch" whose order draws the images of the eigenvalue measurements
_EVAL_BATCH = 1000
_FINAL_HESSIAN_ITERS = 30


class Run(NamedTuple):
    """A run that is ready to go."""

    config: Config  # resolved
    dataset: Dataset
    controller: Controller
    objective: Objective
    functions: StepFunctions
    state: TrainState
    accuracy: Accuracy  # on the test set
    final: dict[str, Accuracy]  # what is evaluated at the end, by its name in the summary
    measure: Measure  # the top eigenvalue during training
    measure_last_layer: Measure  # that of the last layer's block, for a rule that asks for it
    measure_final: Measure  # the same on the same images, with more products if it needs them
    track: Track  # what is measured at the end of every epoch
    gather: Gather | None = None  # of a training set that lies on the device
    mesh: Mesh | None = None  # of several devices
    dealt: bool = True  # whether the examples of a batch are dealt out to the devices, see `mesh.own_rows`

    @property
    def devices(self) -> int:
        """Number of devices."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def own_rows(self) -> Callable[[int], np.ndarray] | None:
        """Which examples of a batch this process reads, as ``hessabs.data.reader`` takes it."""
        return None if self.mesh is None else functools.partial(own_rows, size=self.mesh.size, dealt=self.dealt)

    def view(self, state: TrainState) -> TrainState:
        """Return a state as one device would have it: what measurements and accuracy read."""
        return state if self.mesh is None else rows.collect(state)

    @property
    def micro_batch_size(self) -> int:
        """Examples that a device handles at once."""
        return self.config.micro_batch_size or self.config.batch_size

    @property
    def epoch_examples(self) -> int:
        """Examples trained on in an epoch."""
        return epoch_examples(self.config, len(self.dataset.train["label"]))

    @property
    def epoch_micro_batches(self) -> int:
        """Micro-batches of an epoch."""
        return -(-self.epoch_examples // self.micro_batch_size)

    def largest_next(self, batch_size: int) -> int:
        """Bound the batch size that the rule may decide for after this one."""
        growth = self.config.growth_factor or 1 / self.config.lr_decay
        return min(max(batch_size, self.config.max_batch_size or 0), math.ceil(batch_size * growth))


def set_up(config: Config, dataset: Dataset | None = None) -> Run:
    """Load the data and build the network, the rule and the jitted functions of a run.

    Args:
      config: The settings; None fields are decided here.
      dataset: Images of your own; ``config.dataset`` is then only their name. None loads that data set.

    Returns:
      A ``Run``. Nothing has been written or compiled for training yet.

    Raises:
      ValueError: If a setting is out of its range or does not fit the data, in one line; its subclass
        ``hessabs.data.DatasetNotFoundError`` if the data is not on disk.
    """
    config_lib.check(config)
    parse(config.track)
    if dataset is None:
        dataset = load(
            config.dataset,
            data_dir=config.data_dir,
            train_split=config.train_split,
            image_size=config.image_size,
        )
    check_images(dataset)
    dataset, held_out = hold_out(dataset, config.validation_examples)
    num_examples = len(dataset.train["label"])
    config = config_lib.resolve(config, num_examples)
    model = models.create(config.model, dataset.num_classes)
    params, model_state = init_model(model, config, dataset)
    optimizer = make_optimizer(config)
    controller = make_controller(config, epoch_examples(config, num_examples))
    image_shape = (config.micro_batch_size or config.batch_size, *dataset.train["image"].shape[1:])
    devices = num_devices(config.mesh, config.devices)
    mesh = make_mesh(devices)
    # Whether the examples of a micro-batch do not influence each other, and nobody asks for its gradient.
    is_dealt = not model_state and config.robust != "sam" and config.method not in config_lib.GRADIENT_METHODS
    objective = make_objective(
        dealt(config, devices) if is_dealt and mesh is not None else config,
        # A compiled loop of a network without convolutions is fast on every backend, and several devices have
        # no other.
        driven_by_python=None if mesh is None and _convolves(model, dataset) else False,
    )
    compiled: Callable[[StepFunctions], StepFunctions] = jit_each
    if mesh is not None:
        rows.check_model_state(model_state, config.model)
        compiled = functools.partial(
            parallel.on_mesh,
            mesh=mesh,
            dealt=is_dealt,
            micro_batch_size=image_shape[0],
            passes=objective.passes,
        )
    order = epoch_order(config.seed, _HESSIAN_DRAW, num_examples)[: config.hessian_batch_size]
    hessian_batch = {
        **{name: array[order] for name, array in dataset.train.items()},
        "weight": np.ones(len(order), np.float32),
    }
    measure_final = make_measure(
        model,
        hessian_batch,
        max_iters=max(config.hessian_iters, _FINAL_HESSIAN_ITERS),
        rtol=config.hessian_rtol,
        mesh=mesh,
    )
    measure = make_measure(
        model, hessian_batch, max_iters=config.hessian_iters, rtol=config.hessian_rtol, mesh=mesh
    )
    test = _whole(dataset.test, devices)
    state = init_state(params, model_state, optimizer, objective.init(image_shape))
    return Run(
        config=config,
        dataset=dataset,
        controller=controller,
        objective=objective,
        functions=make_step_functions(
            model,
            optimizer,
            objective,
            seed=config.seed,
            gradient_statistics=controller.measures == "gradient",
            compiled=compiled,
        ),
        state=state if mesh is None else rows.spread(state, mesh),
        accuracy=make_accuracy(model, test, mesh=mesh),
        final=_final_accuracies(model, config, test, held_out, mesh),
        measure=measure,
        measure_last_layer=lambda state, v0: measure(state, v0, last_layer(state.params, dataset.num_classes)),
        measure_final=measure_final,
        track=make_track(parse(config.track), model, dataset, hessian_batch, measure_final),
        gather=None if isinstance(dataset.train["image"], Column) else make_gather(dataset.train, mesh),
        mesh=mesh,
        dealt=is_dealt,
    )


def _convolves(model: nn.Module, dataset: Dataset) -> bool:
    image = jnp.zeros((1, *dataset.train["image"].shape[1:]), jnp.float32)
    program = jax.make_jaxpr(lambda key: model.init(key, image, train=False))(jax.random.key(0))
    return "conv_general_dilated" in str(program)


def _whole(split: dict[str, np.ndarray], multiple: int) -> list[dict[str, np.ndarray]]:
    size = min(_EVAL_BATCH, len(split["label"]))
    return list(eval_batches(split, -(-size // multiple) * multiple))


def _final_accuracies(
    model: nn.Module, config: Config, test: list[Any], held_out: dict[str, np.ndarray], mesh: Mesh | None
) -> dict[str, Accuracy]:
    accuracy = functools.partial(make_accuracy, model, mesh=mesh)
    fgsm = attacks.fgsm(config.fgsm_epsilon)
    result = {"fgsm_accuracy": accuracy(test, fgsm)}
    sets = {"": test}
    if config.validation_examples:
        validation = _whole(held_out, 1 if mesh is None else mesh.size)
        result["validation_accuracy"] = accuracy(validation)
        result["validation_fgsm_accuracy"] = accuracy(validation, fgsm)
        sets["validation_"] = validation
    if config.pgd_steps:
        pgd, key = attacks.pgd(config.fgsm_epsilon, steps=config.pgd_steps), jax.random.key(0)
        for prefix, batches in sets.items():
            result[f"{prefix}pgd_accuracy"] = accuracy(batches, pgd, key)
    return result


def epoch_examples(config: Config, num_examples: int) -> int:
    """Count the examples that a run trains on in an epoch.

    Args:
      config: Resolved settings.
      num_examples: Examples in the training set.

    Returns:
      All of them with ``keep_remainder``, else those of whole micro-batches.
    """
    size = config.micro_batch_size or config.batch_size
    return num_examples if config.keep_remainder else num_examples // size * size


def make_controller(config: Config, per_epoch: int) -> Controller:
    """Make the batch-size rule of a config, its epochs turned into examples.

    Args:
      config: Resolved settings.
      per_epoch: Examples of an epoch.

    Returns:
      A ``Controller``.
    """
    shared = {name: getattr(config, name) for name in methods.Settings._fields if name in config._fields}
    return methods.make_controller(methods.Settings(**shared, num_examples=per_epoch, remainder="keep"))


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Make SGD with momentum whose step the batch-size rule scales.

    Args:
      config: The settings.

    Returns:
      An optax chain; its update takes ``lr_scale``.
    """
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    momentum = [optax.trace(config.momentum)] if config.momentum else []
    return optax.chain(*decay, *momentum, scale_by_batch_size(), optax.scale_by_learning_rate(config.lr))


def init_model(model: nn.Module, config: Config, dataset: Dataset) -> tuple[Any, Any]:
    """Draw the initial params of a network for the images of a data set.

    Args:
      model: A flax module called as ``(x, train)``.
      config: The settings; its seed draws the params.
      dataset: The images.

    Returns:
      (params, the other collections).

    Raises:
      ValueError: If the network does not take such images, showing both.
    """
    image_shape = dataset.train["image"].shape[1:]
    image = jnp.zeros((1, *image_shape), jnp.float32)

    def init(key: jax.Array) -> Any:
        return model.init(key, image, train=False)

    key = jax.random.key(config.seed)
    try:
        jax.eval_shape(init, key)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`model` {config.model} does not take the images of `dataset` {config.dataset}, "
            f"shape {tuple(image_shape)} (height, width, channels): {reason}"
        ) from error
    model_state = dict(jax.jit(init)(key))
    return model_state.pop("params"), model_state
