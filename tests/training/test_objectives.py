"""Robust objectives against closed forms of a linear network, worked out in NumPy and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hessabs.training.config import check, resolve
from hessabs.training.losses import cross_entropy
from hessabs.training.robust import Objective, attacked, free, make_inner, mixing, sam, trades
from hessabs.training.robust.inner import ITERATED, ONE_STEP
from hessabs.training.saving.durability import Durability
from hessabs.training.state import init_state

from hessabs.batch_size.methods import METHODS
from hessabs.data import Dataset, Position, reader
from hessabs.models import mlp
from hessabs.training import Config, set_up, train
from hessabs.training.step import make_step_functions

RTOL, ATOL = 2e-5, 2e-6  # float32 against float64
N, PIXELS, LR, EPSILON = 6, 4, 0.5, 0.1
RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(PIXELS, 2)), RNG.normal(size=2)


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


def make(objective, model=None):
    """(step functions of plain SGD, initial state)."""
    model = Linear() if model is None else model
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1))))
    params = variables.pop("params")
    params["Dense_0"] = {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}
    optimizer = optax.with_extra_args_support(optax.sgd(LR))
    memory = objective.init((N, 2, 2, 1))
    return make_step_functions(model, optimizer, objective), init_state(params, variables, optimizer, memory)


def step(functions, state, batch, fraction=1.0):
    return functions.update_adversarial(state, functions.perturb(state, batch, fraction), fraction, 1.0)


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


@pytest.mark.parametrize("driven", [True, False], ids=["python", "compiled"])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi_fgsm", "apgd"])
def test_madry_trains_on_the_worst_images(name, driven):
    inner = make_inner(name, EPSILON, steps=20, driven_by_python=driven)
    functions, state = make(attacked(inner))
    [batch] = batches(1, weight=np.array([1, 1, 0.5, 1, 2, 0], np.float32))
    worst = flat(batch) + EPSILON * corner(KERNEL, batch["label"])
    if driven and name != "fgsm":
        got = functions.perturb(state, batch, 1.0)
        np.testing.assert_allclose(got["image"].reshape(N, -1), worst, atol=1e-6)
        np.testing.assert_array_equal(got["label"], batch["label"])
    dk, db, _ = gradient(KERNEL, BIAS, worst, batch["label"], batch["weight"])
    state = step(functions, state, batch)
    np.testing.assert_allclose(weights(state)[0], KERNEL - LR * dk, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], BIAS - LR * db, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", [*ONE_STEP, *ITERATED])
def test_inner_attacks_raise_the_loss_wherever_they_run(name):
    model, [batch] = mlp(2, (7,)), batches(1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]

    def loss(image):
        return float(cross_entropy(model.apply({"params": params}, image), batch))

    images = []
    for driven in (True, False):
        inner = make_inner(name, EPSILON, steps=4, driven_by_python=driven)
        attack = inner.attack if driven else jax.jit(inner.attack, static_argnums=0)
        images.append(attack(inner.loss(model, {}), params, batch, jax.random.key(1))["image"])
    np.testing.assert_allclose(*images, atol=1e-5)
    assert loss(images[0]) > loss(batch["image"]) + 1e-3


def test_a_fraction_may_be_attacked_in_many_steps():
    inner = make_inner("pgd", EPSILON, driven_by_python=True)
    functions, state = make(mixing(inner, 0.5))
    [batch] = batches(1)
    image = functions.perturb(state, batch, 0.34)["image"].reshape(N, -1)  # 2 of 6
    worst = flat(batch) + EPSILON * corner(KERNEL, batch["label"])
    np.testing.assert_allclose(image[:2], worst[:2], atol=1e-6)
    np.testing.assert_array_equal(image[2:], batch["image"].reshape(N, -1)[2:])


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_trades_is_its_formula(beta):
    weight = np.array([1, 1, 0.5, 1, 2, 0], np.float32)
    functions, state = make(trades(make_inner("pgd", EPSILON, steps=20, driven_by_python=True), beta))
    [batch] = batches(1, weight=weight)
    asked = functions.perturb(state, batch, 1.0)
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
    state = functions.update_adversarial(state, asked, 1.0, 1.0)
    want = KERNEL - LR * (x.T @ at_clean + there.T @ at_worst)
    np.testing.assert_allclose(weights(state)[0], want, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], BIAS - LR * (at_clean + at_worst).sum(axis=0), rtol=RTOL)
    assert float(state.loss) == pytest.approx(loss * weight.sum(), rel=RTOL)


def test_trades_passes_clean_then_attacked_images_through_batch_norm():
    functions, state = make(trades(make_inner("pgd", EPSILON, driven_by_python=True), 1.0), Normed())
    [batch] = batches(1)
    asked = functions.perturb(state, batch, 1.0)
    before = jax.tree.map(np.asarray, state.model_state["batch_stats"]["BatchNorm_0"])
    x, there = flat(batch), np.asarray(asked["adversarial"], np.float64).reshape(N, -1)
    assert np.abs(x - there).max() > EPSILON / 2
    state = functions.accumulate_adversarial(state, asked, 1.0)
    stats = state.model_state["batch_stats"]["BatchNorm_0"]
    for name, of in (("mean", np.mean), ("var", np.var)):
        want = 0.9 * (0.9 * before[name] + 0.1 * of(x, axis=0)) + 0.1 * of(there, axis=0)
        np.testing.assert_allclose(stats[name], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step_size", [None, 0.03])
@pytest.mark.parametrize("passes", [1, 2], ids=["update", "accumulate"])
def test_free_steps_params_and_perturbation_together(passes, step_size):
    functions, state = make(free(EPSILON, step_size))
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
        if passes == 1:
            state = functions.update_adversarial(state, batch, 1.0, 1.0)
        else:
            state = functions.accumulate_adversarial(state, batch, 1.0)
            state = functions.apply_update(state, 1.0) if number % passes == 0 else state
        np.testing.assert_allclose(state.memory.reshape(N, -1), delta, atol=1e-6)
    assert int(state.updates) == len(data) // passes
    np.testing.assert_allclose(weights(state)[0], kernel, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(weights(state)[1], bias, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("rho", [0.0, 0.05, 1.0])
def test_sam_descends_from_the_worst_params(rho):
    functions, state = make(sam(rho))
    parts = batches(2)
    total, loss = np.zeros_like(KERNEL), 0.0
    for batch in parts:
        x, label, ones = flat(batch), batch["label"], batch["weight"]
        dk, db, _ = gradient(KERNEL, BIAS, x, label, ones)
        scale = rho / np.sqrt((dk**2).sum() + (db**2).sum())
        total = total + gradient(KERNEL + scale * dk, BIAS + scale * db, x, label, ones)[0] / 2
        loss -= np.log(softmax(x @ KERNEL + BIAS)[np.arange(N), label]).sum()
        state = functions.accumulate_adversarial(state, batch, 1.0)
    state = functions.apply_update(state, 1.0)
    np.testing.assert_allclose(weights(state)[0], KERNEL - LR * total, rtol=RTOL, atol=ATOL)
    assert float(state.loss) == pytest.approx(loss, rel=RTOL)  # at the params themselves


def test_sam_is_that_of_optax_where_the_gradient_is_not_zero():
    from optax.contrib import sam as optax_sam

    [batch] = batches(1)
    functions, state = make(sam(0.3))
    params = jax.tree.map(jnp.copy, state.params)

    def loss(p):
        return cross_entropy(Linear().apply({"params": p}, batch["image"]), batch)

    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    tx = optax_sam(optax.sgd(LR), ascent, sync_period=2, opaque_mode=True)
    updates, _ = tx.update(
        jax.grad(loss)(params), tx.init(params), params, grad_fn=lambda p, _: jax.grad(loss)(p)
    )
    want = optax.apply_updates(params, updates)
    got = functions.update_adversarial(state, batch, 1.0, 1.0).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL), got, want)


def test_sam_of_a_zero_gradient_is_a_step_of_zero():
    functions, state = make(sam(0.3))
    state = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))
    batch = {
        "image": np.zeros((2, 2, 2, 1), np.float32),
        "label": np.arange(2),
        "weight": np.ones(2, np.float32),
    }
    state = functions.update_adversarial(state, batch, 1.0, 1.0)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(state.params))


def test_sam_leaves_the_statistics_of_the_first_pass():
    [batch] = batches(1)
    states = []
    for objective in (sam(0.5), Objective()):
        functions, state = make(objective, Normed())
        states.append(functions.update_adversarial(state, batch, 1.0, 1.0).model_state)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    "objective",
    [attacked(make_inner("pgd", 0.0)), mixing(make_inner("fgsm", 0.0), 1.0), free(0.0), sam(0.0), Objective()],
    ids=["pgd", "absa", "free", "sam", "none"],
)
def test_no_perturbation_is_plain_training(objective):
    functions, state = make(objective)
    plain, want = make(Objective())
    for batch in batches(3):
        state, want = step(functions, state, batch), plain.update(want, batch, 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.params, want.params)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_accumulation_is_one_big_batch(name):
    functions, state = make(attacked(make_inner(name, EPSILON, steps=20)))
    parts = batches(3)
    big = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    whole = step(functions, jax.tree.map(jnp.copy, state), big)
    for part in parts:
        state = functions.accumulate_adversarial(state, functions.perturb(state, part, 1.0), 1.0)
    state = functions.apply_update(state, 1.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL), state.params, whole.params
    )


def test_random_starts_differ_by_micro_batch_and_seed():
    inner = make_inner("pgd", EPSILON, steps=1, step_size=1e-6, driven_by_python=True)
    [batch] = batches(1)
    images = []
    for seed in (0, 0, 1):
        model, optimizer = Linear(), optax.with_extra_args_support(optax.sgd(LR))
        functions = make_step_functions(model, optimizer, attacked(inner), seed=seed)
        _, state = make(Objective())
        images.append(np.asarray(functions.perturb(state, batch, 1.0)["image"]))
        for changes in ({"updates": 1}, {"parts": 1}):
            state = state._replace(**{name: jnp.asarray(value) for name, value in changes.items()})
            images.append(np.asarray(functions.perturb(state, batch, 1.0)["image"]))
    assert np.array_equal(images[:3], images[3:6])
    distinct = {image.tobytes() for image in (*images[:3], images[6])}
    assert len(distinct) == 4


@pytest.mark.parametrize("replays", [1, 2, 3])
def test_replays(replays):
    arrays, per_epoch = {"label": np.arange(11)}, 5
    plain, read = reader(arrays, 2, seed=3), reader(arrays, 2, seed=3, replays=replays)
    passes = [read(1) for _ in range(4 * per_epoch)]
    for number, (batch, position) in enumerate(passes):
        if number % replays == 0:
            want, _ = plain(1)
        np.testing.assert_array_equal(batch["label"], want["label"])
        assert position == Position(*divmod(number + 1, per_epoch))
    for start in (0, 1, 7, 16):
        resumed = reader(arrays, 2, seed=3, replays=replays, position=Position(*divmod(start, per_epoch)))
        np.testing.assert_array_equal(resumed(1)[0]["label"], passes[start][0]["label"])
    if replays > 1:
        with pytest.raises(ValueError, match=f"must be 1 with replays={replays}, got 2"):
            read(2)


SMALL = Config(
    dataset="digits",
    epochs=2,
    batch_size=16,
    micro_batch_size=8,
    max_batch_size=64,
    lr=0.05,
    lr_decay_epochs=(1,),
    patience=1,
    warmup_epochs=1,
    cycle_epochs=2,
    grow_epochs=(1,),
    hessian_batch_size=16,
    hessian_iters=2,
    epsilon=0.05,
    attack_steps=2,
    free_replays=2,
)
ROBUST = ("absa", "pgd", "trades", "free", "sam")


def small_images():
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (136, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 136, dtype=np.int32),
    }
    return Dataset("random", arrays, arrays, 10)


def assert_trains(method, robust):
    """A run ends finite, compiles each function once, and makes the updates of a plain run where it can."""
    config = SMALL._replace(method=method, robust=robust)
    run = set_up(config, small_images())
    result = train(run)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
    assert set(result.summary["compilations"].values()) == {1}
    assert result.records[-1]["samples"] == 2 * 136
    assert result.summary["robust"] == robust
    if robust != "absa":
        assert {record["adversarial_fraction"] for record in result.records} == {1.0}
    if run.controller.measures == "nothing":
        plain = train(set_up(config._replace(robust="none"), small_images()))
        assert result.summary["updates"] == plain.summary["updates"]
        different = jax.tree.map(lambda a, b: bool(np.any(a != b)), result.params, plain.params)
        assert all(jax.tree.leaves(different))


@pytest.mark.parametrize("robust", ["trades", "free"])
def test_robust_training_with_statistics_of_gradients(robust):
    assert_trains("gns", robust)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("robust", ROBUST)
def test_every_way_of_robust_training_goes_with_every_rule(method, robust):
    assert_trains(method, robust)


@pytest.mark.parametrize("robust", ["free", pytest.param("trades", marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_same_bits(robust, tmp_path):
    run = set_up(SMALL._replace(method="bl", robust=robust), small_images())

    def again():
        return run._replace(state=jax.tree.map(jnp.copy, run.state))

    whole = train(again())
    saves = Durability(checkpoint_every="48samples")

    def broken(state, batch, fraction):
        if state.updates == 11:
            raise KeyError
        return run.functions.perturb(state, batch, fraction)

    with pytest.raises(KeyError):
        train(again()._replace(functions=run.functions._replace(perturb=broken)), tmp_path, saves)
    resumed = train(again(), tmp_path, saves._replace(resume=True))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"robust": "madry"}, "`robust` must be one of none, absa, pgd, trades, free, sam, got 'madry'"),
        ({"attack": "square"}, "`attack` must be one of fgsm, l2grad, .*, got 'square'"),
        ({"robust": "sam", "attack": "pgd"}, "`attack` is the inner attack of .* with robust=sam"),
        ({"method": "bl", "attack": "pgd"}, "`attack` is the inner attack of .* with robust=none"),
        ({"robust": "trades", "attack": "bim"}, "must start at random .* got 'bim'"),
        ({"robust": "pgd", "adversarial_fraction": 0.3}, "for robust=absa alone, got 0.3 with robust=pgd"),
        ({"robust": "free", "keep_remainder": True}, "`keep_remainder` does not go with robust=free"),
        ({"robust": "free", "micro_batch": "auto"}, "`micro_batch` must be fixed for robust=free"),
        ({"robust": "sam", "micro_batch": "auto"}, "`micro_batch` must be fixed for robust=sam"),
        ({"attack_steps": 0}, "`attack_steps` must be at least 1, got 0"),
        ({"free_replays": 0}, "`free_replays` must be at least 1, got 0"),
        ({"trades_beta": -1.0}, "`trades_beta` must be at least 0 and finite, got -1.0"),
        ({"sam_rho": float("nan")}, "`sam_rho` must be at least 0 and finite, got nan"),
        ({"attack_step_size": 0.0}, "`attack_step_size` must be positive and finite, got 0.0"),
        ({"attack_step_size": 0.1}, "`attack_step_size` is for robust=free and the attacks bim"),
    ],
)
def test_refuses(changes, match):
    with pytest.raises(ValueError, match=match) as error:
        check(Config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, ("absa", "fgsm", 0.2)),
        ({"method": "bl"}, ("none", None, 0.0)),
        ({"method": "bl", "adversarial_fraction": 0.1}, ("absa", "fgsm", 0.1)),
        ({"robust": "absa", "attack": "pgd", "method": "gg"}, ("absa", "pgd", 0.2)),
        ({"robust": "pgd"}, ("pgd", "pgd", 0.0)),
        ({"robust": "none"}, ("none", None, 0.0)),
        ({"adversarial_fraction": 0.0}, ("none", None, 0.0)),
    ],
)
def test_resolves(changes, want):
    config = resolve(Config(**changes), 60_000)
    assert (config.robust, config.attack, config.adversarial_fraction) == want
    assert resolve(config, 60_000) == config
