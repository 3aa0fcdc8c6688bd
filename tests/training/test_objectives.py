"""Robust objectives against closed forms of a linear network, worked out in NumPy and float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs.batch_size import absa, constant, with_adversarial
from hessabs.batch_size.methods import METHODS
from hessabs.data import Dataset
from hessabs.models import mlp
from hessabs.training import Durability, fit, tasks
from hessabs.training.assemble import assemble
from hessabs.training.loop import train
from hessabs.training.objectives import Objective, Share, attacked, free, make_inner, mixing, sam, trades
from hessabs.training.objectives.inner import ITERATED, ONE_STEP
from hessabs.training.optimizers import as_optimizer
from hessabs.training.run import prepare
from hessabs.training.step import init_state, jit_functions, make_functions
from hessabs.training.task import LossOutput, attack_loss
from tests.training.runs import again, bits

pytestmark = pytest.mark.sampled
RTOL, ATOL = 2e-5, 2e-6  # float32 against float64
N, PIXELS, LR, EPSILON = 6, 4, 0.5, 0.1
RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(PIXELS, 2)), RNG.normal(size=2)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Linear(nn.Module):
    """Two classes, so that the worst images within epsilon are known: a corner of the box."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Normed(nn.Module):
    """Batch norm on the pixels themselves, so that its statistics are those of the images."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(x)


def batch_of(batch):
    return {"image": batch["image"], "label": batch["label"]}


def batches(count, weight=None):
    """Micro-batches whose images stay in [0, 1] under epsilon."""
    rng = np.random.default_rng(1)
    return [
        {
            "image": rng.uniform(0.2, 0.8, (N, 2, 2, 1)).astype(np.float32),
            "label": rng.integers(0, 2, N).astype(np.int32),
            "weight": np.ones(N, np.float32) if weight is None else weight,
        }
        for _ in range(count)
    ]


class Step:
    """The functions of an update as these tests call them; the attack is ``driven`` outside, or compiled."""

    def __init__(self, objective, model=None, *, driven=False, seed=0):
        [batch] = batches(1)
        self.task = tasks.linen(model or Linear(), (batch_of(batch), batch_of(batch)))
        self.objective, self.driven = objective, driven
        self.optimizer = as_optimizer(optax.sgd(LR))
        functions, self.attack = make_functions(
            self.task, self.optimizer, objective, seed=seed, perturbs=not driven
        )
        self.functions = jit_functions(functions, N, one_by_one=True)

    def init(self):
        params, model_state = self.task.init(jax.random.key(0))
        dense = {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}
        task = self.task._replace(init=lambda key: ({**params, "Dense_0": dense}, model_state))
        memory = self.objective.init(self.task, batches(1)[0])
        return init_state(task, self.optimizer, jax.random.key(0), memory, average=False)

    def perturb(self, state, batch, fraction=1.0, number=0):
        if self.objective.perturb is None:
            return batch
        return self.attack(state, number, batch, fraction, Share(N))

    def update(self, state, batch, fraction=1.0):
        """An update of one micro-batch."""
        batch = self.perturb(state, batch, fraction) if self.driven else batch
        return self.functions.whole(state, batch, fraction, 1.0)

    def totals(self, state, parts, fraction=1.0):
        totals = self.functions.begin(state)
        for number, batch in enumerate(parts):
            batch = self.perturb(state, batch, fraction, number) if self.driven else batch
            totals = self.functions.add(state, totals, batch, fraction, number)
        return totals

    def accumulate(self, state, parts, fraction=1.0):
        """An update of several."""
        return self.functions.finish(state, self.totals(state, parts, fraction), 1.0)


@functools.cache
def step_of(make, *arguments, model=None):
    """The functions of an objective, compiled once for all tests of it."""
    return Step(make(*arguments), model and model())


def weights(state):
    dense = state.params["Dense_0"]
    return np.asarray(dense["kernel"], np.float64), np.asarray(dense["bias"], np.float64)


def flat(batch):
    return np.asarray(batch["image"], np.float64).reshape(N, -1)


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def gradient(kernel, bias, x, label, weight):
    """Of the mean cross-entropy: (for the kernel, for the bias, for x)."""
    residual = (softmax(x @ kernel + bias) - np.eye(2)[label]) * weight[:, None] / weight.sum()
    return x.T @ residual, residual.sum(axis=0), residual @ kernel.T


def corner(kernel, label):
    """Where the loss of each example rises fastest: the sign of the other class's weights less its own."""
    lead = np.sign(kernel[:, 1] - kernel[:, 0])
    return np.where(label[:, None] == 0, lead, -lead)


