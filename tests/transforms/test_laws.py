"""The laws by hand, with the numbers of a batch that grows by 4."""

import jax
import numpy as np
import pytest

from hessabs import follow_batch

pytestmark = pytest.mark.sampled

ADAMW = {
    "learning_rate": 1e-3,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "eps_root": 1e-12,
    "weight_decay": 0.1,
    "nesterov": False,
    "momentum": 0.9,  # a sum, in optax: stays
}


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, {"learning_rate": 2e-3, "b1": 0.6561, "b2": 0.996005996001, "weight_decay": 0.2}),
        (
            {"form": "sde"},
            {
                "learning_rate": 2e-3,
                "b1": 0.6,
                "b2": 0.996,
                "eps": 5e-9,
                "eps_root": 2.5e-13,
                "weight_decay": 0.2,
            },
        ),
        (
            {"lr_coupling": "linear"},
            {"learning_rate": 4e-3, "b1": 0.6561, "b2": 0.996005996001, "weight_decay": 0.1},
        ),
        ({"lr_coupling": "none"}, {"b1": 0.6561, "b2": 0.996005996001, "weight_decay": 0.4}),
    ],
)
def test_a_batch_that_grows_by_4(options, want):
    got = follow_batch(ADAMW, 4, **options)
    assert list(got) == list(ADAMW)
    for name in ADAMW:
        assert got[name] == pytest.approx(want.get(name, ADAMW[name]), rel=1e-12)
    traced = jax.jit(lambda growth: follow_batch(ADAMW, growth, **options))(4.0)
    for name in ADAMW:
        np.testing.assert_allclose(traced[name], got[name], rtol=1e-6)


@pytest.mark.parametrize("form", ["half_life", "sde"])
@pytest.mark.parametrize("lr_coupling", ["linear", "sqrt", "none"])
def test_growing_twice_is_growing_by_the_product_and_back_again(form, lr_coupling):
    def follow(values, growth):
        return follow_batch(values, growth, form=form, lr_coupling=lr_coupling)

    twice, once = follow(follow(ADAMW, 1.5), 3), follow(ADAMW, 4.5)
    for got, want in ((twice, once), (follow(once, 1 / 4.5), ADAMW)):
        for name in ADAMW:
            assert got[name] == pytest.approx(want[name], rel=1e-12)


def test_the_sde_form_ends_at_zero():
    assert follow_batch(ADAMW, 16, form="sde")["b1"] == 0.0
    assert jax.jit(lambda k: follow_batch(ADAMW, k, form="sde")["b1"])(16.0) == 0.0


@pytest.mark.parametrize("options", [{"lr_coupling": "cubic"}, {"form": "ode"}])
def test_unknown_words(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=rf"`{name}` must be one of \[.*got '{value}'"):
        follow_batch(ADAMW, 2, **options)


def test_a_growth_of_nothing():
    with pytest.raises(ValueError, match="`growth` must be above 0, got 0"):
        follow_batch(ADAMW, 0)
