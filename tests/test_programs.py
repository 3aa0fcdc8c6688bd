"""Programs die with the functions that they were compiled for, and serve all calls until then."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import hessabs
from hessabs import attacks, curvature, programs

pytestmark = pytest.mark.sampled

W, X = jnp.arange(1.0, 4.0), jnp.eye(3)
BATCH = {"image": jnp.full((2, 3), 0.5), "label": jnp.array([0, 1])}


def closure(size=1):
    captured = jnp.ones(size)
    return lambda w, x: jnp.mean((x @ w) ** 2) * captured[0]


def attacked(attack):
    logits = closure_of_logits()
    attack(attacks.losses.cross_entropy(logits), jnp.ones((3, 2)), BATCH, jax.random.key(0))
    return logits


def criterion():
    captured = jnp.ones(1)
    of_logits = lambda logits, labels, targets: captured * logits[:, 0]  # noqa: E731
    loss = attacks.losses.from_logits(lambda w, x: x @ w, of_logits)
    attacks.pgd(0.1, steps=2)(loss, jnp.ones((3, 2)), BATCH, jax.random.key(0))
    return of_logits


def evaluated():
    logits = closure_of_logits()
    loss = attacks.losses.cross_entropy(logits)
    attacks.evaluate(loss, 4 * jnp.eye(3, 2), BATCH, {"fgsm": attacks.fgsm}, [0.1])
    return logits


def optimizer():
    captured = optax.adam(1.0)
    attack = attacks.adam_pgd(0.1, optimizer=captured, steps=2)
    attack(attacks.losses.margin(lambda w, x: x @ w), jnp.ones((3, 2)), BATCH, jax.random.key(0))
    return captured.update


def closure_of_logits():
    captured = jnp.ones(3)
    return lambda w, x: (x * captured) @ w


def measured(solve, make=curvature.hessian):
    loss = closure()
    solve(make(loss, W, X))
    return loss


def of_landscape():
    loss = closure()
    curvature.landscape(loss, W, [X], [W], [np.zeros(1)])
    return loss


USES = {
    "hvp": lambda: measured(lambda _: None, lambda loss, w, x: hessabs.hvp(loss, w, x, w)),
    "operator": lambda: measured(lambda op: op(W)),
    "linearized": lambda: measured(lambda op: op(W), functools.partial(curvature.hessian, linearize=True)),
    "in parts": lambda: measured(
        lambda op: op(W), functools.partial(curvature.hessian, linearize="auto", memory_budget=1)
    ),
    "data set": lambda: measured(lambda op: op(W), lambda loss, w, x: curvature.dataset_hessian(loss, w, [x])),
    "empirical Fisher": lambda: measured(lambda op: op(W), curvature.empirical_fisher),
    "power_iteration": lambda: measured(lambda op: curvature.power_iteration(op, W, max_iters=3)),
    "power_iteration on a device": lambda: measured(
        lambda op: curvature.power_iteration(op, W, max_iters=3, loop="device")
    ),
    "deflated": lambda: measured(lambda op: curvature.deflated_power_iteration(op, jnp.stack([W, W]))),
    "eigsh": lambda: measured(lambda op: curvature.eigsh(op, W, 1)),
    "eigsh on a device": lambda: measured(lambda op: curvature.eigsh(op, W, 1, loop="device")),
    "trace": lambda: measured(lambda op: curvature.trace(op, W, jax.random.key(0), num_matvecs=3)),
    "spectral_density": lambda: measured(
        lambda op: curvature.spectral_density(op, W, jax.random.key(0), num_probes=1, num_iters=2)
    ),
    "landscape": of_landscape,
    "criterion": criterion,
    "evaluate": evaluated,
    "optimizer of an attack": optimizer,
    **{
        name: functools.partial(attacked, getattr(attacks, name)(*arguments))
        for name, arguments in {
            "fgsm": (0.1,),
            "pgd": (0.1,),
            "fhsm": (0.1,),
            "deepfool": (),
            "carlini_wagner": (),
            "square": (0.1,),
            "trust_region": (0.01,),
        }.items()
    },
}


# One of each kind of loop is among the fast tests.
SLOW = ("evaluate", "optimizer of an attack", "eigsh on a device", "deflated", "empirical Fisher", "fhsm")
SLOW += ("deepfool", "carlini_wagner", "square", "trust_region")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in USES])
def test_a_closure_dies_with_its_last_reference(name):
    # What a use leaves behind is looked for with a second closure: the first one may fill caches for ever.
    USES[name]()
    alive = weakref.ref(USES[name]())
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_many_closures_leave_no_memory_and_no_programs():
    def once():
        loss = closure(2**19)  # 2 MiB
        curvature.power_iteration(curvature.hessian(loss, W, X), W, max_iters=5)

    for _ in range(3):
        once()
    gc.collect()
    arrays, programs_before = _live_bytes(), _programs()
    for _ in range(10):
        once()
    gc.collect()
    assert _live_bytes() - arrays < 2**20
    assert _programs() == programs_before


def test_one_function_compiles_once():
    traces = []

    def loss(w, x):
        traces.append(1)
        return jnp.mean((x @ w) ** 2)

    for scale in (1.0, 2.0, 3.0):
        curvature.power_iteration(curvature.hessian(loss, scale * W, X), W, max_iters=5)
    first = len(traces)
    assert first <= 2
    for wrapped in (functools.partial(loss), functools.partial(loss)):
        curvature.power_iteration(curvature.hessian(wrapped, W, X), W, max_iters=5)
        curvature.power_iteration(curvature.hessian(wrapped, 2 * W, X), W, max_iters=5)
    assert len(traces) <= 3 * first  # each functools.partial is a function of its own


def test_a_bound_method_is_one_function():
    class Model:
        traces = 0

        def loss(self, w, x):
            self.traces += 1
            return jnp.mean((x @ w) ** 2)

    model = Model()
    for _ in range(3):
        np.testing.assert_allclose(curvature.hessian(model.loss, W, X)(W), 2 * W / 3, rtol=1e-6)
    assert model.traces == 1
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_an_eager_product_compiles_once():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))

    def loss(w, x):
        return jax.lax.scan(lambda c, row: (c + jax.checkpoint(jnp.sin)(row @ w) ** 2, None), 0.0, x)[0]

    want = jax.hessian(loss)(W, X) @ W
    hessabs.hvp(loss, W, X, W)
    compiled.clear()
    np.testing.assert_allclose(hessabs.hvp(loss, 1.0 * W, X, W), want, rtol=1e-5)
    assert not [name for name in compiled if "backend_compile" in name]


def test_static_structure_and_nested_functions_arrive():
    apply = programs.jit(lambda operator, x: operator(x))
    outer = Partial(lambda inner, scale, x: scale * inner(x), Partial(lambda shift, x: x + shift, 1.0), 2.0)
    assert apply(outer, 3.0) == 8.0
    assert apply(outer, 4.0) == 10.0
    assert apply.num_programs() == 1


def test_a_function_without_weak_references():
    class Slots:
        __slots__ = ()

        def __call__(self, x):
            return 2 * x

    apply = programs.jit(lambda operator, x: operator(x))
    assert apply(Partial(Slots()), 3.0) == 6.0


def _live_bytes():
    return sum(x.nbytes for x in jax.live_arrays())


def _programs():
    return sum(jitted.num_programs() for jitted in programs._JITTED)