@pytest.mark.parametrize(
    ("name", "driven"),
    [
        *[("fgsm", False), ("pgd", True)],
        *[
            slow("fgsm", True),
            slow("pgd", False),
            *(slow(name, on) for name in ("bim", "mi_fgsm", "apgd") for on in (True, False)),
        ],
    ],
)
def test_madry_trains_on_the_worst_images(name, driven):
    step = Step(attacked(make_inner(name, EPSILON, steps=20 if name in ITERATED else None)), driven=driven)
    state = step.init()
    [batch] = batches(1, weight=np.array([1, 1, 0.5, 1, 2, 0], np.float32))
    worst = flat(batch) + EPSILON * corner(KERNEL, batch["label"])
    if driven and name != "fgsm":
        got = step.perturb(state, batch)
        np.testing.assert_allclose(got["image"].reshape(N, -1), worst, atol=1e-6)
        np.testing.assert_array_equal(got["label"], batch["label"])
    dk, db, _ = gradient(KERNEL, BIAS, worst, batch["label"], batch["weight"])
    state = step.update(state, batch)
    np.testing.assert_allclose(weights(state)[0], KERNEL - LR * dk, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], BIAS - LR * db, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", [name if name == "bim" else slow(name) for name in (*ONE_STEP, *ITERATED)])
def test_inner_attacks_raise_the_loss_wherever_they_run(name):
    [batch] = batches(1)
    task = tasks.linen(mlp(2, (7,)), (batch_of(batch), batch_of(batch)))
    params, model_state = task.init(jax.random.key(0))

    def loss(image):
        return float(task.loss(params, model_state, {**batch, "image": image}, jax.random.key(0), False).mean)

    images = []
    for driven in (True, False):
        inner = make_inner(name, EPSILON, steps=4 if name in ITERATED else None)
        assert inner.iterated == (name in ITERATED)
        attack = inner.on(task) if driven else jax.jit(inner.on(task))
        images.append(attack(attack_loss(task, model_state), params, batch, jax.random.key(1))["image"])
    np.testing.assert_allclose(*images, atol=1e-5)
    assert loss(images[0]) > loss(batch["image"]) + 1e-3


@pytest.mark.slow
def test_a_fraction_may_be_attacked_in_many_steps():
    step = Step(mixing(make_inner("pgd", EPSILON), 0.5))
    [batch] = batches(1)
    image = step.perturb(step.init(), batch, 0.34)["image"].reshape(N, -1)  # 2 of 6
    worst = flat(batch) + EPSILON * corner(KERNEL, batch["label"])
    np.testing.assert_allclose(image[:2], worst[:2], atol=1e-6)
    np.testing.assert_array_equal(image[2:], batch["image"].reshape(N, -1)[2:])


