"""Schedules count examples: hand-computed factors, and the same end whatever the batch did."""

import math

import pytest

from hessabs.training.schedules import ScheduleSettings, check_schedule, make_schedule, of_settings

HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        # total 1000: {examples so far: factor}
        ("constant", {}, {0: 1, 500: 1, 5000: 1}),
        (
            "step",
            {"decay_at": (300, 600), "decay": 0.5},
            {0: 1, 299: 1, 300: 0.5, 599: 0.5, 600: 0.25, 999: 0.25},
        ),
        ("linear", {}, {0: 1, 250: 0.75, 999: 0.001, 1000: 0, 2000: 0}),
        ("linear", {"end": 0.5}, {0: 1, 500: 0.75, 1000: 0.5, 2000: 0.5}),
        ("cosine", {}, {0: 1, 250: (1 + HALF) / 2, 500: 0.5, 750: (1 - HALF) / 2, 1000: 0}),
        ("cosine", {"end": 0.1}, {0: 1, 500: 0.55, 1000: 0.1}),
        ("wsd", {"decay_fraction": 0.25}, {0: 1, 749: 1, 750: 1, 800: 0.8, 875: 0.5, 1000: 0}),
        ("wsd", {"decay_fraction": 1.0, "end": 0.2}, {0: 1, 500: 0.6, 1000: 0.2}),
        ("constant", {"warmup": 100}, {0: 0.01, 49: 0.5, 99: 1, 100: 1}),
        ("step", {"warmup": 100, "decay_at": (50,), "decay": 0.2}, {49: 0.5, 59: 0.12, 99: 0.2, 100: 0.2}),
        ("linear", {"warmup": 200}, {99: 0.5, 199: 1, 200: 1, 600: 0.5, 1000: 0}),
        ("cosine", {"warmup": 500}, {249: 0.5, 500: 1, 625: (1 + HALF) / 2, 750: 0.5, 1000: 0}),
        ("wsd", {"warmup": 100, "decay_fraction": 0.5}, {0: 0.01, 100: 1, 500: 1, 750: 0.5, 1000: 0}),
    ],
)
def test_factors(name, options, want):
    schedule = make_schedule(name, total=1000, **options)
    assert {samples: schedule(samples) for samples in want} == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("name", ["step", "cosine", "linear", "constant", "wsd"])
def test_it_counts_examples_whatever_the_batch_did(name):
    schedule = make_schedule(name, total=1024, warmup=128, decay_at=(512,))
    growing = [0, 64, 128, 256, 512]  # first examples of updates of 64, 64, 128, 256, 512
    constant = [schedule(samples) for samples in range(0, 1024, 64)]
    assert [schedule(samples) for samples in growing] == [constant[samples // 64] for samples in growing]
    assert all(0 < factor <= 1 for factor in constant)


def test_settings_are_in_epochs():
    settings = ScheduleSettings("wsd", warmup_epochs=0.5, lr_end=0.1, decay_fraction=0.25)
    schedule = of_settings(settings, epochs=8, per_epoch=100)
    assert [schedule(s) for s in (24, 50, 600, 700, 800)] == pytest.approx([0.5, 1, 1, 0.55, 0.1])
    by_default = of_settings(ScheduleSettings(), epochs=90, per_epoch=100)
    assert {by_default(samples) for samples in (0, 3000, 8999)} == {1.0}  # its decays are the rule's


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ScheduleSettings("cosin"), r"`schedule` must be one of step, cosine, .*the nearest is 'cosine'"),
        (ScheduleSettings(warmup_epochs=-1.0), r"`warmup_epochs` must be at least 0 and finite, got -1.0"),
        (ScheduleSettings("cosine", lr_end=1.0), r"`lr_end` must lie in \[0, 1\), got 1.0"),
        (ScheduleSettings("wsd", decay_fraction=0.0), r"`decay_fraction` must lie in \(0, 1\], got 0.0"),
        (
            ScheduleSettings(lr_end=0.5),
            r"`lr_end` is read with schedule=cosine, linear, wsd, and not with schedule=step; leave it out",
        ),
        (
            ScheduleSettings("cosine", decay_fraction=0.5),
            r"`decay_fraction` is read with schedule=wsd, and not with schedule=cosine",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(settings)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("triangle", {}, r"`name` must be one of step, cosine"),
        ("cosine", {"warmup": 1000}, r"`warmup` must .* the run of 1000 examples does, got 1000"),
        ("constant", {"warmup": 1001}, r"`warmup` must .* got 1001"),
        ("constant", {"warmup": -1}, r"`warmup` must be at least 0 .* got -1"),
        ("wsd", {"warmup": 900}, r"`warmup` must .* falls, at 800, got 900"),
        ("step", {"decay_at": (5, 3)}, r"`decay_at` must be positive and ascending, got \(5, 3\)"),
        ("step", {"decay": 2.0}, r"`decay` and `decay_fraction` must lie in \(0, 1\]"),
    ],
)
def test_schedules_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(name, total=1000, **options)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [1000, 1001, 5000])
def test_a_warm_up_that_does_not_end_before_the_run_is_refused(name, warmup):
    with pytest.raises(ValueError, match=f"end before the run of 1000 examples does, got {warmup}"):
        make_schedule(name, total=1000, warmup=warmup)
