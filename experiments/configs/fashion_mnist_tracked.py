"""Dominant eigenvalue and norm of the total gradient by epoch, of a plain and of a robust network.

    python experiments/run.py fashion_mnist_tracked --data_dir DIR

Batches of 128 without and with a fifth of adversarial examples to the end, and ABSA up to 16,000.
"""

SEEDS = (0,)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "epochs": 90,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "track": "eigenvalue,gradient_norm",
    "micro_batch": "auto",
}
GRID = {
    "plain": {"method": "bl"},
    "robust": {"method": "bl", "adversarial_fraction": 0.2, "adversarial_epochs": 90},
    "absa": {"method": "absa", "max_batch_size": 16000},
}