@pytest.mark.parametrize("beta", [slow(0.0), 3.0])
def test_trades_is_its_formula(beta):
    weight = np.array([1, 1, 0.5, 1, 2, 0], np.float32)
    step = Step(trades(make_inner("pgd", EPSILON, steps=20), beta), driven=True)
    state = step.init()
    [batch] = batches(1, weight=weight)
    asked = step.perturb(state, batch)
    np.testing.assert_array_equal(asked["image"], batch["image"])
    x, there = flat(batch), np.asarray(asked["adversarial"], np.float64).reshape(N, -1)
    # The divergence is convex in x': its maximum is at one of the two corners where the classes move apart.
    lead = np.sign(KERNEL[:, 1] - KERNEL[:, 0])
    assert np.all([any(np.allclose(d, s * EPSILON * lead, atol=1e-6) for s in (1, -1)) for d in there - x])
    p, q = softmax(x @ KERNEL + BIAS), softmax(there @ KERNEL + BIAS)
    share = (weight / weight.sum())[:, None]
    divergence = (p * np.log(p / q)).sum(axis=1, keepdims=True)
    at_clean = share * (p - np.eye(2)[batch["label"]] + beta * p * (np.log(p / q) - divergence))
    at_worst = share * beta * (q - p)
    loss = -(share[:, 0] * np.log(p[np.arange(N), batch["label"]])).sum() + beta * (share * divergence).sum()
    state = step.functions.whole(state, asked, 1.0, 1.0)
    want = KERNEL - LR * (x.T @ at_clean + there.T @ at_worst)
    np.testing.assert_allclose(weights(state)[0], want, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], BIAS - LR * (at_clean + at_worst).sum(axis=0), rtol=RTOL)
    assert float(state.loss) == pytest.approx(loss * weight.sum(), rel=RTOL)


def test_trades_refuses_a_loss_without_logits():
    def logits_fn(params, model_state, image):
        return image @ params["kernel"]

    def loss(params, model_state, batch, key, train):
        logits = logits_fn(params, model_state, batch["image"])
        return LossOutput(*tasks.classification(logits, batch)[:2], model_state)

    data = {"image": RNG.uniform(size=(6, PIXELS)).astype(np.float32), "label": np.arange(6) % 2}
    params = {"kernel": jnp.asarray(KERNEL, jnp.float32)}
    task = tasks.plain(params, loss, data, data, logits=logits_fn, inputs_key="image", bounds=(0.0, 1.0))
    objective = trades(make_inner("pgd", EPSILON, steps=2), 6.0)
    with pytest.raises(ValueError, match=r"the loss of the task .* returns none: .*outputs=logits"):
        fit(task, optax.sgd(0.1), constant(2), epochs=1, objective=objective)


