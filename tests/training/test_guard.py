"""A guarded learning rate in the training loop: any rate trains, in parts or whole, killed or not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs
from hessabs import batch_size
from hessabs.data import Position
from hessabs.training import Durability, fit
from hessabs.training.loop import train
from hessabs.training.mesh import DATA, first_micro_batch, make_mesh, own_rows, split
from hessabs.training.optimizers import OptimizerSettings, check_optimizer
from tests.training.runs import MICRO, again, bits, digits_task, lines, make_run
from tests.training.saving.ending import break_off

HUGE = 50.0
OFTEN = Durability(checkpoint_every=f"{7 * MICRO}samples")
RESUME = OFTEN._replace(resume=True)
GROWING = {"method": "fixed", "grow_epochs": (1, 2), "max_batch_size": 4 * MICRO, "epochs": 3}


@pytest.fixture(scope="module")
def base():
    return make_run(lr=HUGE, guard=1.0, **GROWING)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return train(again(base), workdir, Durability()), workdir


@pytest.mark.slow
def test_a_rate_far_too_large_trains_while_the_batch_grows(whole):
    result, _ = whole
    assert [record["batch_size"] for record in result.records] == [2 * MICRO, 4 * MICRO, 4 * MICRO]
    assert result.records[-1]["test_accuracy"] > 60
    assert [record["guarded_lr"] < 0.1 * record["lr"] for record in result.records] == [True] * 3
    assert all(count == 1 for count in result.summary["compilations"].values())  # growth compiles nothing


@pytest.mark.slow
def test_without_the_guard_it_learns_nothing():
    run = make_run(lr=HUGE, **GROWING)
    try:
        result = train(run)
    except FloatingPointError:
        return
    assert result.records[-1]["test_accuracy"] < 30
    assert "guarded_lr" not in result.records[-1]


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_same_bits(base, whole, tmp_path):
    break_off(base, 12, tmp_path / "run", OFTEN)
    result = train(again(base), tmp_path / "run", RESUME)
    assert bits(result.params) == bits(whole[0].params)
    assert lines(tmp_path / "run") == lines(whole[1])


@pytest.mark.slow
@pytest.mark.slow
def test_the_rate_of_an_update_in_parts_is_that_of_its_first_micro_batch():
    run = make_run(lr=HUGE, guard=2.0, method="bl", batch_size=2 * MICRO, micro_batch_size=MICRO, epochs=1)
    state, functions = run.state, run.functions
    read = run.read_from(Position(0, 0))
    batches = [read(1)[0] for _ in range(2)]
    task = run.task

    def loss_fn(params, batch):
        return task.loss(params, {}, batch, jax.random.key(0), True).mean

    prepared = [task.prepare(batch) for batch in batches]
    params = jax.tree.map(jnp.copy, state.params)
    gradients = [jax.grad(loss_fn)(params, batch) for batch in prepared]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    found = hessabs.curvature.sharpness_along(loss_fn, params, prepared[0], mean)
    totals = functions.begin(state)
    for number, batch in enumerate(batches):
        totals = functions.add(state, totals, batch, None, number)
    after = functions.finish(state, totals, np.float32(1), batches[0])
    want = jax.tree.map(lambda p, g: p - 2 * found.slope / found.curvature * g, params, mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.params, want)


@pytest.mark.slow
def test_a_guard_that_has_nothing_to_do_changes_nothing():
    one, other = (train(make_run(lr=0.05, guard=guard, **GROWING)) for guard in (None, 1e6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.params, other.params)
    assert [r["guarded_lr"] for r in other.records] == pytest.approx([r["lr"] for r in one.records], rel=1e-5)


@pytest.mark.slow
def test_a_chain_of_ones_own_is_given_loss_and_batch():
    chain = optax.chain(optax.trace(0.9), hessabs.guarded_learning_rate(HUGE, 1.0))
    result = fit(digits_task(), chain, batch_size.constant(MICRO), epochs=2)
    assert result.records[-1]["test_accuracy"] > 60


@pytest.mark.parametrize(
    "reader",
    [
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1)),
        hessabs.self_measuring_batch_size(
            batch_size.stability_limited(MICRO, 4 * MICRO, lr=0.1, measure_every=MICRO), key=jax.random.key(0)
        ),
    ],
    ids=["adversarial_gradient", "self_measuring_batch_size"],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_what_needs_the_whole_batch_is_not_given_a_part(reader, guarded):
    last = hessabs.guarded_learning_rate(0.1) if guarded else optax.scale_by_learning_rate(0.1)
    with pytest.raises(ValueError, match=r"needs .*loss_fn|is an argument of its own in `fit`"):
        fit(digits_task(), optax.chain(reader, last), batch_size.constant(4 * MICRO), epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"method": "gns", "noise_scale": 4.0}], ids=["dealt", "whole"])
def test_four_devices_measure_what_one_does(four_devices, settings):
    # Rounding grows along the way, so of a few updates; a rule that compares micro-batches sees whole ones.
    each = {**GROWING, "grow_epochs": (1,), "epochs": 2, "batch_size": 2 * MICRO, **settings}
    if settings:
        del each["grow_epochs"]
    one, four = (
        train(make_run(digits_task(10 * MICRO, 20), lr=HUGE, guard=1.0, **each, devices=devices))
        for devices in (1, 4)
    )
    assert [r["batch_size"] for r in one.records] == [r["batch_size"] for r in four.records]
    got, want = ([record["guarded_lr"] for record in result.records] for result in (four, one))
    assert got == pytest.approx(want, rel=1e-3)
    assert max(want) < HUGE / 10
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), four.params, one.params)


@pytest.mark.parametrize("dealt", [True, False])
def test_the_first_micro_batch_is_the_same_on_any_devices(four_devices, dealt):
    mesh, batch = make_mesh({DATA: 4}), {"x": np.arange(24).reshape(24, 1)}
    rows = own_rows(24, 4, dealt=dealt)
    there = split(jax.tree.map(lambda x: x[rows], batch), mesh)
    for size in (4, 8, 24):
        one, four = (first_micro_batch(b, size, m, dealt=dealt)["x"] for b, m in ((batch, None), (there, mesh)))
        assert sorted(np.asarray(four).ravel()) == sorted(np.asarray(one).ravel()) == list(range(size))
        assert len(four.sharding.device_set) == 4


@pytest.mark.parametrize("optimizer", ["schedule_free", "prodigy"])
def test_who_has_the_rate_inside_takes_no_guard(optimizer):
    with pytest.raises(ValueError, match="guard"):
        check_optimizer(OptimizerSettings(optimizer=optimizer, guard=1.0))


def test_a_guard_is_above_zero():
    with pytest.raises(ValueError, match="`guard` must be"):
        check_optimizer(OptimizerSettings(guard=0.0))
