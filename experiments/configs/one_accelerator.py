"""How long training takes on one accelerator: BL against the methods whose batch grows, one run at a time.

    python experiments/run.py one_accelerator --data_dir DIR

Give it a machine of its own, with JAX_COMPILATION_CACHE_DIR set and a first pass (--smoke) made: the seconds
are then those of training, not of XLA's compilation.
"""

SEEDS = (0, 1, 2)
ALONE = True
BASE = {"dataset": "fashion_mnist", "epsilon": 0.02, "pgd_steps": 20, "micro_batch": "auto"}
_MLP = {"model": "mlp", "epochs": 90}
_CNN = {"model": "c1_small", "epochs": 30, "lr_decay_epochs": (10, 20, 27), "patience": 3}

GRID = {
    "mlp_bl": {**_MLP, "method": "bl"},
    "mlp_gg": {**_MLP, "method": "gg", "max_batch_size": 16000},
    "mlp_abs": {**_MLP, "method": "abs", "max_batch_size": 16000},
    "mlp_absa": {**_MLP, "method": "absa", "max_batch_size": 16000},
    "cnn_bl": {**_CNN, "method": "bl"},
    "cnn_gg": {**_CNN, "method": "gg", "max_batch_size": 16384},
    "cnn_abs": {**_CNN, "method": "abs", "max_batch_size": 16384},
    "cnn_absa": {**_CNN, "method": "absa", "max_batch_size": 16384},
}