@pytest.mark.slow
def test_trades_passes_clean_then_attacked_images_through_batch_norm():
    step = Step(trades(make_inner("pgd", EPSILON), 1.0), Normed(), driven=True)
    state = step.init()
    [batch] = batches(1)
    asked = step.perturb(state, batch)
    before = jax.tree.map(np.asarray, state.model_state["batch_stats"]["BatchNorm_0"])
    x, there = flat(batch), np.asarray(asked["adversarial"], np.float64).reshape(N, -1)
    assert np.abs(x - there).max() > EPSILON / 2
    totals = step.functions.add(state, step.functions.begin(state), asked, 1.0, 0)
    stats = totals.model_state["batch_stats"]["BatchNorm_0"]
    for name, of in (("mean", np.mean), ("var", np.var)):
        want = 0.9 * (0.9 * before[name] + 0.1 * of(x, axis=0)) + 0.1 * of(there, axis=0)
        np.testing.assert_allclose(stats[name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("passes", "step_size"), [(1, None), (2, 0.03), slow(1, 0.03), slow(2, None)])
def test_free_steps_params_and_perturbation_together(passes, step_size):
    step = Step(free(EPSILON, step_size))
    state = step.init()
    data = [batch for batch in batches(3) for _ in range(2)]  # each twice in a row
    kernel, bias, delta = KERNEL, BIAS, np.zeros((N, PIXELS))
    total = (0, 0)
    for number, batch in enumerate(data, start=1):
        x, label = np.clip(flat(batch) + delta, 0, 1), batch["label"]
        dk, db, dx = gradient(kernel, bias, x, label, batch["weight"])
        delta = np.clip(delta + (step_size or EPSILON) * np.sign(dx), -EPSILON, EPSILON)
        total = (total[0] + dk / passes, total[1] + db / passes)
        if number % passes == 0:
            kernel, bias, total = kernel - LR * total[0], bias - LR * total[1], (0, 0)
        if number % passes == 0:
            parts = data[number - passes : number]
            state = step.update(state, batch) if passes == 1 else step.accumulate(state, parts)
            np.testing.assert_allclose(state.memory.reshape(N, -1), delta, atol=1e-6)
    assert int(state.updates) == len(data) // passes
    np.testing.assert_allclose(weights(state)[0], kernel, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], bias, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("rho", [slow(0.0), 0.3, slow(1.0)])
def test_sam_descends_from_the_worst_params(rho):
    step = step_of(sam, rho)
    parts = batches(2)
    total, loss = np.zeros_like(KERNEL), 0.0
    for batch in parts:
        x, label, ones = flat(batch), batch["label"], batch["weight"]
        dk, db, _ = gradient(KERNEL, BIAS, x, label, ones)
        scale = rho / np.sqrt((dk**2).sum() + (db**2).sum())
        total = total + gradient(KERNEL + scale * dk, BIAS + scale * db, x, label, ones)[0] / 2
        loss -= np.log(softmax(x @ KERNEL + BIAS)[np.arange(N), label]).sum()
    state = step.accumulate(step.init(), parts)
    np.testing.assert_allclose(weights(state)[0], KERNEL - LR * total, rtol=RTOL, atol=ATOL)
    assert float(state.loss) == pytest.approx(loss, rel=RTOL)  # at the params themselves


def test_sam_is_that_of_optax_where_the_gradient_is_not_zero():
    from optax.contrib import sam as optax_sam

    [batch] = batches(1)
    step = step_of(sam, 0.3)
    state = step.init()
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    tx = optax_sam(optax.sgd(LR), ascent, sync_period=2, opaque_mode=True)

    def loss(p):
        logits = Linear().apply({"params": p}, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    @jax.jit
    def updated(p):
        gradient_fn = jax.grad(loss)
        updates, _ = tx.update(gradient_fn(p), tx.init(p), p, grad_fn=lambda p, _: gradient_fn(p))
        return optax.apply_updates(p, updates)

    want = updated(state.params)
    got = step.update(state, batch).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL), got, want)


def test_sam_of_a_zero_gradient_is_a_step_of_zero():
    step = step_of(sam, 0.3)
    state = step.init()
    state = state._replace(params=jax.tree.map(lambda x: jnp.array(np.zeros_like(x)), state.params))
    [batch] = batches(1)
    batch |= {"image": np.zeros_like(batch["image"]), "label": np.arange(N, dtype=np.int32) % 2}
    state = step.update(state, batch)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(state.params))


def test_sam_leaves_the_statistics_of_the_first_pass():
    [batch] = batches(1)
    states = []
    for make in ((sam, 0.5), (Objective,)):
        step = step_of(*make, model=Normed)
        states.append(step.update(step.init(), batch).model_state)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    "objective",
    [
        mixing(make_inner("fgsm", 0.0), 1.0),
        *map(slow, (free(0.0), attacked(make_inner("pgd", 0.0)), sam(0.0), Objective())),
    ],
    ids=["absa", "free", "pgd", "sam", "none"],
)
def test_no_perturbation_is_plain_training(objective):
    step, plain = Step(objective), step_of(Objective)
    state, want = step.init(), plain.init()
    for batch in batches(3):
        state, want = step.update(state, batch), plain.update(want, batch, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.params, want.params)


@pytest.mark.parametrize("name", ["fgsm", slow("pgd")])
def test_accumulation_is_one_big_batch(name):
    step = Step(attacked(make_inner(name, EPSILON, steps=20 if name in ITERATED else None)))
    parts = batches(3)
    big = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    whole, state = step.update(step.init(), big), step.accumulate(step.init(), parts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL), state.params, whole.params
    )


