"""Fashion-MNIST with a small convolutional network of the C family: ABSA, GG and BL by the largest batch.

    python experiments/run.py fashion_mnist_c1 --data_dir DIR --jobs 2

A third of the epochs of the MLP's table, and so a third of its decay epochs and of kappa: 30 epochs,
decays after 10, 20 and 27, a patience of 3 epochs, adversarial examples until epoch 15.
"""

from experiments.slides import runs

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "c1_small",
    "epochs": 30,
    "lr_decay_epochs": (10, 20, 27),
    "patience": 3,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "micro_batch": "auto",
}
_KEPT = {"adversarial_fraction": 0.2, "fraction_decrease": 1.0, "adversarial_epochs": 30}
GRID = {
    **runs((1024, 4096, 16384), methods=("absa", "gg", "bl")),
    "stability_kept_16384": {"method": "stability", "threshold": 2.0, "max_batch_size": 16384, **_KEPT},
    "stability_1.25_fine_kept_16384": {
        "method": "stability", "threshold": 1.25, "growth_factor": 1.25, "max_batch_size": 16384, **_KEPT,
    },
    "bl_kept_128": {"method": "bl", **_KEPT},
}  # fmt: skip
