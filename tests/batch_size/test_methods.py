"""The rules by name: their settings, what is refused, the defaults, and the plans."""

import math

import numpy as np
import pytest

from hessabs.batch_size import GradientStatistics, Observation, methods
from hessabs.batch_size.methods import check, choose, make_plans, make_rule, never_reached, per_epoch, resolve
from hessabs.batch_size.settings import (
    METHODS,
    Abs,
    Absa,
    Bl,
    Cyclical,
    Fb,
    Fixed,
    Gg,
    Gns,
    NormTest,
    PlanSettings,
    Stability,
    Timer,
)

pytestmark = pytest.mark.sampled

NAN, INF = math.nan, math.inf
MEASURED = ("abs", "absa", "gns", "norm_test", "stability", "ramp")
SMALL = {"max_batch_size": 256, "patience": 3, "cycle_epochs": 4, "grow_epochs": (2, 3)}


def small(name):
    return METHODS[name](**{field: SMALL[field] for field in METHODS[name]._fields if field in SMALL})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_rule_and_a_plan(name):
    run = PlanSettings(epochs=12, batch_size=64, lr_decay_epochs=(4, 8))
    bounds = make_plans(run, small(name), 1280)
    assert len(bounds.most.epochs) == 12
    assert (bounds.fewest.updates < bounds.most.updates) == (name in MEASURED)
    assert (make_rule(run, small(name), 1280).measures != "nothing") == (name in MEASURED)


@pytest.mark.parametrize(("whole", "kept", "micro"), [(False, "keep", 640), (True, "drop", 128)])
def test_a_plan_counts_as_the_slides_and_one_of_whole_updates_as_the_training(whole, kept, micro):
    run = PlanSettings(epochs=2, batch_size=640, lr_decay_epochs=())
    said = run._replace(remainder=kept, micro_batch_size=micro)
    assert make_plans(run, Bl(), 50_000, whole_updates=whole) == make_plans(
        said, Bl(), 50_000, whole_updates=whole
    )


@pytest.mark.slow
def test_a_fixed_schedule_and_its_coupling():
    run = PlanSettings(epochs=6, batch_size=64, lr_decay_epochs=())
    fixed = Fixed(max_batch_size=256, grow_epochs=(2, 3))
    for coupling, scales in ((None, [1, 1, 2, 4, 4, 4]), ("sqrt", [1, 1, 2**0.5, 2, 2, 2]), ("none", [1] * 6)):
        rows = make_plans(run, fixed._replace(lr_coupling=coupling), 1280).most.epochs
        # A row of the plan is the end of an epoch: the growth of its last example is the next one's.
        assert [row.batch_size for row in rows] == [64, 64, 128, 256, 256, 256]
        assert [float(row.lr_scale) for row in rows] == pytest.approx(scales)


@pytest.mark.parametrize("name", ["bl", "abs"])
def test_decay_epochs_become_examples(name):
    rule = make_rule(PlanSettings(lr_decay_epochs=(2, 5), lr_decay=0.5), METHODS[name](), 1000)
    state, scales = rule.init(), []
    for samples in (2 * 896 - 1, 2 * 896, 5 * 896 - 1, 5 * 896):
        state = rule.update(Observation(samples, NAN), state)
        scales.append(float(state.lr_scale))
    np.testing.assert_array_equal(scales, [1, 0.5, 0.5, 0.25])


def test_adversarial_epochs_become_examples():
    rule = make_rule(PlanSettings(epochs=6), Absa(), 1000)
    state, fractions = rule.init(), []
    for samples in (3 * 896 - 1, 3 * 896):
        state = rule.update(Observation(samples, NAN), state)
        fractions.append(float(state.adversarial_fraction))
    np.testing.assert_allclose(fractions, [0.2, 0], rtol=1e-6)


@pytest.mark.parametrize(("patience", "size"), [(0, 128), (1, 256), (2, 128)])
def test_patience_zero_is_never(patience, size):
    rule = make_rule(PlanSettings(), Abs(patience=patience), 1000)
    assert int(rule.update(Observation(896, 5.0), rule.init()).batch_size) == size


