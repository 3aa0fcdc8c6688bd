"""Whether an average of the params can take the place of a rate that falls, with and without growth.

    python experiments/run.py averages --data_dir DIR

The settings are those of the MLP's frontier with 10 epochs, a fifth of every batch adversarial to the end, and
the rates that are the best there for a constant batch of the first size with a linear decay to zero. Here the
rate stays, after the warm-up, and an exponential moving average of the params is evaluated beside them; its
half-life is a quarter of an epoch or a whole one. 10,000 images are held out.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "method": "bl",
    "epochs": 10,
    "adversarial_epochs": 10,
    "adversarial_fraction": 0.2,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "validation_examples": 10_000,
    "schedule": "constant",
    "warmup_epochs": 1.0,
    "ema": 12_500,
}

_RAMP = {"method": "ramp", "max_batch_size": 16_384, "fraction_decrease": 1.0}
_SGD_128 = {"batch_size": 128, "micro_batch_size": 64, "lr": 0.05}
_MUON_2048 = {"optimizer": "muon", "batch_size": 2048, "micro_batch_size": 1024, "lr": 0.01}

GRID = {
    "sgd_128_quarter": _SGD_128,
    "sgd_128_whole": {**_SGD_128, "ema": 50_000},
    "ramp_sgd_128_quarter": {**_SGD_128, **_RAMP},
    "muon_2048_quarter": _MUON_2048,
    "muon_2048_whole": {**_MUON_2048, "ema": 50_000},
}
