"""What is the Hessian worth? Growth with and without it, each with the same adversarial examples.

    python experiments/run.py hessian_worth --data_dir DIR --jobs 2

The setting of fashion_mnist_mlp with a largest batch of 16,000, whose runs of BL, GG, ABS and ABSA belong
beside these. Without a suffix, a run has the adversarial examples of ABSA: a fifth of each batch at first,
half of that at each growth, none after half of the training or at the largest batch. With ``_kept`` it is a
fifth to the end.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "epochs": 90,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "max_batch_size": 16000,
    "adversarial_fraction": 0.2,
    "micro_batch": "auto",
}

_KEPT = {"fraction_decrease": 1.0, "adversarial_epochs": 90}
_STABILITY = {"method": "stability", "threshold": 2.0}
_GRADIENT = {  # these rules compare micro-batches of one update, here of the last one of an epoch
    "micro_batch": "fixed",
    "micro_batch_size": 64,
}
_ONCE = {"measure_every": 59_968, "fraction_decrease": 2.0}  # in an epoch, as norm_test does

GRID = {
    # The rule: what each part of ABSA's does alone, and rules without a Hessian.
    "timer": {"method": "timer"},
    "eigenvalue_alone": {"method": "absa", "patience": 0},
    "fixed": {"method": "fixed", "grow_epochs": (5, 15, 25, 35, 45, 55, 65)},  # as ABSA grew, not measured
    "gns": {"method": "gns", **_GRADIENT, **_ONCE},
    "norm_test": {"method": "norm_test", **_GRADIENT},
    # The examples: every rule with a fifth of each batch adversarial to the end.
    "bl_kept": {"method": "bl", **_KEPT},
    "gg_kept": {"method": "gg", **_KEPT},
    "absa_kept": {"method": "absa", **_KEPT},
    "timer_kept": {"method": "timer", **_KEPT},
    "stability_kept": {**_STABILITY, **_KEPT},
    # The measurement: eigenvalues of fewer and of more images than 512.
    "absa_128_images": {"method": "absa", "hessian_batch_size": 128},
    "absa_4096_images": {"method": "absa", "hessian_batch_size": 4096},
    # The learning rate: held, or growing with the square root of the batch.
    "absa_rate_held": {"method": "absa", "lr_coupling": "none"},
    "absa_rate_sqrt": {"method": "absa", "lr_coupling": "sqrt"},
    # The rest of the square of rules and examples.
    "stability": _STABILITY,
    "stability_clean": {**_STABILITY, "adversarial_fraction": 0.0},
    "bl": {"method": "bl"},
    "gg": {"method": "gg"},
}
