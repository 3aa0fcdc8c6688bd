"""An optimiser whose hyperparameters follow the batch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hessabs.batch_size import Coupling
from hessabs.checks import require
from hessabs.transforms.laws import Form, Law, is_decay, laws_of
from hessabs.transforms.scaling import scaled
from hessabs.typing import Params

_OTHER_COUNTS = (optax.contrib.ReduceLROnPlateauState,)  # of values that are averaged
# Optax sums gradients here, with the gain 1 / (1 - decay); elsewhere its moving averages are means.
_SUMS: dict[Any, str] = {optax.sgd: "momentum", optax.trace: "decay"}


class ByExamplesState(NamedTuple):
    """State of ``by_examples``."""

    whole: jax.Array  # shape (), int32: batches of the reference size seen, their whole part
    part: jax.Array  # shape (), float32: and the rest, in [0, 1)
    inner_state: Any  # of optax.inject_hyperparams: `hyperparams` are those of the last update


def by_examples(
    factory: Callable[..., optax.GradientTransformation],
    *,
    batch_size: int,
    lr_coupling: Coupling | None = None,
    form: Form = "half_life",
    follow: Mapping[str, Law | None] | None = None,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Make the hyperparameters of an optimiser follow the batch, so that its time goes by examples.

    Momentum, the betas of Adam, the decay of an average and weight decay have time constants in updates, which
    last k times too long where the batch grows by k. Here each update has the values that ``follow_batch``
    gives for its batch; none compiles anything again. Further:

    * a bias correction (a field ``count`` in the state inside) counts updates of the present size, not calls:
      else a change of beta would change the size of the step until the count is large; exact for half-lives,
      to first order with ``form="sde"``;
    * the momentum of ``optax.sgd`` and ``optax.trace`` is a sum, and the smaller its decay the smaller the sum:
      the incoming gradient is multiplied by ``(1 - momentum**k) / (1 - momentum)``, so that the step of a
      constant gradient is that of the learning rate alone;
    * a schedule among the hyperparameters is read at the batches of the size ``batch_size`` that the examples
      so far would have filled.

    ``update`` takes the extra argument ``num_examples``, which ``hessabs.accumulate`` passes, or
    ``batch_size``: the examples of this update, which may be traced (below 1 they act as 1). The learning rate
    is to follow the batch in one place: ``with_coupling(rule, "none")`` for a rule in the same chain.

    Args:
      factory: Makes the transformation, ``optax.adamw`` say. Hyperparameters are known by their names in optax.
      batch_size: The batch that the hyperparameters were chosen for, at least 1 example.
      lr_coupling: How the learning rate follows the batch, here or where it stands else (weight decay depends
        on it): ``"linear"``, ``"sqrt"`` or ``"none"``. None is linear for ``optax.sgd`` and ``optax.trace``,
        and the square root for all others.
      form: ``"half_life"``, or ``"sde"`` for the square-root scaling rule of Adam with its epsilon.
      follow: Laws ``law(value, growth) -> value`` for hyperparameters of other names, or other laws; None for
        one that is to stay.

    Returns:
      A function that takes the arguments of ``factory``, schedules too, and returns a
      ``GradientTransformationExtraArgs``. ``optax.tree.get(state, "b2")`` reads the value of the last update.

    Raises:
      ValueError: If ``batch_size`` is below 1, coupling or form unknown; from the function, if nothing is there
        to follow, a decay lies outside [0, 1), or a ``momentum`` is neither that of ``optax.sgd`` nor in
        ``follow``; from ``update``, if the examples are not given.

    Example:
      >>> tx = by_examples(optax.adamw, batch_size=256)(1e-3, b2=0.99, weight_decay=0.1)
      >>> w = jnp.ones(())
      >>> _, state = tx.update(w, tx.init(w), w, num_examples=1024)
      >>> {name: round(float(value), 4) for name, value in state.inner_state.hyperparams.items()}
      {'b1': 0.6561, 'b2': 0.9606, 'learning_rate': 0.002, 'weight_decay': 0.2}

    References:
      See ``follow_batch``, and Smith et al. (2018), arXiv:1711.00489, for the gain of momentum.
    """
    require("be at least 1", batch_size=batch_size)
    reference = batch_size
    plain = getattr(factory, "func", factory)  # of a functools.partial
    summed = _SUMS.get(plain)
    coupling = lr_coupling if lr_coupling is not None else ("linear" if summed else "sqrt")
    known, own = laws_of(coupling, form), dict(follow or {})
    if summed:
        known[summed] = known["decay"]
    laws = {name: law for name, law in {**known, **own}.items() if law is not None}

    def make(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        bound = inspect.signature(factory).bind(*args, **kwargs)
        bound.apply_defaults()
        unknown = [name for name in own if name not in bound.arguments]
        if unknown:
            raise ValueError(
                f"`follow` names {unknown[0]!r}, but there are the arguments {', '.join(bound.arguments)}."
            )
        # What is 0 stays 0, and a factory may leave out what it is not given.
        values = {
            name: value
            for name, value in bound.arguments.items()
            if name in laws and _is_number_or_schedule(value) and (name in own or not _is_zero(value))
        }
        _check(factory, bound.arguments, values, {**known, **own})
        start = {name: jnp.asarray(_at(value, 0.0), jnp.float32) for name, value in values.items()}
        static = [name for name in bound.arguments if name not in values]
        injected = optax.inject_hyperparams(factory, static_args=static, hyperparam_dtype=jnp.float32)
        inner = injected(**{**bound.arguments, **start})

        def init(params: Params) -> ByExamplesState:
            zero = jnp.zeros((), jnp.float32)
            state = _with_counts(inner.init(params), zero, zero, params)
            return ByExamplesState(jnp.zeros((), jnp.int32), zero, state)

        def update(
            updates: optax.Updates,
            state: ByExamplesState,
            params: Params | None = None,
            *,
            num_examples: Any = None,
            batch_size: Any = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, ByExamplesState]:
            growth = _growth(batch_size if num_examples is None else num_examples, reference)
            seen = state.whole + state.part
            now = {name: _at(value, seen) for name, value in values.items()}
            grown = {name: jnp.asarray(laws[name](value, growth), jnp.float32) for name, value in now.items()}
            given = updates
            if summed in values:
                gain = (1 - grown[summed]) / (1 - now[summed])
                given = scaled(updates, gain)
            inner_state = state.inner_state._replace(hyperparams=grown)
            inner_state = _with_counts(inner_state, seen / growth, seen, updates)
            extra = {"num_examples": num_examples, "batch_size": batch_size, **extra_args}
            extra = {name: value for name, value in extra.items() if value is not None}
            new, inner_state = inner.update(given, inner_state, params, **extra)
            part = state.part + growth
            return jax.tree.map(lambda n, u: n.astype(u.dtype), new, updates), ByExamplesState(
                # It stays at the largest, where schedules and bias corrections have long ended.
                state.whole + jnp.minimum(jnp.floor(part).astype(jnp.int32), 2**31 - 1 - state.whole),
                part - jnp.floor(part),
                jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), inner_state, state.inner_state),
            )

        return optax.GradientTransformationExtraArgs(init, update)

    return make


