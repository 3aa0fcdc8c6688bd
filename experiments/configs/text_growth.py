"""Growth on text, as the rate falls and with the gradient's noise: updates that a transformer needs for a loss.

    python experiments/run.py text_growth --jobs 2

One pass over the source of Python's standard library in sequences of 64 characters; the rate of Muon follows
the root of the batch from 0.02 (``_low``: 0.01) at 64. 2,000 sequences are held out.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "stdlib",
    "model": "char_transformer_small",
    "method": "bl",
    "optimizer": "muon",
    "epochs": 1,
    "schedule": "linear",
    "warmup_epochs": 0.1,
    "micro_batch_size": 16,
    "clip": 1.0,
    "weight_decay": 0.1,
    "hessian_batch_size": 32,
    "validation_examples": 2000,
}

_SEESAW = {"method": "seesaw", "max_batch_size": 1024}
_RAMP = {"method": "ramp", "max_batch_size": 1024}

GRID = {
    "ramp_64": {**_RAMP, "batch_size": 64, "lr": 0.02},
    "ramp_128": {**_RAMP, "batch_size": 128, "lr": 0.028},
    "seesaw_64": {**_SEESAW, "batch_size": 64, "lr": 0.02},
    "seesaw_128": {**_SEESAW, "batch_size": 128, "lr": 0.028},
    "muon_128": {"batch_size": 128, "lr": 0.028},
    "muon_64": {"batch_size": 64, "lr": 0.02},
    "adamw_16": {"optimizer": "adamw", "batch_size": 16, "lr": 0.006},
    "muon_64_low": {"batch_size": 64, "lr": 0.01},
    "seesaw_64_low": {**_SEESAW, "batch_size": 64, "lr": 0.01},
    "seesaw_32": {**_SEESAW, "batch_size": 32, "lr": 0.014},
    "muon_16": {"batch_size": 16, "lr": 0.01},
    "seesaw_adamw_16": {**_SEESAW, "optimizer": "adamw", "batch_size": 16, "lr": 0.006},
}
