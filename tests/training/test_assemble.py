"""Settings by name: refused in one line at the earliest moment, or made into the parts of a run."""

import math
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from hessabs.batch_size import Observation
from hessabs.batch_size.settings import Abs
from hessabs.data import Dataset
from hessabs.models import mlp
from hessabs.training import optimizers, tasks
from hessabs.training.assemble import SETTINGS, assemble
from hessabs.training.fields import declared
from hessabs.training.tasks import named

NAN, INF = math.nan, math.inf
AT_LEAST_1 = (
    "epochs",
    "batch_size",
    "hessian_batch_size",
    "hessian_iters",
    "max_batch_size",
    "micro_batch_size",
)
READ = {  # what makes a setting one that is read
    "growth_factor": {"method": "gg"},
    "grow_epochs": {"method": "fixed"},
    "attack_steps": {"method": "bl", "robust": "pgd"},
    "free_replays": {"method": "bl", "robust": "free"},
    "trades_beta": {"method": "bl", "robust": "trades"},
    "sam_rho": {"method": "bl", "robust": "sam"},
    "attack_step_size": {"method": "bl", "robust": "pgd"},
}

REFUSED = [
    ({"method": "sgd"}, r"`method` must be one of bl, fb, gg, abs, absa, .*, got 'sgd'"),
    ({"model": "vgg"}, r"`model` must be one of alexnet, .*, got 'vgg'"),
    ({"optimiser": "sgd"}, r"there is no setting `optimiser`; the nearest is 'optimizer'"),
    ({"epochs": "3"}, r"`epochs` must be a whole number, got '3'"),
    ({"lr": True}, r"`lr` must be a number"),
    ({"lr_decay_epochs": [3]}, r"`lr_decay_epochs` must be a tuple of whole numbers, got \[3\]"),
    *[({name: 0}, rf"`{name}` must be at least 1, got 0") for name in (*AT_LEAST_1, "measure_every", "ema")],
    *[({"lr": v}, rf"`lr` must be positive and finite, got {v}") for v in (0.0, -0.1, NAN, INF)],
    *[({"lr_decay": v}, rf"`lr_decay` must lie in \(0, 1\], got {v}") for v in (0.0, -0.2, 1.5, NAN)],
    *[({"momentum": v}, rf"`momentum` must lie in \[0, 1\), got {v}") for v in (-0.1, 1.0, NAN)],
    *[
        ({name: v}, rf"`{name}` must be at least 0 and finite, got {v}")
        for name in ("weight_decay", "epsilon", "fgsm_epsilon", "hessian_rtol", "trades_beta", "sam_rho")
        for v in (-0.1, NAN, INF)
    ],
    *[
        ({name: v}, rf"`{name}` must be above 1, got {v}")
        for name in ("eigenvalue_decrease", "growth_factor")
        for v in (1.0, NAN, INF)
    ],
    *[({"fraction_decrease": v}, rf"`fraction_decrease` must be at least 1, got {v}") for v in (0.5, NAN, INF)],
    *[
        ({name: -1}, rf"`{name}` must be at least 0, got -1")
        for name in (
            "patience",
            "seed",
            "adversarial_epochs",
            "pgd_steps",
            "validation_examples",
            "data_workers",
        )
    ],
    *[
        ({"adversarial_fraction": v}, rf"`adversarial_fraction` must lie in \[0, 1\], got {v}")
        for v in (-0.1, 1.1, NAN)
    ],
    *[
        ({name: v}, rf"`{name}` must be positive epochs in ascending order, got \(")
        for name in ("lr_decay_epochs", "grow_epochs")
        for v in ((60, 30), (30, 30), (0, 30), (-1,))
    ],
    ({"max_batch_size": 64}, r"`max_batch_size` must be at least batch_size=128, got 64"),
    ({"max_batch_size": 300}, r"multiple of batch_size=128, got 300; the nearest below is 256"),
    ({"micro_batch_size": 96}, r"`micro_batch_size` must divide batch_size=128, got 96"),
    ({"max_micro_batch_size": 256}, r"`max_micro_batch_size` is a bound for --micro_batch=auto, got 256"),
    ({"track": "loss"}, r"`track` must name some of eigenvalue, .*, got 'loss'"),
    ({"remainder": "fill"}, r"`remainder` must be drop or keep for a training run"),
    ({"warmup_epochs": -1.0}, r"`warmup_epochs` must be at least 0 and finite, got -1.0"),
    ({"schedule": "cosine", "lr_decay_epochs": (3,)}, r"read with schedule=step, and not with schedule=cosine"),
    (
        {"augment": "resized_crop"},
        r"`augment` resized_crop needs `image_size`, the side of the crops; got none",
    ),
    ({"robust": "madry"}, "`robust` must be one of none, absa, pgd, trades, free, sam, got 'madry'"),
    ({"attack": "square"}, "`attack` must be one of fgsm, l2grad, .*, got 'square'"),
    (
        {"robust": "sam", "attack": "pgd"},
        "`attack` is read with robust=absa, pgd, trades, .* with robust=sam",
    ),
    (
        {"method": "bl", "attack": "pgd"},
        "`attack` is read with robust=absa, pgd, trades, .* with robust=none",
    ),
    ({"robust": "trades", "attack": "bim"}, "must start at random .* got 'bim'"),
    ({"robust": "pgd", "adversarial_fraction": 0.3}, "read with robust=absa, and not with robust=pgd"),
    ({"attack_steps": 0}, "`attack_steps` must be at least 1, got 0"),
    ({"free_replays": 0}, "`free_replays` must be at least 1, got 0"),
    ({"attack_step_size": 0.0}, "`attack_step_size` must be positive and finite, got 0.0"),
    (
        {"method": "absa", "attack_step_size": 0.1},
        "`attack_step_size` is read with robust=free and the attacks bim",
    ),
    # What a run does not read.
    ({"method": "absa", "threshold": 1.0}, "`threshold` is read with method=stability.*leave it out"),
    ({"method": "bl", "max_batch_size": 256}, "`max_batch_size` is read with method=fb, gg, abs.*leave it out"),
    ({"method": "abs", "epsilon": 0.1}, "`epsilon` is read with robust=absa, pgd, trades, free.*leave it out"),
    (
        {"method": "bl", "robust": "sam", "epsilon": 0.1},
        "`epsilon` is read with robust=absa, pgd, trades, free",
    ),
    ({"robust": "pgd", "trades_beta": 1.0}, "`trades_beta` is read with robust=trades.*leave it out"),
    ({"method": "bl", "sam_rho": 0.1}, "`sam_rho` is read with robust=sam, and not with robust=none"),
    ({"method": "absa", "free_replays": 2}, "`free_replays` is read with robust=free.*leave it out"),
    (
        {"method": "absa", "attack_steps": 3},
        "`attack_steps` is read with attack=bim, mi_fgsm, pgd, .* and not with attack=fgsm",
    ),
    ({"method": "abs", "adversarial_epochs": 3}, "`adversarial_epochs` is read with robust=absa"),
    ({"robust": "pgd", "fraction_decrease": 3.0}, "`fraction_decrease` is read with robust=absa"),
    ({"lr_decay": 0.1, "lr_decay_epochs": ()}, "`lr_decay` is read with lr_decay_epochs"),
    (
        {"optimizer": "adamw", "momentum": 0.5},
        "`momentum` is read with optimizer=sgd, .* optimizer=adamw",
    ),
    # Nor what was given its default, which a run of the other kind would read.
    ({"lr_decay": 0.2, "schedule": "linear"}, "`lr_decay` is read with schedule=step"),
    ({"method": "gg", "schedule": "cosine"}, "`method` gg grows where `schedule` step would fall, got cosine"),
    ({"lr_end": 0.0, "schedule": "step"}, "`lr_end` is read with schedule=cosine, linear, wsd"),
    (
        {"schedule_free_base": "adamw", "optimizer": "sgd"},
        "`schedule_free_base` is read with",
    ),
    ({"decay_fraction": 0.2, "schedule": "linear"}, "`decay_fraction` is read with schedule=wsd"),
    ({"weight_decay": 0.0, "optimizer": "x.py:make"}, "`weight_decay` is read with optimizer=sgd"),
]


