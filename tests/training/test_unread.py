"""Settings that change nothing are refused, or said."""

import pytest

from hessabs.training import Config
from hessabs.training.unread import never_reached, refuse_unread

UNREAD = [
    # (given, config, who reads it)
    ("threshold", Config(method="absa"), "method=stability"),
    ("max_batch_size", Config(method="bl"), "method=fb, gg, abs"),
    ("epsilon", Config(method="abs"), "robust=absa, pgd, trades, free"),
    ("epsilon", Config(method="bl", robust="sam"), "robust=absa, pgd, trades, free"),
    ("trades_beta", Config(robust="pgd"), "robust=trades"),
    ("sam_rho", Config(method="bl"), "robust=sam, and not with robust=none"),
    ("free_replays", Config(method="absa"), "robust=free"),
    ("attack_steps", Config(method="absa"), "attack=bim, mi_fgsm, pgd, .* and not with attack=fgsm"),
    ("adversarial_epochs", Config(method="abs"), "robust=absa"),
    ("fraction_decrease", Config(method="absa", robust="pgd"), "robust=absa"),
    ("data_workers", Config(), "image_size"),
    ("lr_decay", Config(lr_decay_epochs=()), "lr_decay_epochs"),
]


@pytest.mark.parametrize(("name", "config", "reader"), UNREAD)
def test_what_a_run_does_not_read_is_refused(name, config, reader):
    with pytest.raises(ValueError, match=f"`{name}` is read with {reader}.*leave it out"):
        refuse_unread({name}, config)


@pytest.mark.parametrize(
    ("given", "config"),
    [
        ({"threshold"}, Config(method="stability")),
        ({"epsilon", "adversarial_epochs", "fraction_decrease"}, Config(method="absa")),
        ({"adversarial_fraction"}, Config(method="abs", adversarial_fraction=0.0)),
        ({"adversarial_fraction", "epsilon"}, Config(method="bl", adversarial_fraction=0.5)),
        ({"attack_steps", "trades_beta"}, Config(method="bl", robust="trades")),
        ({"lr_decay"}, Config(method="gg", lr_decay_epochs=())),
        ({"data_workers"}, Config(image_size=32)),
        ({"seed", "model", "track", "lr", "hessian_iters"}, Config(method="bl")),
    ],
)
def test_what_a_run_reads_is_taken(given, config):
    refuse_unread(given, config)


def test_epochs_beyond_the_end():
    config = Config(method="fixed", epochs=60, grow_epochs=(10, 60), warmup_epochs=70)
    assert never_reached(config) == [
        "`lr_decay_epochs` 60,80: the run ends before, after epochs=60.",
        "`grow_epochs` 60: the run ends before, after epochs=60.",
    ]
    assert never_reached(config._replace(epochs=81)) == []
    assert never_reached(Config(method="fb", epochs=5, lr_decay_epochs=())) == [
        "`warmup_epochs` 5: the run ends before, after epochs=5."
    ]
