"""Optimisers by name or from a file of the user, and how they follow a batch that grows.

The learning rate of every update is ``lr`` times the ``lr_scale`` of rule and schedule. The loop multiplies the
updates by it, so a chain here has the plain rate; one that reads the extra argument ``lr_scale`` itself, as
``schedule_free`` does, is left as it is.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from hessabs import trees
from hessabs.batch_size.rule import Coupling
from hessabs.checks import refuse_unread, require
from hessabs.curvature.layers import output_axes
from hessabs.training import factories, fields
from hessabs.training.factories import call_factory, load_factory
from hessabs.training.muon import muon
from hessabs.transforms import by_examples, guarded_learning_rate
from hessabs.typing import Params

Name = Literal["sgd", "nesterov", "adamw", "lion", "muon", "lamb", "lars", "schedule_free", "prodigy"]

LEARNING_RATE = "learning rate"

_SGD = ("sgd", "nesterov", "lars")  # the kind whose step grows with its gradient
_RATES = {
    **{"sgd": 0.1, "nesterov": 0.1, "lars": 1.0, "schedule_free": 2.5e-3},
    **{"adamw": 1e-3, "lion": 1e-4, "muon": 1e-3, "lamb": 3e-3, "prodigy": 1.0},
}
_FOLLOWING = tuple(name for name in _RATES if name != "prodigy")  # whose parts are optax's own
READ_WITH: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "nesterov", "lars", "muon"),
    "b1": ("adamw", "lion", "muon", "lamb", "schedule_free", "prodigy"),
    "b2": ("adamw", "lion", "muon", "lamb", "schedule_free", "prodigy"),
    "weight_decay": tuple(_RATES),
    "decay_mask": _FOLLOWING,
    "schedule_free_base": ("schedule_free",),
    "follow_batch": _FOLLOWING,
    "guard": tuple(name for name in _FOLLOWING if name != "schedule_free"),
}
"""Settings that not every optimiser reads; one from a file reads none of them."""


class OptimizerSettings(NamedTuple):
    """What makes an optimiser; None where the default is its own."""

    optimizer: Annotated[
        Name | str,
        "the optimiser; a factory of a file is called as factory(), or as factory(lr=...) where it has such a "
        "parameter, and returns any optax transformation, whose rate follows the batch as Adam's does",
    ] = "sgd"
    lr: Annotated[
        float | None,
        "learning rate at the first batch size; default: sgd, nesterov 0.1; lars 1; adamw, muon 0.001; lamb "
        "0.003; lion 0.0001; schedule_free 0.0025, with base sgd 1; prodigy 1, a factor on what it finds",
        "be positive and finite",
    ] = None
    momentum: Annotated[
        float | None,
        "momentum of sgd, nesterov, lars and muon, in [0, 1); default: 0.9, muon 0.95",
        "lie in [0, 1)",
    ] = None
    b1: Annotated[
        float | None,
        "decay of the mean of gradients (adamw, lion, lamb, muon where it uses AdamW), in [0, 1); share of the "
        "average in the params (schedule_free), in (0, 1); default: 0.9",
        "lie in [0, 1)",
    ] = None
    b2: Annotated[
        float | None,
        "decay of the mean of squares (lion: of gradients), in [0, 1); default: 0.99, which suits batches that "
        "grow better than optax's 0.999, which prodigy has",
        "lie in [0, 1)",
    ] = None
    weight_decay: Annotated[
        float,
        "sgd, nesterov, lars: l2 penalty, a part of the gradient; others: decoupled, the params shrink by this "
        "times the learning rate in an update",
        "be at least 0 and finite",
    ] = 0.0
    decay_mask: Annotated[
        Literal["all", "matrices"] | None,
        "params that weight decay is for: all, or all but biases, norms and the like; default: sgd, nesterov "
        "all, others matrices",
    ] = None
    clip: Annotated[
        float | None,
        "largest global norm of a gradient; a larger one is scaled; default: none",
        "be positive and finite",
    ] = None
    schedule_free_base: Annotated[
        Literal["adamw", "sgd"], "what schedule_free averages the steps of, without momentum"
    ] = "adamw"
    follow_batch: Annotated[
        Literal["none", "half_life", "sde"] | None,
        "how momentum, betas and weight decay follow a batch that grows: not; so that they reach back as many "
        "examples as before; to first order (the SDE rule of Adam), its epsilon too; default: sgd, nesterov, "
        "lars none (as in the paper), others half_life",
    ] = None
    guard: Annotated[
        float | None,
        "lower the learning rate where rate times curvature over slope, along the optimiser's own step on its "
        "own batch, is above this: at 2 steps do not raise it on average, to second order, 1 is more "
        "careful; takes two more gradients of a micro-batch in every update; default: none",
        "be positive and finite",
    ] = None


class Optimizer(NamedTuple):
    """An optimiser as the loop uses it."""

    tx: optax.GradientTransformationExtraArgs  # extra arguments: lr_scale, num_examples
    coupling: Coupling  # how its learning rate follows the batch by default
    lr: float  # at the first batch size; 1.0 of a file's that does not say
    evaluation_params: Callable[[Any, Params], Params]  # (opt_state, params) -> what is evaluated and saved
    name: str = "the optimiser"  # in messages; of a file's, where it is
    rate_name: str = LEARNING_RATE  # what `lr` is: of a chain of one's own the factor on its rate
    decay_coupling: Coupling | None = None  # that its weight decay counts on, where that follows the batch


def check_optimizer(settings: OptimizerSettings, given: Collection[str] = ()) -> None:
    """Check the settings of an optimiser: none is out of its range, or given and not read by this one.

    ``given``: settings that were given, with their default perhaps; one that is not its default was given, too.
    """
    fields.check(settings)
    refuse_unread({*given, *fields.changed(settings)}, READ_WITH, optimizer=settings.optimizer)
    if settings.optimizer == "schedule_free" and settings.b1 is not None:
        require("lie in (0, 1)", b1=settings.b1)


def resolve_optimizer(settings: OptimizerSettings) -> OptimizerSettings:
    """Check the settings of an optimiser by name; those that are None, but for ``clip``, get its defaults."""
    check_optimizer(settings)
    name, plain_sgd = settings.optimizer, settings.optimizer in ("sgd", "nesterov")
    own: dict[str, Any] = {
        "lr": 1.0 if settings.schedule_free_base == "sgd" else _RATES[name],
        "momentum": 0.95 if name == "muon" else 0.9,
        "b1": 0.9,
        "b2": 0.999 if name == "prodigy" else 0.99,
        "decay_mask": "all" if plain_sgd else "matrices",
        "follow_batch": "none" if name in _SGD else "half_life",
    }
    return settings._replace(**{key: value for key, value in own.items() if getattr(settings, key) is None})


def make_optimizer(
    settings: OptimizerSettings,
    *,
    batch_size: int,
    lr_coupling: Coupling | None = None,
    num_classes: int | None = None,
) -> Optimizer:
    """Make an optimiser.

    Args:
      settings: What it is.
      batch_size: The first batch, that the settings were chosen for.
      lr_coupling: How the learning rate follows the batch in this run, on which weight decay depends where it
        follows too; None for the optimiser's own.
      num_classes: Outputs of the network: muon leaves the layer that has so many to AdamW.

    Raises:
      ValueError: As ``check_optimizer``; if a file's factory does not make one.
    """
    clip = [] if settings.clip is None else [optax.clip_by_global_norm(settings.clip)]
    if fields.is_factory(settings.optimizer):
        check_optimizer(settings)
        return _of_file(settings, clip)
    own: Any = resolve_optimizer(settings)
    of_sgd = own.optimizer in _SGD or own.schedule_free_base == "sgd"
    coupling: Coupling = "linear" if of_sgd else "sqrt"
    if own.optimizer == "prodigy":
        options: Any = {"betas": (own.b1, own.b2), "weight_decay": own.weight_decay}
        tx = _with_rate_inside(lambda rate: optax.chain(*clip, contrib.prodigy(rate, **options)), own.lr)
        return Optimizer(tx, coupling, own.lr, evaluation_params)
    counted = lr_coupling or coupling
    steps = [*clip, *_steps(own, batch_size, counted, num_classes)]
    decay_coupling = counted if own.weight_decay and own.follow_batch != "none" else None

    def averaged(rate: Any) -> optax.GradientTransformationExtraArgs:
        return contrib.schedule_free(optax.chain(*steps, optax.scale_by_learning_rate(rate)), rate, b1=own.b1)

    if own.optimizer == "schedule_free":
        tx = _with_rate_inside(averaged, own.lr)
        return Optimizer(tx, coupling, own.lr, evaluation_params, decay_coupling=decay_coupling)
    guard = own.guard
    last = optax.scale_by_learning_rate(own.lr) if guard is None else guarded_learning_rate(own.lr, guard)
    tx = optax.with_extra_args_support(optax.chain(*steps, last))
    return Optimizer(tx, coupling, own.lr, evaluation_params, decay_coupling=decay_coupling)


def _steps(
    settings: OptimizerSettings, batch_size: int, coupling: Coupling, num_classes: int | None
) -> list[optax.GradientTransformation]:
    """What a gradient goes through before it is multiplied by minus the learning rate."""

    def following(factory: Callable[..., Any]) -> Callable[..., Any]:
        form: Any = settings.follow_batch
        if form == "none":
            return factory
        return by_examples(factory, batch_size=batch_size, lr_coupling=coupling, form=form)

    def muon_of(beta: float, adam_b1: float, adam_b2: float) -> optax.GradientTransformation:
        return muon(beta, adam_b1, adam_b2, num_classes=num_classes)

    name, momentum, betas = settings.optimizer, settings.momentum, (settings.b1, settings.b2)
    decay, trace = [], []
    if settings.weight_decay:
        mask = None if settings.decay_mask == "all" else matrices
        decay = [following(optax.add_decayed_weights)(settings.weight_decay, mask=mask)]
    if momentum:
        trace = [following(optax.trace)(momentum, nesterov=name == "nesterov")]
    match name:
        case "sgd" | "nesterov":
            return [*decay, *trace]
        case "lars":
            # Biases and norms have the plain rate, as in the networks that LARS is used for.
            return [*decay, optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), matrices), *trace]
        case "adamw":
            return [following(optax.scale_by_adam)(*betas), *decay]
        case "lamb":
            return [following(optax.scale_by_adam)(*betas, eps=1e-6), *decay, optax.scale_by_trust_ratio()]
        case "lion":
            return [following(optax.scale_by_lion)(*betas), *decay]
        case "muon":
            return [following(muon_of)(momentum, *betas), *decay]
    if settings.schedule_free_base == "sgd":
        return decay
    return [following(optax.scale_by_rms)(settings.b2, eps_in_sqrt=False, bias_correction=True), *decay]


def as_optimizer(
    optimizer: Optimizer | optax.GradientTransformation, *, lr: float = 1.0, coupling: Coupling = "sqrt"
) -> Optimizer:
    """Make an optimiser of any optax transformation; ``lr`` is what records show. An ``Optimizer`` stays."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        hint = ", or its `.gradient_transformation()`" if isinstance(optimizer, optax.MultiSteps) else ""
        raise ValueError(
            f"`optimizer` must be an optax transformation or what make_optimizer returns{hint}, got "
            f"{optimizer!r}."
        )
    tx, name = optax.with_extra_args_support(optimizer), "factor on the learning rate"
    return Optimizer(tx, coupling, lr, evaluation_params, rate_name=name)