@pytest.mark.slow
def test_random_starts_differ_by_update_micro_batch_and_seed():
    objective = attacked(make_inner("pgd", EPSILON, steps=1, step_size=1e-6))
    [batch] = batches(1)
    images = []
    for step in (Step(objective), Step(objective), Step(objective, seed=1)):
        state = step.init()
        for changed, number in ((state, 0), (state._replace(updates=jnp.int32(1)), 0), (state, 1)):
            images.append(np.asarray(step.perturb(changed, batch, number=number)["image"]).tobytes())
    assert images[:3] == images[3:6]
    assert len(set(images)) == 6


SMALL = {
    **{"epochs": 2, "batch_size": 16, "micro_batch_size": 8, "lr": 0.05, "lr_decay_epochs": (1,)},
    **{"hessian_batch_size": 16, "hessian_iters": 2},
}
OF_METHOD = {
    "bl": {},
    "fb": {"max_batch_size": 64, "warmup_epochs": 1.0},
    **{name: {"max_batch_size": 64} for name in ("gg", "norm_test", "gns", "ramp", "stability")},
    **{name: {"max_batch_size": 64, "patience": 1} for name in ("abs", "absa", "timer")},
    "cyclical": {"max_batch_size": 64, "cycle_epochs": 2},
    "fixed": {"max_batch_size": 64, "grow_epochs": (1,)},
    "seesaw": {"max_batch_size": 64},
}
OF_ROBUST = {
    "none": {},
    "absa": {"robust": "absa", "epsilon": 0.05},
    "pgd": {"robust": "pgd", "epsilon": 0.05, "attack_steps": 2},
    "trades": {"robust": "trades", "epsilon": 0.05, "attack_steps": 2},
    "free": {"robust": "free", "epsilon": 0.05, "free_replays": 2},
    "sam": {"robust": "sam"},
}