def _growth(num_examples: Any, reference: int) -> jax.Array:
    if num_examples is None:
        raise ValueError(
            "by_examples needs the examples of this update: call update(gradient, state, params, "
            "num_examples=...), or put it into accumulate(..., micro_batch_size=...)."
        )
    return jnp.maximum(jnp.asarray(num_examples, jnp.float32), 1) / reference


def _is_number_or_schedule(value: Any) -> bool:
    number = int | float | np.number | np.ndarray | jax.Array
    return callable(value) or (isinstance(value, number) and not isinstance(value, bool))


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _at(value: Any, step: Any) -> Any:
    return value(step) if callable(value) else value


def _check(
    factory: Any, arguments: Mapping[str, Any], values: Mapping[str, Any], laws: Mapping[str, Any]
) -> None:
    name = getattr(factory, "__name__", repr(factory))
    momentum = arguments.get("momentum")
    if "momentum" not in laws and _is_number_or_schedule(momentum) and not _is_zero(momentum):
        raise ValueError(
            f"by_examples does not know whether the `momentum` of {name} is a sum or a mean: put "
            "by_examples(optax.ema) or by_examples(optax.trace) in a chain, or say how it goes with `follow`."
        )
    if not values:
        raise ValueError(
            f"by_examples finds no number in the arguments of {name} that follows the batch: say which do with "
            "`follow`."
        )
    for key, value in values.items():
        if (is_decay(key) or key == "momentum") and isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError(f"`{key}` must lie in [0, 1), got {value}.")


def _with_counts(state: Any, updates: jax.Array, batches: jax.Array, like: Params) -> Any:
    """Set the counts in the state of the transformation inside: updates, and batches for its schedules."""
    of_params = _kinds(like)  # params may have a field of that name

    def counts(node: Any) -> bool:
        named = isinstance(node, tuple) and "count" in getattr(node, "_fields", ())
        return named and type(node) not in of_params and not isinstance(node, _OTHER_COUNTS)

    def counted(node: Any) -> Any:
        if not counts(node):
            return node
        count = batches if isinstance(node, optax.ScaleByScheduleState) else updates
        fields = {name: jax.tree.map(counted, value, is_leaf=counts) for name, value in node._asdict().items()}
        return node._replace(**{**fields, "count": count})

    return state._replace(inner_state=jax.tree.map(counted, state.inner_state, is_leaf=counts))


def _kinds(tree: Any) -> set[type]:
    found = set[type]()

    def visit(node: Any) -> bool:
        found.add(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=visit)
    return found
