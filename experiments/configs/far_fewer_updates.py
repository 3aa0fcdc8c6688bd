"""How few updates the tuned baseline's accuracy and robustness need: Muon, more adversarial examples, growth.

    python experiments/run.py far_fewer_updates --data_dir DIR --jobs 2

The baseline is SGD with momentum at batch 128 with a tuned rate, a warm-up and linear decay to zero, a fifth of
each batch adversarial to the end, or half of it (``bl_half``). The others have half of each batch adversarial,
and a rate that was found for Muon at 4,096 and follows the root of the batch; the ``ramp`` runs of SGD have the
settings of the baseline of their name, and no other. 10,000 images are held out.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "method": "bl",
    "epsilon": 0.02,
    "pgd_steps": 20,
    "validation_examples": 10_000,
    "schedule": "linear",
    "micro_batch": "auto",
    "micro_batch_size": 128,
}

_HALF = {"optimizer": "muon", "adversarial_fraction": 0.5, "epochs": 30, "adversarial_epochs": 30}
_HALF |= {"warmup_epochs": 3.0}
_SEESAW = {**_HALF, "method": "seesaw", "fraction_decrease": 1.0, "max_batch_size": 32_768}
_SIXTY = {"epochs": 60, "adversarial_epochs": 60, "warmup_epochs": 6.0, "max_batch_size": 49_152}
_BL_HALF = {
    "batch_size": 128, "lr": 0.05, "epochs": 90, "warmup_epochs": 0.5, "adversarial_fraction": 0.5,
    "adversarial_epochs": 90,
}  # fmt: skip
_RAMP = {"method": "ramp", "max_batch_size": 16_384, "micro_batch": "fixed", "micro_batch_size": 64}

GRID = {
    "ramp_half_decay_5e-4": {**_BL_HALF, **_RAMP, "weight_decay": 5e-4},
    "ramp_muon_512": {**_HALF, **_RAMP, "batch_size": 512, "lr": 0.0035, "micro_batch_size": 256},
    "ramp_half": {**_BL_HALF, **_RAMP},
    "seesaw_4096": {**_SEESAW, "batch_size": 4096, "lr": 0.01},
    "muon_4096": {**_HALF, "batch_size": 4096, "lr": 0.01},
    "muon_8192": {**_HALF, "batch_size": 8192, "lr": 0.014},
    "bl": {
        "batch_size": 128, "lr": 0.1, "epochs": 90, "warmup_epochs": 0.5, "adversarial_fraction": 0.2,
        "adversarial_epochs": 90,
    },
    "bl_half": _BL_HALF,
    "bl_half_decay_1e-4": {**_BL_HALF, "weight_decay": 1e-4},
    "bl_half_decay_5e-4": {**_BL_HALF, "weight_decay": 5e-4},
    "seesaw_4096_decay_0.1": {**_SEESAW, "batch_size": 4096, "lr": 0.01, "weight_decay": 0.1},
    "seesaw_4096_decay_0.25": {**_SEESAW, "batch_size": 4096, "lr": 0.01, "weight_decay": 0.25},
    "seesaw_4096_decay_0.5": {**_SEESAW, "batch_size": 4096, "lr": 0.01, "weight_decay": 0.5},
    "seesaw_4096_decay_1.0": {**_SEESAW, "batch_size": 4096, "lr": 0.01, "weight_decay": 1.0},
    "seesaw_8192_60_decay_0.5": {**_SEESAW, **_SIXTY, "batch_size": 8192, "lr": 0.014, "weight_decay": 0.5},
    "seesaw_6144": {**_SEESAW, "batch_size": 6144, "max_batch_size": 30_720, "lr": 0.012},
    "seesaw_8192": {**_SEESAW, "batch_size": 8192, "lr": 0.014},
}  # fmt: skip
