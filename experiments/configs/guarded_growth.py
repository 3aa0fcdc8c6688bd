"""What a guard of the learning rate is worth where the batch is large or grows: SGD with the frontier's rates.

    python experiments/run.py guarded_growth --data_dir DIR

The settings are those of the MLP's frontier with 10 epochs, a fifth of every batch adversarial to the end, and
the rates that are the best there without a guard, at 2,048 four times it. 10,000 images are held out.
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
    "schedule": "linear",
    "warmup_epochs": 1.0,
    "guard": 2.0,
}

_RAMP = {"method": "ramp", "max_batch_size": 16_384, "fraction_decrease": 1.0}
_CONSTANT = {"micro_batch": "auto"}

GRID = {
    "ramp_1024": {**_RAMP, "batch_size": 1024, "micro_batch_size": 512, "lr": 0.566},
    "sgd_1024": {**_CONSTANT, "batch_size": 1024, "micro_batch_size": 1024, "lr": 0.566},
    "sgd_2048": {**_CONSTANT, "batch_size": 2048, "micro_batch_size": 1024, "lr": 0.8},
    "ramp_512": {**_RAMP, "batch_size": 512, "micro_batch_size": 256, "lr": 0.2},
    "ramp_128": {**_RAMP, "batch_size": 128, "micro_batch_size": 64, "lr": 0.05},
}
