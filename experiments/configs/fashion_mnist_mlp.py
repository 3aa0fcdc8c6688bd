"""Fashion-MNIST with an MLP: one small batch against a growing one, three seeds.

    python experiments/run.py fashion_mnist_mlp --data_dir DIR

DIR holds the set as TFDS prepares it (``make fashion-mnist`` does it). About 20 minutes on two CPU cores.
"""

from typing import Any

from hessabs.training import Config

BASE = Config(dataset="fashion_mnist", model="mlp", epochs=90, epsilon=0.02)

GRID: dict[str, dict[str, Any]] = {
    "bl_128": {"method": "bl"},
    "absa_4096": {"method": "absa", "max_batch_size": 4096},
    "absa_16384": {"method": "absa", "max_batch_size": 16384},
}

RUNS = {
    f"{label}/seed{seed}": BASE._replace(seed=seed, **settings)
    for seed in range(3)
    for label, settings in GRID.items()
}
