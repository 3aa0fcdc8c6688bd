"""A rule without tuning: how large a step is stable enough, chosen on 10,000 images held out from training.

    python experiments/run.py go_beyond --data_dir DIR --jobs 2

The number is the threshold of the rule `stability`, the bound on eigenvalue times learning rate. A fifth
of each batch is adversarial to the end. ABSA and BL beside it; the validation columns choose, the test
set reports.
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
    "validation_examples": 10_000,
    "micro_batch": "auto",
}

_KEPT = {"fraction_decrease": 1.0, "adversarial_epochs": 90}

_QUARTER = {"measure_every": 12_480}  # four measurements per epoch, the first after a quarter

_EARLY = {"lr_decay_epochs": (20, 50, 75)}  # the phase of the large rate holds most of the updates

GRID = {
    **{
        f"stability_{threshold}": {"method": "stability", "threshold": threshold, **_KEPT}
        for threshold in (1.0, 1.25, 1.5, 2.0)
    },
    **{
        f"stability_{threshold}_early": {"method": "stability", "threshold": threshold, **_KEPT, **_EARLY}
        for threshold in (0.75, 1.0, 1.25)
    },
    **{
        f"stability_{threshold}_quarter": {"method": "stability", "threshold": threshold, **_KEPT, **_QUARTER}
        for threshold in (0.75, 1.0, 1.25, 1.5)
    },
    **{
        f"stability_{threshold}_fine": {
            "method": "stability", "threshold": threshold, "growth_factor": 1.25, **_KEPT,
        }
        for threshold in (1.25, 1.5, 2.0)
    },
    "stability_1.25_early_to_4096": {
        "method": "stability", "threshold": 1.25, **_KEPT, **_EARLY, "max_batch_size": 4096,
    },
    "stability_1.25_early_more": {
        "method": "stability", "threshold": 1.25, **_KEPT, **_EARLY, "adversarial_fraction": 0.4,
    },
    "stability_1.5_more": {"method": "stability", "threshold": 1.5, **_KEPT, "adversarial_fraction": 0.4},
    "stability_1.0_4096_images": {
        "method": "stability", "threshold": 1.0, "hessian_batch_size": 4096, **_KEPT,
    },
    "stability_1.0_more": {"method": "stability", "threshold": 1.0, **_KEPT, "adversarial_fraction": 0.4},
    "stability_2.0_sqrt": {"method": "stability", "threshold": 2.0, "lr_coupling": "sqrt", **_KEPT},
    "absa": {"method": "absa"},
    "bl_kept": {"method": "bl", **_KEPT},
}  # fmt: skip