@pytest.fixture
def no_data(monkeypatch):
    """Whoever reads data has checked too late."""
    monkeypatch.setattr(named, "load", lambda *args, **kwargs: pytest.fail("the data were read"))


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_refuses_before_the_data_is_read(given, message):
    if len(given) == 1:
        given = {**READ.get(next(iter(given)), {}), **given}
    with pytest.raises(ValueError, match=message) as caught:
        assemble(given)
    assert "\n" not in str(caught.value)


def test_refusing_starts_no_backend():
    """On a machine whose accelerator is busy, or of several processes, starting it is not for checks to do."""
    chosen = [given for given, _ in REFUSED[::5]]
    code = f"""
import math
nan, inf = math.nan, math.inf
from jax._src import xla_bridge
from hessabs.training.assemble import assemble
for given in {chosen}:
    try:
        assemble(given)
    except ValueError:
        assert not xla_bridge.backends_are_initialized(), given
    else:
        raise AssertionError(given)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def sized(n):
    """A task of n examples that nobody looks at."""
    arrays = {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": np.zeros(n, np.int32)}
    return tasks.linen(mlp(10, ()), Dataset("mine", arrays, arrays, 10), name="mine")


@pytest.fixture(scope="module")
def thousand():
    return sized(1000)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"lr_decay_epochs": (), "momentum": 0.0, "patience": 0, "epsilon": 0.0},
        {"lr_decay": 1.0},
        {"batch_size": 100, "micro_batch_size": 25, "max_batch_size": 100},
        {"method": "stability", "threshold": 1.0},
        {"method": "absa", "epsilon": 0.1, "adversarial_epochs": 3, "fraction_decrease": 1.0},
        {"method": "abs", "adversarial_fraction": 0.0},
        {"method": "bl", "adversarial_fraction": 0.5, "epsilon": 0.1},
        {"method": "bl", "robust": "trades", "attack_steps": 3, "trades_beta": 1.0},
        {"method": "gg", "lr_decay_epochs": (), "lr_decay": 0.5},
        {"method": "bl", "seed": 1, "model": "mlp", "track": "eigenvalue", "lr": 0.2, "hessian_iters": 2},
    ],
    ids=str,
)
def test_accepts(thousand, given):
    record = assemble(given, thousand).options["record"]
    assert (
        given.items() <= {**record, **assemble(given, thousand).options["settings"]._asdict(), **given}.items()
    )


def test_defaults_of_the_paper(thousand):
    record = assemble({}, thousand).options["record"]
    want = {
        **{"method": "absa", "eigenvalue_decrease": 2.0, "growth_factor": 2.0, "patience": 10},
        **{"epsilon": 0.005, "fraction_decrease": 2.0, "optimizer": "sgd"},
        **{"lr": 0.1, "lr_decay_epochs": (30, 60, 80), "lr_decay": 0.2, "lr_coupling": "linear"},
    }
    assert want.items() <= record.items()


@pytest.mark.parametrize("name", get_args(optimizers.Name))
def test_the_help_of_lr_coupling_says_what_an_optimizer_takes(thousand, name):
    told = declared(Abs)["lr_coupling"].help
    record = assemble({"method": "abs", "optimizer": name}, thousand).options["record"]
    assert record["lr_coupling"] == ("linear" if name in ("sgd", "nesterov", "lars") else "sqrt")
    assert "linear for sgd, nesterov, lars and schedule_free with base sgd, sqrt for other optimisers" in told
    of_sgd = {"method": "abs", "optimizer": "schedule_free", "schedule_free_base": "sgd"}
    assert assemble(of_sgd, thousand).options["record"]["lr_coupling"] == "linear"


@pytest.mark.parametrize(("method", "fraction"), [("bl", 0.0), ("abs", 0.0), ("absa", 0.2)])
def test_defaults_by_method(thousand, method, fraction):
    parts = assemble({"method": method, "epochs": 91}, thousand)
    record = parts.options["record"]
    assert record["adversarial_fraction"] == fraction
    assert record["adversarial_epochs"] == 45
    assert record.get("max_batch_size") == (None if method == "bl" else 896)
    assert record["micro_batch_size"] == parts.options["micro_batch_size"] == 128
    assert record.get("measure_every") == (None if method == "bl" else 7 * 128)
    assert (record["robust"], record["attack"]) == (("absa", "fgsm") if method == "absa" else ("none", None))
    assert float(parts.rule.init().adversarial_fraction) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("batch_size", "n", "micro", "largest"),
    [(128, 1437, 128, 1408), (32, 1437, 32, 1408), (256, 60_000, 128, 32_768), (100, 150, 100, 100)],
)
def test_sizes(batch_size, n, micro, largest):
    parts = assemble({"batch_size": batch_size, "hessian_batch_size": 512}, sized(n))
    record = parts.options["record"]
    assert (record["micro_batch_size"], record["max_batch_size"]) == (micro, largest)
    assert parts.options["settings"].hessian_batch_size == min(512, n)


@pytest.mark.parametrize(("remainder", "want"), [("drop", 896), ("keep", 1000)])
def test_an_epoch_is_whole_micro_batches_unless_the_remainder_is_kept(thousand, remainder, want):
    record = assemble({"remainder": remainder}, thousand).options["record"]
    assert record["measure_every"] == want


def test_a_batch_larger_than_the_data(thousand):
    message = r"`batch_size` must be at most the 100 training examples of mine, got 128"
    with pytest.raises(ValueError, match=message):
        assemble({}, sized(100))
    message = r"`max_batch_size` must be at most the 1000 .* got 1024; .* batch_size=128 that fits is 896"
    with pytest.raises(ValueError, match=message):
        assemble({"max_batch_size": 1024}, thousand)


@pytest.mark.parametrize("method", ["bl", "abs"])
def test_decay_epochs_become_examples(thousand, method):
    rule = assemble({"method": method, "lr_decay_epochs": (2, 5), "lr_decay": 0.5}, thousand).rule
    state, scales = rule.init(), []
    for samples in (2 * 896 - 1, 2 * 896, 5 * 896 - 1, 5 * 896):
        state = rule.update(Observation(samples, math.nan), state)
        scales.append(float(state.lr_scale))
    np.testing.assert_array_equal(scales, [1, 0.5, 0.5, 0.25])


def test_adversarial_epochs_become_examples(thousand):
    rule = assemble({"epochs": 6}, thousand).rule
    state, fractions = rule.init(), []
    for samples in (3 * 896 - 1, 3 * 896):
        state = rule.update(Observation(samples, math.nan), state)
        fractions.append(float(state.adversarial_fraction))
    np.testing.assert_allclose(fractions, [0.2, 0], rtol=1e-6)


@pytest.mark.parametrize(("patience", "size"), [(0, 128), (1, 256), (2, 128)])
def test_patience_zero_is_never(thousand, patience, size):
    rule = assemble({"method": "abs", "patience": patience}, thousand).rule
    state = rule.update(Observation(896, 5.0), rule.init())
    assert int(state.batch_size) == size


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, ("absa", "fgsm", 0.2)),
        ({"method": "bl"}, ("none", None, 0.0)),
        ({"method": "bl", "adversarial_fraction": 0.1}, ("absa", "fgsm", 0.1)),
        ({"robust": "absa", "attack": "pgd", "method": "gg"}, ("absa", "pgd", 0.2)),
        ({"adversarial_fraction": 0.0}, ("none", None, 0.0)),
    ],
    ids=str,
)
def test_robust_training_of_a_method(thousand, given, want):
    options = assemble(given, thousand).options
    record = options["record"]
    assert (record["robust"], record["attack"], record["adversarial_fraction"]) == want
    assert (options["objective"].perturb is None) == (want[0] == "none")


@pytest.mark.parametrize("given", [{"robust": "pgd"}, {"robust": "none"}], ids=str)
def test_robust_training_that_replaces_that_of_absa(thousand, given):
    """The rule has no fraction, which nobody would follow."""
    parts = assemble({"method": "absa", **given}, thousand)
    options = parts.options
    assert float(parts.rule.init().adversarial_fraction) == 0
    assert (options["record"]["robust"], options["record"]["adversarial_fraction"]) == (given["robust"], 0.0)
    assert options["objective"].fraction == (1.0 if given["robust"] == "pgd" else None)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (
            {"method": "fixed", "epochs": 60, "grow_epochs": (10, 60)},
            [
                "`lr_decay_epochs` 60,80: the run ends before, after epochs=60.",
                "`grow_epochs` 60: the run ends before, after epochs=60.",
            ],
        ),
        ({"epochs": 81}, []),
    ],
    ids=str,
)
def test_epochs_beyond_the_end_are_said(thousand, given, want):
    assert assemble(given, thousand).notes == want


def test_every_setting_has_a_type_and_a_description():
    known = declared(*SETTINGS)
    assert len(known) > 60
    for name, field in known.items():
        assert len(field.help) > 10, name
        assert field.default is None or type(field.default) is field.kind, name


def test_a_setting_that_is_its_own_default_is_read_the_same(thousand):
    parts = assemble({}, thousand)
    record = parts.options["record"]
    said = {
        name: value
        for name, value in record.items()
        if name in declared(*SETTINGS) and value is not None and name != "attack_steps"
    }
    for name in ("free_replays", "trades_beta", "sam_rho", "lr_end", "decay_fraction", "schedule_free_base"):
        said.pop(name)
    assert assemble(said, thousand).options["record"] == record
