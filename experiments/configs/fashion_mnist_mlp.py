"""Fashion-MNIST with an MLP: the table of the slides, five methods by the largest batch, three seeds.

    python experiments/run.py fashion_mnist_mlp --data_dir DIR --jobs 2

DIR holds the set as TFDS prepares it (``make fashion-mnist`` does it). At a largest batch of 128 nothing can
grow and every method is BL (ABSA with adversarial examples besides: see the config hessian_worth).
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "epochs": 90,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "micro_batch": "auto",
}

_COLUMNS = (640, 3200, 5120, 10240, 16000)

GRID = {
    "bl_128": {"method": "bl"},
    **{f"bl_{column}": {"method": "bl", "batch_size": column} for column in _COLUMNS},
    **{
        f"{method}_{column}": {"method": method, "max_batch_size": column}
        for method in ("fb", "gg", "abs", "absa")
        for column in _COLUMNS
    },
}