RULES = (
    "constant",
    "linear_scaling",
    "batch_growth",
    "hessian_adaptive",
    "cyclical",
    "gradient_noise_scale",
    "norm_test",
    "stability_limited",
    "timer",
    "fixed_growth",
    "seesaw",
    "ramp",
)
WRAPPERS = ("with_decay", "with_coupling", "with_adversarial")
OTHER = {
    "max_batch_size": 512,
    "growth_factor": 3.0,
    "grow_epochs": (4,),
    "lr_coupling": "sqrt",
    "cycle_epochs": 6,
    "measure_every": 77,
    "eigenvalue_decrease": 5.0,
    "patience": 7,
    "threshold": 2.0,
    "noise_scale": 3.0,
    "tolerance": 2.0,
    "fraction_decrease": 4.0,
}


def called(options):
    """Options, a schedule among them as what it gives over 90 epochs of 1280 examples."""
    return {
        key: [value(samples) for samples in range(0, 120_000, 1280)] if key == "lr_schedule" else value
        for key, value in options.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_reaches_its_rule(name, monkeypatch):
    for rule in (*RULES, *WRAPPERS):
        monkeypatch.setattr(methods, rule, lambda *args, rule=rule, **options: (rule, args, called(options)))
    run = PlanSettings(batch_size=64, adversarial_fraction=0.5)
    before = make_rule(run, small(name), 1280)
    for setting in METHODS[name]._fields:
        assert make_rule(run, small(name)._replace(**{setting: OTHER[setting]}), 1280) != before, setting
    for changed in (run._replace(lr_decay_epochs=(3,)), run._replace(adversarial_epochs=7)):
        assert make_rule(changed, small(name), 1280) != before
    assert (make_rule(run, small(name), 1280, lr=0.2) != before) == (name == "stability")
    assert (make_rule(run, small(name), 1280, warmup_epochs=2.5) != before) == (name == "fb")
    outer = make_rule(run, small(name), 1280, lr_schedule=lambda samples: 1 / (1 + samples))
    assert (outer != before) == (name in ("seesaw", "ramp"))
    assert {setting for kind in METHODS.values() for setting in kind._fields} == set(OTHER)


REFUSED = [
    *[
        (name, 0, rf"`{name}` must be at least 1, got 0")
        for name in ("epochs", "batch_size", "micro_batch_size")
    ],
    *[(name, 0, rf"`{name}` must be at least 1, got 0") for name in ("max_batch_size", "measure_every")],
    *[(name, 0, rf"`{name}` must be at least 1, got 0") for name in ("cycle_epochs",)],
    *[
        (name, v, rf"`{name}` must be positive and finite, got {v}")
        for name in ("threshold", "noise_scale", "tolerance")
        for v in (0.0, -0.1, NAN, INF)
    ],
    *[("lr_decay", v, rf"`lr_decay` must lie in \(0, 1\], got {v}") for v in (0.0, -0.2, 1.5, NAN)],
    *[
        (name, v, rf"`{name}` must be above 1, got {v}")
        for name in ("eigenvalue_decrease", "growth_factor")
        for v in (1.0, NAN, INF)
    ],
    *[("fraction_decrease", v, rf"`fraction_decrease` must be at least 1, got {v}") for v in (0.5, NAN, INF)],
    *[(name, -1, rf"`{name}` must be at least 0, got -1") for name in ("patience", "adversarial_epochs")],
    *[
        ("adversarial_fraction", v, rf"`adversarial_fraction` must lie in \[0, 1\], got {v}")
        for v in (-0.1, 1.1, NAN)
    ],
    *[
        (name, v, rf"`{name}` must be positive epochs in ascending order, got \(")
        for name in ("lr_decay_epochs", "grow_epochs")
        for v in ((60, 30), (30, 30), (0, 30), (-1,))
    ],
    ("lr_coupling", "log", "`lr_coupling` must be one of \\['linear', 'sqrt', 'none', None\\], got 'log'"),
    ("remainder", "lose", "`remainder` must be one of \\['drop', 'keep', 'fill', None\\], got 'lose'"),
    ("max_batch_size", 64, r"`max_batch_size` must be at least batch_size=128, got 64"),
    ("max_batch_size", 300, r"multiple of batch_size=128, got 300; the nearest below is 256"),
    ("micro_batch_size", 96, r"`micro_batch_size` must divide batch_size=128, got 96"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_a_setting_out_of_its_range_is_refused_in_one_line(name, value, message):
    run = PlanSettings(**({name: value} if name in PlanSettings._fields else {}))
    kinds = [kind for kind in METHODS.values() if name in kind._fields] or [Bl]
    for kind in kinds:
        with pytest.raises(ValueError, match=message) as caught:
            check(run, kind(**({} if name in PlanSettings._fields else {name: value})))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "method", "message"),
    [
        (PlanSettings(), Timer(patience=0), "`patience` must be at least 1 epoch for the timer, got 0"),
        (PlanSettings(), Fixed(), "`grow_epochs` must name the epochs after which"),
        (
            PlanSettings(micro_batch_size=128),
            Gns(),
            "`micro_batch_size` must be below batch_size=128 for gns, .* got 128",
        ),
        (PlanSettings(batch_size=1), NormTest(), "must be below batch_size=1 for norm_test, .* got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(run, method, message):
    with pytest.raises(ValueError, match=message):
        check(run, method)


@pytest.mark.parametrize(
    ("run", "method"),
    [
        (PlanSettings(), Absa()),
        (PlanSettings(lr_decay_epochs=(), lr_decay=1.0), Abs(patience=0)),
        (PlanSettings(batch_size=100, micro_batch_size=25), Absa(max_batch_size=100)),
    ],
)
def test_what_is_in_its_range_is_taken(run, method):
    check(run, method)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "absa",
            {"threshold": 9.0},
            "`threshold` is read with method=stability, and not with method=absa; leave",
        ),
        (
            "bl",
            {"max_batch_size": 128},
            "`max_batch_size` is read with method=fb, gg, abs.*, and not with method=bl",
        ),
        ("fb", {"fraction_decrease": 1.0}, "`fraction_decrease` is read with method=gg, abs"),
        (
            "abs",
            {"lr_decay": 0.1, "lr_decay_epochs": ()},
            "`lr_decay` is read with lr_decay_epochs, and there are",
        ),
        ("sgd", {}, "`method` must be one of bl, fb, gg, abs, absa, .*, got 'sgd'"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        choose(name, given)


def test_what_a_method_reads_is_taken():
    assert choose("stability", {"threshold": 1.25, "lr": 0.2, "seed": 3}) == Stability(threshold=1.25)
    assert choose("gg", {"lr_decay": 0.1, "lr_decay_epochs": ()}) == Gg()


@pytest.mark.parametrize(("method", "fraction"), [(Bl(), 0.0), (Abs(), 0.0), (Absa(), 0.2)])
def test_defaults_by_method(method, fraction):
    run, resolved = resolve(PlanSettings(epochs=91), method, 60_000)
    assert (run.adversarial_fraction, run.adversarial_epochs, run.micro_batch_size) == (fraction, 45, 128)
    assert run.remainder == "drop"
    assert None not in run
    assert None not in resolved
    if resolved != Bl():
        assert (resolved.max_batch_size, resolved.measure_every) == (128 * 128, 468 * 128)
        assert (resolved.growth_factor, resolved.lr_coupling) == (2.0, "linear")


def test_defaults_of_growth_and_coupling():
    for method, want in (
        (Gg(), (5.0, "none")),
        (Cyclical(), (2.0, "none")),
        (Timer(), (2.0, "linear")),
    ):
        _, resolved = resolve(PlanSettings(), method, 60_000)
        assert (resolved.growth_factor, resolved.lr_coupling) == want
    assert resolve(PlanSettings(), Fb(), 60_000)[1].lr_coupling == "linear"


@pytest.mark.parametrize(
    ("batch_size", "n", "method", "micro", "largest"),
    [
        (128, 1437, Abs(), 128, 1408),
        (32, 1437, Abs(), 32, 1408),
        (256, 60_000, Abs(), 128, 32_768),
        (100, 150, Abs(), 100, 100),
        (128, 1437, Gns(), 64, 1408),
        (15, 150, NormTest(), 5, 150),
    ],
)
def test_default_sizes(batch_size, n, method, micro, largest):
    run, resolved = resolve(PlanSettings(batch_size=batch_size), method, n)
    assert (run.micro_batch_size, resolved.max_batch_size) == (micro, largest)


def test_resolving_keeps_what_was_said_and_is_done_once():
    run = PlanSettings(micro_batch_size=32, remainder="keep", adversarial_fraction=0.0, adversarial_epochs=0)
    method = Absa(256, "sqrt", 2.0, growth_factor=3.0, measure_every=7)
    assert resolve(run, method, 1000) == (run, method)
    once = resolve(PlanSettings(), Gns(), 1000)
    assert resolve(*once, 1000) == once


def test_rules_whose_measurements_are_free_measure_often_and_keep_the_adversarial_fraction():
    for name, scale in (("gns", 1.0), ("ramp", 2.0)):
        _, method = resolve(PlanSettings(), choose(name, {}), 50_000)
        assert (method.measure_every, method.fraction_decrease, method.noise_scale) == (195, 1.0, scale)
    assert resolve(PlanSettings(), choose("gns", {}), 200)[1].measure_every == 1
    for name in ("norm_test", "stability"):
        _, method = resolve(PlanSettings(micro_batch_size=64), choose(name, {}), 50_000)
        assert (method.measure_every, method.fraction_decrease) == (49_984, 2.0)


@pytest.mark.parametrize("name", ["gns", "ramp"])
def test_without_a_warm_up_one_noisy_measurement_decides_nothing(name):
    rule = make_rule(PlanSettings(epochs=2, lr_decay_epochs=()), choose(name, {}), 51_200)
    loud = GradientStatistics(64, 2, mean_square=10.0, square_mean=6.0)
    state, sizes = rule.init(), []
    for count in range(1, 9):
        state = rule.update(Observation(200 * count, gradient=loud), state)
        sizes.append(int(state.batch_size))
    assert sizes == [128] * 7 + [256]


@pytest.mark.parametrize("name", ["gns", "ramp"])
def test_noise_is_heard_from_the_end_of_the_warm_up_on(name):
    def warming(samples):
        return min(samples / 5_000, 1.0)

    rule = make_rule(PlanSettings(epochs=2), choose(name, {}), 10_000, lr_schedule=warming)
    loud = GradientStatistics(64, 2, mean_square=10.0, square_mean=6.0)
    sizes = []
    for samples in (4_900, 5_100):
        state = rule.init()
        for _ in range(8):
            state = rule.update(Observation(samples, gradient=loud), state)
        sizes.append(int(state.batch_size))
    assert sizes[0] == 128 < sizes[1]


@pytest.mark.parametrize(("remainder", "want"), [("drop", 896), ("keep", 1000), ("fill", 1024)])
def test_an_epoch_is_whole_micro_batches_unless_the_remainder_is_kept(remainder, want):
    run, method = resolve(PlanSettings(remainder=remainder), Abs(), 1000)
    assert per_epoch(run, 1000) == method.measure_every == want


def test_a_batch_larger_than_the_data_is_refused():
    message = r"`batch_size` must be at most the 100 training examples of digits, got 128"
    with pytest.raises(ValueError, match=message):
        resolve(PlanSettings(), Absa(), 100, dataset="digits")
    message = r"`max_batch_size` must be at most the 1000 .* got 1024; .* batch_size=128 that fits is 896"
    with pytest.raises(ValueError, match=message):
        resolve(PlanSettings(), Absa(max_batch_size=1024), 1000)


def test_epochs_beyond_the_end():
    run = PlanSettings(epochs=60)
    fixed = Fixed(grow_epochs=(10, 60))
    assert never_reached(run, fixed) == [
        "`lr_decay_epochs` 60,80: the run ends before, after epochs=60.",
        "`grow_epochs` 60: the run ends before, after epochs=60.",
    ]
    assert never_reached(run._replace(epochs=81), fixed) == []
    (line,) = never_reached(PlanSettings(epochs=3, lr_decay_epochs=()), Fb(), 5)
    assert line.startswith("`warmup_epochs` 5: the run ends before, after epochs=3")
    assert never_reached(PlanSettings(epochs=5, lr_decay_epochs=()), Fb(), 5) == []
