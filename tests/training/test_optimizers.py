"""Optimisers by name are those of optax where the batch is constant, and follow one that grows as stated."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import hessabs
from hessabs import batch_size, data, models
from hessabs.training import fit, tasks
from hessabs.training.durability import Durability
from hessabs.training.muon import dimension_numbers
from hessabs.training.optimizers import (
    READ_WITH,
    OptimizerSettings,
    as_optimizer,
    check_optimizer,
    make_optimizer,
    with_plain_keys,
)
from hessabs.training.run import prepare
from tests.training.runs import MICRO, N, digits_task

pytestmark = pytest.mark.sampled

NAMES = (
    "sgd",
    "nesterov",
    "adamw",
    "lion",
    "muon",
    "lamb",
    "lars",
    "schedule_free",
    "schedule_free_sgd",
    "prodigy",
)
BATCH = 32
LR, DECAY = 0.01, 0.1
MASK = {"hidden": {"kernel": True, "bias": False}, "head": {"kernel": True, "bias": False}}


def draw(seed: int):
    rng = np.random.default_rng(seed)
    shapes = {"hidden": {"kernel": (64, 16), "bias": (16,)}, "head": {"kernel": (16, 10), "bias": (10,)}}
    return jax.tree.map(
        lambda s: jnp.asarray(0.1 * rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )


def make(name: str, **changes):
    if name == "schedule_free_sgd":
        name, changes = "schedule_free", {"schedule_free_base": "sgd", **changes}
    settings = OptimizerSettings(name, **changes)
    return make_optimizer(settings, batch_size=BATCH, num_classes=10)


def run(tx, gradients, scales=None, examples=BATCH, **extra):
    """The params, updates and state after some updates with given gradients."""
    params, out = draw(0), []
    update = tx.update if hasattr(tx.update, "lower") else jax.jit(tx.update)
    state = tx.init(params)
    for gradient, scale in zip(gradients, scales or [None] * len(gradients), strict=True):
        given = extra if scale is None else {**extra, "lr_scale": scale}
        updates, state = update(gradient, state, params, num_examples=examples, **given)
        params = optax.apply_updates(params, updates)
        out.append(updates)
    return params, out, state


def plain(name: str, *, decay=DECAY, k: int = 1):
    """What optax has, its hyperparameters those of a batch ``k`` times as large."""
    b1, b2, beta, half = 0.9**k, 0.99**k, 0.95**k, decay * k**0.5
    sgd = optax.sgd(LR, 0.9, nesterov=name == "nesterov")
    # optax.contrib.muon decays biases too where it decays a head; a chain says what is wanted.
    numbers = {
        "hidden": {"kernel": contrib.MuonDimensionNumbers(0, 1), "bias": None},
        "head": {"kernel": None, "bias": None},
    }
    muon = contrib.muon(
        1.0,
        beta=beta,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=numbers,
    )
    squares = optax.scale_by_rms(b2, eps_in_sqrt=False, bias_correction=True)
    free = [squares, optax.add_decayed_weights(half, MASK), optax.scale(-LR)]
    return {
        "sgd": lambda: optax.chain(optax.add_decayed_weights(decay), sgd),
        "nesterov": lambda: optax.chain(optax.add_decayed_weights(decay), sgd),
        "adamw": lambda: optax.adamw(LR, b1, b2, weight_decay=half, mask=MASK),
        "lion": lambda: optax.lion(LR, b1, b2, weight_decay=half, mask=MASK),
        "lamb": lambda: optax.lamb(LR, b1, b2, weight_decay=half, mask=MASK),
        "lars": lambda: optax.lars(LR, decay, MASK, trust_ratio_mask=MASK),
        "muon": lambda: optax.chain(muon, optax.add_decayed_weights(-half, MASK), optax.scale(LR)),
        "schedule_free": lambda: contrib.schedule_free(optax.chain(*free), LR, b1=0.9),
        "schedule_free_sgd": lambda: contrib.schedule_free(
            optax.chain(optax.add_decayed_weights(decay, MASK), optax.sgd(LR)), LR, b1=0.9
        ),
        "prodigy": lambda: contrib.prodigy(LR, weight_decay=decay),
    }[name]()


def assert_close(got, want, rtol=3e-4, atol=2e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, want)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_plain_optax_with_the_hyperparameters_of_its_batch(name):
    gradients = [draw(seed) for seed in range(1, 5)]
    made = make(name, lr=LR, weight_decay=DECAY)
    tx = made.tx._replace(update=jax.jit(made.tx.update))
    got, _, state = run(tx, gradients)
    want, _, plain_state = run(optax.with_extra_args_support(plain(name)), gradients)
    assert_close(got, want)
    average = contrib.schedule_free_eval_params(plain_state, want) if "free" in name else want
    assert_close(made.evaluation_params(state, got), average)
    # Under growth, in the first update: betas to the power of 4, decoupled weight decay by the root of 4, and
    # SGD's kind as it was.
    _, [got], _ = run(tx, gradients[:1], examples=4 * BATCH)
    _, [want], _ = run(optax.with_extra_args_support(plain(name, k=4)), gradients[:1])
    assert_close(got, want, atol=3e-7)


def test_following_is_a_choice():
    gradients = [draw(seed) for seed in range(1, 3)]
    for name in ("adamw", "schedule_free"):
        still = make(name, lr=LR, weight_decay=DECAY, follow_batch="none")
        got, _, _ = run(still.tx, gradients, examples=4 * BATCH)
        want, _, _ = run(optax.with_extra_args_support(plain(name)), gradients)
        assert_close(got, want, atol=3e-7)
    follows = make("sgd", lr=LR, follow_batch="half_life")
    _, updates, _ = run(follows.tx, [draw(1)] * 2, examples=4 * BATCH)
    gain = (1 - 0.9**4) / (1 - 0.9)  # momentum is a sum: what it adds up to stays
    for got, factor in zip(updates, (gain, gain * (1 + 0.9**4)), strict=True):
        np.testing.assert_allclose(got["head"]["bias"], -LR * factor * draw(1)["head"]["bias"], rtol=1e-4)
    # With a rate that does not follow, the params forget by example what they did.
    settings = OptimizerSettings("adamw", weight_decay=DECAY)
    tx = make_optimizer(settings, batch_size=BATCH, lr_coupling="none").tx
    _, _, state = run(tx, [draw(1)], examples=4 * BATCH)
    np.testing.assert_allclose(optax.tree.get(state, "weight_decay"), 4 * DECAY, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "b2"), 0.99**4, rtol=1e-6)


@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_schedule_free_takes_the_rate_of_every_update_inside(base):
    scales, gradients = [0.5, 1.0, 4.0, 2.0, 0.25], [draw(seed) for seed in range(1, 6)]
    made = make("schedule_free", lr=LR, schedule_free_base=base, follow_batch="none")
    got, _, state = run(made.tx, gradients, [jnp.float32(scale) for scale in scales])

    def rate(count):  # of optax, which counts from 1
        return LR * jnp.asarray(scales)[count - 1]

    chain = [optax.sgd(lambda count: rate(count + 1))]
    if base == "adamw":
        chain = [optax.scale_by_rms(0.99, eps_in_sqrt=False, bias_correction=True), *chain]
    want, _, plain_state = run(contrib.schedule_free(optax.chain(*chain), rate, b1=0.9), gradients)
    assert_close(got, want)
    x = made.evaluation_params(state, got)
    want_x = contrib.schedule_free_eval_params(plain_state, want)
    assert_close(x, want_x)
    if base == "sgd":  # the average, by hand: weights are squares of the largest rate so far
        z = x = np.asarray(draw(0)["head"]["bias"], np.float64)
        total = largest = 0.0
        y = z
        for scale, gradient in zip(scales, gradients, strict=True):
            z = z - LR * scale * np.asarray(gradient["head"]["bias"])
            largest = max(largest, scale)
            total += largest**2
            x = x + largest**2 / total * (z - x)
            y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(got["head"]["bias"], y, rtol=1e-4)
        np.testing.assert_allclose(made.evaluation_params(state, got)["head"]["bias"], x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_its_state_keeps_its_structure_and_lr_scale_is_for_the_loop(name, dtype):
    tx = make(name, weight_decay=DECAY, clip=1.0).tx
    params = jax.tree.map(lambda p: p.astype(dtype), draw(0))
    state = tx.init(params)

    def update(lr_scale, num_examples):
        return tx.update(params, state, params, lr_scale=lr_scale, num_examples=num_examples)

    program, (updates, after) = jax.make_jaxpr(update, return_shape=True)(jnp.float32(1), jnp.float32(BATCH))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for got, want in zip(jax.tree.leaves((updates, after)), jax.tree.leaves((params, state)), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    scale = program.jaxpr.invars[0]
    used = any(scale in equation.invars for equation in program.jaxpr.eqns)
    assert used == ("free" in name or name == "prodigy")


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("sgd", "adamw", "muon", "schedule_free")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_it_learns_digits(name):
    digits = data.load("digits").train
    x = jnp.asarray(digits["image"].reshape(len(digits["image"]), -1) / 255, jnp.float32)
    y = jnp.asarray(digits["label"])
    # Faster than by default, where the default is for longer runs.
    rates = {"adamw": 1e-2, "lion": 3e-3, "muon": 1e-2, "lamb": 3e-2, "lars": 2.0, "schedule_free": 3e-2}
    made = make(name, lr=rates.get(name), clip=5.0)

    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(params):
        def step(carry, batch):
            params, state = carry
            updates, state = made.tx.update(
                jax.grad(loss)(params, *batch), state, params, lr_scale=1.0, num_examples=BATCH
            )
            return (optax.apply_updates(params, updates), state), None

        batches = jax.tree.map(lambda a: jnp.tile(a[:1408].reshape(44, 32, -1), (4, 1, 1)), (x, y))
        batches = (batches[0], batches[1][..., 0])
        (params, state), _ = jax.lax.scan(step, (params, made.tx.init(params)), batches)
        return loss(made.evaluation_params(state, params), x, y)

    start = draw(0)
    assert train(start) < 0.5 * loss(start, x, y)


def test_prodigy_takes_the_rate_of_every_update_inside():
    # The distance it estimates depends on the rates that were used.
    gradients, scales = [draw(1)] * 8, [1.0, 0.5, 2.0, 1.0, 0.25, 4.0, 1.0, 0.0]
    got, _, state = run(make("prodigy", lr=0.5).tx, gradients, scales)
    schedule = contrib.prodigy(lambda count: 0.5 * jnp.asarray(scales)[count])
    want, _, plain_state = run(optax.with_extra_args_support(schedule), gradients)
    assert_close(got, want)
    assert_close(optax.tree.get(state, "estim_lr"), plain_state.estim_lr)
    assert float(plain_state.estim_lr) > 1e-6  # it has found something


def test_clipping_is_by_global_norm():
    made = make("sgd", lr=1.0, momentum=0.0, clip=0.5)
    _, [updates], _ = run(made.tx, [draw(1)])
    assert float(optax.tree.norm(draw(1))) > 1
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-5)
    free = make("schedule_free_sgd", lr=1.0, clip=0.5)
    _, _, state = run(free.tx, [draw(1)])
    moved = jax.tree.map(jnp.subtract, optax.tree.get(state, "z"), draw(0))
    np.testing.assert_allclose(optax.tree.norm(moved), 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "mask", "bias"),
    [("sgd", None, 1), ("sgd", "matrices", 0), ("adamw", None, 0), ("adamw", "all", 1)],
)
def test_weight_decay_is_for_what_the_mask_says(name, mask, bias):
    made = make(name, lr=1.0, weight_decay=DECAY, decay_mask=mask)
    zero = jax.tree.map(jnp.zeros_like, draw(0))
    _, [updates], _ = run(made.tx, [zero])
    np.testing.assert_allclose(updates["head"]["kernel"], -DECAY * draw(0)["head"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["bias"], -DECAY * bias * draw(0)["head"]["bias"], rtol=1e-5)


def test_defaults_are_each_ones_own():
    assert make("sgd").coupling == make("lars").coupling == make("schedule_free_sgd").coupling == "linear"
    assert {make(name).coupling for name in ("adamw", "lion", "muon", "lamb", "schedule_free")} == {"sqrt"}
    assert (make("sgd").lr, make("adamw").lr, make("schedule_free_sgd").lr) == (0.1, 1e-3, 1.0)
    assert make("sgd", lr=3.0).lr == 3.0
    assert set().union(*READ_WITH.values()) == set(NAMES) - {"schedule_free_sgd"}
    assert (make("prodigy").coupling, make("prodigy").lr) == ("sqrt", 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (OptimizerSettings("adam"), r"`optimizer` must be sgd, .*got 'adam'; the nearest is 'adamw'"),
        (
            OptimizerSettings("adamw", momentum=0.9),
            r"`momentum` is read with optimizer=sgd, .* and not with optimizer=adamw; leave",
        ),
        (OptimizerSettings("sgd", b2=0.9), r"`b2` is read with optimizer=adamw, .* and not with optimizer=sgd"),
        (
            OptimizerSettings("adamw", schedule_free_base="sgd"),
            r"`schedule_free_base` is read with optimizer=schedule_free, and not with optimizer=adamw",
        ),
        (
            OptimizerSettings("x.py:make", weight_decay=0.1),
            r"`weight_decay` is read with optimizer=sgd, .* and not with optimizer=x.py:make",
        ),
        (OptimizerSettings(lr=-1.0), r"`lr` must be positive and finite, got -1.0"),
        (OptimizerSettings(lr=float("nan")), r"`lr` must be positive and finite, got nan"),
        (OptimizerSettings(momentum=1.0), r"`momentum` must lie in \[0, 1\), got 1.0"),
        (OptimizerSettings("schedule_free", b1=0.0), r"`b1` must lie in \(0, 1\), got 0.0"),
        (OptimizerSettings("adamw", b2=1.0), r"`b2` must lie in \[0, 1\), got 1.0"),
        (OptimizerSettings(weight_decay=-1.0), r"`weight_decay` must be at least 0 and finite, got -1.0"),
        (OptimizerSettings(clip=0.0), r"`clip` must be positive and finite, got 0.0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(settings)


def test_an_optimizer_of_a_file(tmp_path):
    (tmp_path / "opt.py").write_text(
        "import optax\n"
        "def make(lr=0.5): return optax.sgd(lr)\n"
        "def own(): return optax.chain(optax.sign_sgd(0.25))\n"
        "def nothing(): return 3\n"
    )

    def named(name, **changes):
        return make(f"{tmp_path / 'opt.py'}:{name}", **changes)

    for made, lr, step in (
        (named("make"), 0.5, -0.5),
        (named("make", lr=2.0), 2.0, -2.0),
        (named("make", lr=2.0, clip=0.5), 2.0, -1.0),
        (named("own"), 1.0, -0.25),
    ):
        assert made.lr == lr
        assert made.coupling == "sqrt"
        assert made.rate_name == ("learning rate" if lr != 1 else "factor on the learning rate")
        w = jnp.ones(())
        updates, _ = made.tx.update(w, made.tx.init(w), w, lr_scale=1.0, num_examples=3)
        assert float(updates) == step
    with pytest.raises(ValueError, match=r"`lr` is not read by .*opt.py:own, .* leave it out"):
        named("own", lr=1.0)
    with pytest.raises(ValueError, match=r"opt.py, line 4: nothing\(\) returned a int; expected an optax"):
        named("nothing")


def test_any_optax_transformation_is_an_optimizer():
    made = as_optimizer(optax.adam(0.1), lr=0.1)
    assert (made.lr, made.coupling) == (0.1, "sqrt")
    assert as_optimizer(made) is made
    run(made.tx, [draw(1)])  # takes the extra arguments
    free = as_optimizer(optax.chain(optax.clip(1.0), contrib.schedule_free_sgd(0.1)))
    params, _, state = run(free.tx, [draw(1)])
    average = free.evaluation_params(state, params)
    np.testing.assert_allclose(average["head"]["bias"], state[1].z["head"]["bias"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="must be an optax transformation"):
        as_optimizer(3)


@pytest.mark.slow
def test_an_optimizer_that_reads_the_loss_is_told_it():
    seen = []

    def update(updates, state, params=None, *, value, **extra_args):
        jax.debug.callback(lambda x: seen.append(float(x)), value, ordered=True)
        return updates, state

    tx = optax.chain(
        optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update), optax.sgd(0.0)
    )
    task = tasks.linen(models.mlp(10, (4,)), data.load("digits"))
    records = fit(task, tx, batch_size.constant(64), epochs=1, micro_batch_size=32).records
    assert len(seen) == 1437 // 64
    assert np.mean(seen) == pytest.approx(records[0]["train_loss"], rel=1e-5)


def test_what_muon_takes_for_a_matrix():
    shapes = {
        "Embed_0": {"embedding": (50, 8)},
        "conv": {"kernel": (3, 3, 4, 8), "bias": (8,)},
        "norm": {"scale": (8,), "bias": (8,)},
        "attention": {
            "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
            "out": {"kernel": (2, 4, 8), "bias": (8,)},
        },
        "dense": {"kernel": (8, 16)},
        "lm_head": {"kernel": (16, 50)},
        "last": {"kernel": (16, 10)},
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: type(x) is tuple)
    found = dimension_numbers(params, 10)
    numbers = contrib.MuonDimensionNumbers
    assert found["conv"] == {"kernel": numbers([0, 1, 2], [3]), "bias": None}
    assert found["attention"]["query"] == {"kernel": numbers([0], [1, 2]), "bias": None}
    assert found["attention"]["out"]["kernel"] == numbers([0, 1], [2])
    assert found["dense"]["kernel"] == numbers([0], [1])
    assert found["norm"] == {"scale": None, "bias": None}
    assert [found[name] for name in ("Embed_0", "lm_head", "last")] == [
        {"embedding": None},
        {"kernel": None},
        {"kernel": None},
    ]
    tx = make("muon").tx
    updates, _ = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, num_examples=BATCH), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_muon_finds_the_outputs_of_an_equinox_layer():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.Sequential([eqx.nn.Conv2d(2, 4, 3, key=jax.random.key(0)), eqx.nn.LayerNorm(4)])
    params = eqx.filter(net, eqx.is_inexact_array)
    found = dimension_numbers(params, None)
    assert jax.tree.leaves(found, is_leaf=lambda n: isinstance(n, contrib.MuonDimensionNumbers)) == [
        contrib.MuonDimensionNumbers([1, 2, 3], [0])
    ]
    for name in (
        "muon",
        "adamw",
        "lars",
        "schedule_free",
    ):  # its params can be called, which optax asks of masks
        tx = make(name, weight_decay=DECAY).tx
        updates, _ = jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p, num_examples=BATCH), params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.slow
@pytest.mark.parametrize("out_first", [True, False])
def test_muon_takes_each_layer_of_a_stack_by_itself(out_first):
    # As nnx.vmap, nn.scan and eqx.filter_vmap stack layers, without a box that says so.
    rng = np.random.default_rng(0)
    shape, name = ((3, 8, 6), "weight") if out_first else ((3, 6, 8), "kernel")
    module = eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 8, key=key))(jax.random.split(jax.random.key(0), 3))
    params = {"body": module} if out_first else {"body": {"kernel": jnp.ones(shape), "bias": jnp.ones((3, 8))}}
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    tx = make_optimizer(OptimizerSettings("muon", lr=1.0), batch_size=8, num_classes=10).tx
    updates, _ = tx.update(gradient, tx.init(params), params, num_examples=8, lr_scale=1.0)
    body = updates["body"]
    for step in np.asarray(getattr(body, name) if out_first else body[name]):
        values = np.linalg.svd(step / (0.2 * np.sqrt(8)), compute_uv=False)
        assert 0.6 < values.min() <= values.max() < 1.3
    one = {"conv": {"kernel": jnp.ones((3, 6, 8)), "bias": jnp.ones(8)}}  # of one axis: places, inputs, outputs
    assert dimension_numbers(one, 10)["conv"]["kernel"].reduction_axis == [0, 1]


@pytest.mark.slow
def test_a_decay_that_counts_on_another_rate_is_refused():
    settings = OptimizerSettings("adamw", lr=1e-2, weight_decay=0.1)
    rule = batch_size.timer(MICRO, 4 * MICRO, every=N)
    said = r"as 'sqrt', and that of `rule` is 'linear': with_coupling\(rule, 'sqrt'\)"
    with pytest.raises(ValueError, match=said):
        prepare(digits_task(), make_optimizer(settings, batch_size=MICRO), rule)
    told = make_optimizer(settings, batch_size=MICRO, lr_coupling="linear")
    plain = make_optimizer(settings._replace(weight_decay=0.0), batch_size=MICRO)
    for optimizer, fitting in (
        (make_optimizer(settings, batch_size=MICRO), batch_size.with_coupling(rule, "sqrt")),
        (make_optimizer(settings, batch_size=MICRO), batch_size.constant(MICRO)),
        (told, rule),
        (plain, rule),
    ):
        prepare(digits_task(), optimizer, fitting)


def test_the_random_keys_of_an_optimizer_are_kept_as_numbers():
    noisy = optax.with_extra_args_support(optax.chain(optax.add_noise(0.1, 0.5, key=3), optax.sgd(0.1)))
    plain, params = with_plain_keys(noisy), draw(0)
    state, want_state = plain.init(params), noisy.init(params)
    for seed in range(2):
        got, state = jax.jit(plain.update)(draw(seed), state, params)
        want, want_state = jax.jit(noisy.update)(draw(seed), want_state, params)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert [np.asarray(leaf).dtype.kind for leaf in jax.tree.leaves(state)] == ["i", "u"]  # a count and the key


@pytest.mark.slow
def test_an_optimizer_that_draws_is_saved_and_goes_on_to_the_same_bits(tmp_path):
    def train(epochs, workdir, **durability):
        optimizer = optax.noisy_sgd(0.1, key=3)
        return fit(
            digits_task(),
            optimizer,
            batch_size.constant(2 * MICRO),
            epochs=epochs,
            workdir=tmp_path / workdir,
            durability=Durability(**durability),
        )

    whole = train(2, "whole")
    train(1, "parts")
    parts = train(2, "parts", resume=True)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)


@pytest.mark.slow
def test_schedule_free_of_optax_is_refused_where_its_rate_would_change():
    plain = contrib.schedule_free_sgd(0.5)
    grows, stays = batch_size.timer(16, 64, every=100), batch_size.constant(16)
    for rule, schedule in ((grows, None), (stays, lambda samples: 1.0)):
        with pytest.raises(ValueError, match=r"make_optimizer\(\"schedule_free\""):
            prepare(digits_task(), plain, rule, schedule=schedule)
    prepare(digits_task(), plain, stays)
    named = make("schedule_free")
    prepare(digits_task(), named, batch_size.with_coupling(batch_size.timer(32, 64, every=100), "sqrt"))


@pytest.mark.slow
def test_what_stands_after_the_factor_has_the_last_word():
    tx = optax.chain(optax.sgd(0.5), hessabs.scale_by_batch_size(), optax.keep_params_nonnegative())
    result = fit(digits_task(), tx, batch_size.timer(16, 64, every=50), epochs=2)
    assert result.records[-1]["lr"] > 1
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(result.params)) == 0


@pytest.mark.slow
def test_a_schedule_by_samples_is_told_the_examples_of_each_update():
    def train(rate):
        tx = optax.chain(optax.scale_by_adam(), rate)
        return fit(digits_task(), tx, batch_size.timer(16, 64, every=50), epochs=2).params

    stepped = optax.piecewise_constant_schedule(0.01, {0: 1.0})
    jax.tree.map(
        np.testing.assert_array_equal, train(hessabs.by_samples(stepped, 16)), train(optax.scale(-0.01))
    )