@pytest.fixture(scope="module")
def small():
    """A task of 136 random images: 8 of each epoch are half an update."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (136, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 136, dtype=np.int32),
    }
    return tasks.linen(mlp(10, (8,)), Dataset("random", arrays, arrays, 10), name="random")


def make_run(task, method, robust):
    parts = assemble({**SMALL, "method": method, **OF_METHOD[method], **OF_ROBUST[robust]}, task)
    return prepare(parts.task, parts.optimizer, parts.rule, **parts.options)


def assert_trains(task, method, robust):
    """A run ends finite, compiles each function once, and makes the updates of a plain run where it can."""
    run = make_run(task, method, robust)
    result = train(run)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
    counts = result.summary["compilations"]
    assert all(count <= 1 + (name == "add" and robust == "absa") for name, count in counts.items())
    assert result.records[-1]["samples"] == 2 * 136
    assert result.summary["robust"] == robust
    if robust != "absa":
        assert {record["adversarial_fraction"] for record in result.records} == {1.0}
    if run.rule.measures == "nothing":
        plain = train(make_run(task, method, "none"))
        assert result.summary["updates"] == plain.summary["updates"]
        different = jax.tree.map(lambda a, b: bool(np.any(a != b)), result.params, plain.params)
        assert all(jax.tree.leaves(different))


# Every rule, every objective, and each of them with every kind of measurement.
PAIRS = [
    *[("gns", "free"), ("abs", "sam"), ("gns", "trades"), ("bl", "pgd"), ("fb", "absa"), ("gg", "free")],
    *[("absa", "absa"), ("cyclical", "sam"), ("norm_test", "pgd"), ("stability", "trades"), ("timer", "free")],
    *[
        ("fixed", "trades"),
        ("gns", "absa"),
        ("ramp", "sam"),
        ("abs", "pgd"),
        ("stability", "free"),
        ("seesaw", "sam"),
    ],
]


def test_the_pairs_are_every_rule_and_every_objective():
    assert {method for method, _ in PAIRS} == set(METHODS)
    assert {robust for _, robust in PAIRS} | {"none"} == set(OF_ROBUST)


@pytest.mark.parametrize(
    ("method", "robust"),
    [slow(*pair) for pair in PAIRS],
)
def test_robust_training_goes_with_every_rule(small, method, robust):
    assert_trains(small, method, robust)


@pytest.mark.slow
@pytest.mark.parametrize("robust", ["free", slow("trades")])
def test_a_resumed_run_has_the_same_bits(small, robust, tmp_path):
    run = make_run(small, "gns", robust)
    whole = train(again(run))
    saves = Durability(checkpoint_every="48samples")

    def broken(state, *arguments):
        if int(state.updates) == 7:
            raise KeyError
        return run.functions.begin(state, *arguments)

    broken._cache_size = run.functions.begin._cache_size
    with pytest.raises(KeyError):
        train(again(run)._replace(functions=run.functions._replace(begin=broken)), tmp_path, saves)
    resumed = train(again(run), tmp_path, saves._replace(resume=True))
    assert resumed.summary["updates"] == whole.summary["updates"] > 7
    assert bits(resumed.params) == bits(whole.params)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"robust": "free", "remainder": "keep"}, "`remainder` must be drop with robust=free"),
        (
            {"robust": "sam", "micro_batch": "auto"},
            "`micro_batch` must be fixed where micro-batches are compared",
        ),
    ],
)
def test_refuses(small, given, match):
    parts = assemble({**SMALL, "method": "bl", **given}, small)
    with pytest.raises(ValueError, match=match) as error:
        prepare(parts.task, parts.optimizer, parts.rule, **parts.options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "micro", "want"),
    [(8, 8, [(4, 8), (4, 8), (2, 5)]), slow(16, 8, [(4, 8), (4, 8), (2, 5), (4, 8)])],
)
def test_of_a_short_micro_batch_the_same_part_is_attacked(batch, micro, want):
    rng = np.random.default_rng(0)
    data = {"image": rng.uniform(0.2, 0.8, (21, PIXELS)).astype(np.float32), "label": rng.integers(0, 2, 21)}
    task, objective, seen = tasks.linen(Linear(), (data, data)), mixing(make_inner("fgsm", EPSILON), 0.5), []

    def perturb(task, params, model_state, batch, *rest):
        after = objective.perturb(task, params, model_state, batch, *rest)
        hit, real = jnp.any(after["image"] != batch["image"], axis=1), batch["weight"] > 0
        jax.debug.callback(lambda *x: seen.append(tuple(map(int, x))), jnp.sum(hit & real), jnp.sum(real))
        return after

    rule = with_adversarial(constant(batch), 0.5, decrease=1.0)
    watched = objective._replace(perturb=perturb)
    fit(task, optax.sgd(0.1), rule, epochs=2, micro_batch_size=micro, remainder="keep", objective=watched)
    assert seen[: len(want)] == want


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fgsm", {"steps": 40}, r"`steps` is read with attack=bim, .*, and not with attack=fgsm"),
        (
            "fhsm",
            {"step_size": 0.01},
            r"`step_size` is read with attack=bim, .*, and not with attack=fhsm",
        ),
    ],
)
def test_an_inner_attack_refuses_what_it_does_not_read(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_inner(name, EPSILON, **options)


@pytest.mark.parametrize(
    ("rule", "objective", "message"),
    [
        (
            absa(2, 4, measure_every=6, patience=1),
            Objective(),
            r"`objective` does not follow it: objective=mixing",
        ),
        (with_adversarial(constant(2), 0.5), attacked(make_inner("fgsm", EPSILON)), "does not follow it"),
        (constant(2), mixing(make_inner("fgsm", EPSILON), 0.5), "the rule says none"),
        (
            with_adversarial(constant(2), 0.5),
            mixing(make_inner("fgsm", EPSILON), 0.2),
            "of 0.5, above the max_fraction=0.2",
        ),
    ],
)
def test_a_rule_and_an_objective_of_which_one_alone_is_adversarial(rule, objective, message):
    data = {"image": RNG.uniform(size=(6, PIXELS)).astype(np.float32), "label": np.arange(6) % 2}
    with pytest.raises(ValueError, match=message):
        fit(tasks.linen(Linear(), (data, data)), optax.sgd(0.1), rule, epochs=1, objective=objective)
