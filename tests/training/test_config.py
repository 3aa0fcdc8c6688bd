"""Settings: what is refused, in one line that says what to do, and what is filled in."""

import math

import numpy as np
import pytest

from hessabs.batch_size import Observation
from hessabs.training import Config
from hessabs.training.config import check, resolve
from hessabs.training.fields import field_help, field_types
from hessabs.training.setup import epoch_examples, make_controller

NAN, INF = math.nan, math.inf

REFUSED = [
    ("method", "sgd", r"`method` must be one of bl, fb, gg, abs, absa, .*, got 'sgd'"),
    ("model", "vgg", r"`model` must be one of alexnet, .*, got 'vgg'"),
    *[
        (name, 0, rf"`{name}` must be at least 1, got 0")
        for name in (
            "epochs",
            "batch_size",
            "hessian_batch_size",
            "hessian_iters",
            "max_batch_size",
            "micro_batch_size",
            "measure_every",
        )
    ],
    *[("lr", v, rf"`lr` must be positive and finite, got {v}") for v in (0.0, -0.1, NAN, INF)],
    *[("lr_decay", v, rf"`lr_decay` must lie in \(0, 1\], got {v}") for v in (0.0, -0.2, 1.5, NAN)],
    *[("momentum", v, rf"`momentum` must lie in \[0, 1\), got {v}") for v in (-0.1, 1.0, NAN)],
    *[
        (name, v, rf"`{name}` must be at least 0 and finite, got {v}")
        for name in ("weight_decay", "epsilon", "fgsm_epsilon", "hessian_rtol")
        for v in (-0.1, NAN, INF)
    ],
    *[
        (name, v, rf"`{name}` must be above 1, got {v}")
        for name in ("eigenvalue_decrease", "growth_factor")
        for v in (1.0, NAN, INF)
    ],
    *[("fraction_decrease", v, rf"`fraction_decrease` must be at least 1, got {v}") for v in (0.5, NAN, INF)],
    *[
        (name, -1, rf"`{name}` must be at least 0, got -1")
        for name in ("patience", "seed", "adversarial_epochs", "pgd_steps", "validation_examples")
    ],
    *[
        ("adversarial_fraction", v, rf"`adversarial_fraction` must lie in \[0, 1\], got {v}")
        for v in (-0.1, 1.1, NAN)
    ],
    *[
        (name, v, rf"`{name}` must be positive epochs in ascending order, got \(")
        for name in ("lr_decay_epochs", "grow_epochs")
        for v in ((60, 30), (30, 30), (0, 30), (-1,))
    ],
    ("max_batch_size", 64, r"`max_batch_size` must be at least batch_size=128, got 64"),
    ("max_batch_size", 300, r"multiple of batch_size=128, got 300; the nearest below is 256"),
    ("micro_batch_size", 96, r"`micro_batch_size` must divide batch_size=128, got 96"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_refuses(name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(Config(**{name: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(lr_decay_epochs=(), lr_decay=1.0, momentum=0.0, patience=0, epsilon=0.0),
        Config(method="bl", batch_size=128, max_batch_size=64),  # the baseline has no maximum
        Config(batch_size=100, micro_batch_size=25, max_batch_size=100),
    ],
)
def test_accepts(config):
    check(config)


def test_defaults_of_the_paper():
    config = Config()
    assert (config.eigenvalue_decrease, resolve(config, 60_000).growth_factor, config.patience) == (
        2.0,
        2.0,
        10,
    )
    assert (config.epsilon, config.fraction_decrease) == (0.005, 2.0)
    assert (config.lr, config.lr_decay_epochs, config.lr_decay, config.momentum) == (
        0.1,
        (30, 60, 80),
        0.2,
        0.9,
    )


@pytest.mark.parametrize(("method", "fraction"), [("bl", 0.0), ("abs", 0.0), ("absa", 0.2)])
def test_resolve_defaults_by_method(method, fraction):
    config = resolve(Config(method=method, epochs=91), 60_000)
    assert config.adversarial_fraction == fraction
    assert config.adversarial_epochs == 45
    assert config.max_batch_size == (128 if method == "bl" else 128 * 128)
    assert config.micro_batch_size == 128
    assert config.measure_every == 468 * 128
    assert (config.robust, config.attack) == (("absa", "fgsm") if method == "absa" else ("none", None))
    unset = {name for name, value in config._asdict().items() if value is None} - {"attack"}
    assert unset == {"data_dir", "image_size", "max_micro_batch_size", "mesh", "attack_step_size"}


@pytest.mark.parametrize(
    ("batch_size", "n", "micro", "largest"),
    [(128, 1437, 128, 1408), (32, 1437, 32, 1408), (256, 60_000, 128, 32_768), (100, 150, 100, 100)],
)
def test_resolve_sizes(batch_size, n, micro, largest):
    config = resolve(Config(batch_size=batch_size, hessian_batch_size=512), n)
    assert (config.micro_batch_size, config.max_batch_size) == (micro, largest)
    assert config.hessian_batch_size == min(512, n)


def test_resolve_keeps_what_was_said():
    said = Config(
        max_batch_size=256,
        growth_factor=3.0,
        lr_coupling="sqrt",
        micro_batch_size=32,
        devices=1,
        measure_every=7,
        robust="none",
        adversarial_fraction=0.0,
        adversarial_epochs=0,
        hessian_batch_size=9,
    )
    assert resolve(said, 1000) == said


@pytest.mark.parametrize(("keep", "want"), [(False, 896), (True, 1000)])
def test_an_epoch_is_whole_micro_batches_unless_the_remainder_is_kept(keep, want):
    config = resolve(Config(keep_remainder=keep), 1000)
    assert config.measure_every == want
    assert epoch_examples(config, 1000) == want


def test_resolve_refuses_a_batch_larger_than_the_data():
    with pytest.raises(
        ValueError, match=r"`batch_size` must be at most the 100 training examples of digits, got 128"
    ):
        resolve(Config(), 100)
    message = r"`max_batch_size` must be at most the 1000 .* got 1024; .* batch_size=128 that fits is 896"
    with pytest.raises(ValueError, match=message):
        resolve(Config(max_batch_size=1024), 1000)


def test_resolve_checks():
    with pytest.raises(ValueError, match=r"`lr` must be positive"):
        resolve(Config(lr=-1.0), 1000)


@pytest.mark.parametrize("method", ["bl", "abs"])
def test_decay_epochs_become_examples(method):
    config = resolve(Config(method=method, lr_decay_epochs=(2, 5), lr_decay=0.5), 1000)
    controller = make_controller(config, 896)
    state, scales = controller.init(), []
    for samples in (2 * 896 - 1, 2 * 896, 5 * 896 - 1, 5 * 896):
        state = controller.update(Observation(samples, math.nan), state)
        scales.append(float(state.lr_scale))
    np.testing.assert_array_equal(scales, [1, 0.5, 0.5, 0.25])


def test_adversarial_epochs_become_examples():
    controller = make_controller(resolve(Config(epochs=6), 1000), 896)
    state, fractions = controller.init(), []
    for samples in (3 * 896 - 1, 3 * 896):
        state = controller.update(Observation(samples, math.nan), state)
        fractions.append(float(state.adversarial_fraction))
    np.testing.assert_allclose(fractions, [0.2, 0], rtol=1e-6)


@pytest.mark.parametrize(("patience", "size"), [(0, 128), (1, 256), (2, 128)])
def test_patience_zero_is_never(patience, size):
    config = resolve(Config(method="abs", patience=patience), 1000)
    controller = make_controller(config, 896)
    state = controller.update(Observation(896, 5.0), controller.init())
    assert int(state.batch_size) == size


def test_every_field_has_a_type_and_a_description():
    assert list(field_types(Config)) == list(field_help(Config)) == list(Config._fields)
    assert set(field_types(Config).values()) == {str, int, float, bool, tuple}
    for name, text in field_help(Config).items():
        assert len(text) > 10, name
    for name, default in Config._field_defaults.items():
        assert default is None or type(default) is field_types(Config)[name], name