def _with_rate_inside(
    tx: Callable[[Any], optax.GradientTransformationExtraArgs], lr: float
) -> optax.GradientTransformationExtraArgs:
    """Give every update its rate where what the optimiser remembers depends on it: no factor can come later."""

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        *,
        lr_scale: Any = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        dtype = getattr(state, "max_lr", jnp.zeros((), jnp.float32)).dtype
        new, after = tx(jnp.asarray(lr * lr_scale, dtype)).update(updates, state, params, **extra_args)
        return new, jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), after, state)

    return optax.GradientTransformationExtraArgs(tx(lr).init, update)


class _Key(NamedTuple):
    """A random key in the state of an optimiser, as the numbers that it is made of."""

    data: jax.Array
    implementation: trees.Static


def with_plain_keys(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Keep the random keys of a state as numbers, which alone can be saved and laid on devices."""

    def plain(state: Any) -> Any:
        def one(x: Any) -> Any:
            if not trees.is_key(x):
                return x
            return _Key(jax.random.key_data(x), trees.Static(jax.random.key_impl(x)))

        return jax.tree.map(one, state)

    def typed(state: Any) -> Any:
        def one(x: Any) -> Any:
            return jax.random.wrap_key_data(x.data, impl=x.implementation.value) if isinstance(x, _Key) else x

        return jax.tree.map(one, state, is_leaf=lambda x: isinstance(x, _Key))

    def update(
        updates: optax.Updates, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        new, after = tx.update(updates, typed(state), params, **extra_args)
        return new, plain(after)

    return optax.GradientTransformationExtraArgs(lambda params: plain(tx.init(params)), update)


def evaluation_params(opt_state: Any, params: Params) -> Params:
    """Return the params to evaluate: the average, where there is a ``schedule_free`` in the optimiser."""
    found = trees.nodes(opt_state, contrib.ScheduleFreeState)
    return contrib.schedule_free_eval_params(found[0], params) if found else params


def _of_file(settings: OptimizerSettings, clip: list[Any]) -> Optimizer:
    factory = load_factory(settings.optimizer)
    parameter = inspect.signature(factory.function).parameters.get("lr")
    if settings.lr is not None and parameter is None:
        raise ValueError(f"`lr` is not read by {factory.origin}, which has no such parameter: leave it out.")
    given = {} if settings.lr is None else {"lr": settings.lr}
    what = "an optax transformation, with an init and an update"
    made = call_factory(factory, (optax.GradientTransformation, Optimizer), what, **given)
    default = getattr(parameter, "default", None)
    lr = settings.lr if settings.lr is not None else default if isinstance(default, float) else None
    optimizer = as_optimizer(made, lr=1.0 if lr is None else lr)
    if lr is not None:
        optimizer = optimizer._replace(rate_name=LEARNING_RATE)
    tx = optax.with_extra_args_support(optax.chain(*clip, optimizer.tx))
    return optimizer._replace(tx=tx, name=factories.where(factory))


def matrices(params: Params) -> Any:
    """Say of each leaf whether it is the kernel of a layer, and no bias, norm or the like."""
    kernels = [axis is not None for axis in output_axes(params)]
    return jax.tree.unflatten(jax.tree.structure(params), kernels)
