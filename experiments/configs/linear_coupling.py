"""Whether a growing batch is worth more where the rate of AdamW and Muon grows linearly with it.

    python experiments/run.py linear_coupling --data_dir DIR

The settings are those of the MLP's frontier with 10 epochs, a fifth of every batch adversarial to the end, and
the rates that are the best there for a constant batch of the first size. There the rate follows the square root
of a batch that grows, the default of both optimisers; here it follows the batch. 10,000 images are held out.
"""

SEEDS = (0, 1, 2)
BASE = {
    "dataset": "fashion_mnist",
    "model": "mlp",
    "epochs": 10,
    "adversarial_epochs": 10,
    "adversarial_fraction": 0.2,
    "fraction_decrease": 1.0,
    "epsilon": 0.02,
    "pgd_steps": 20,
    "validation_examples": 10_000,
    "schedule": "linear",
    "warmup_epochs": 1.0,
    "max_batch_size": 16_384,
    "lr_coupling": "linear",
}


def _first(optimizer: str, batch: int, lr: float) -> dict[str, object]:
    return {"optimizer": optimizer, "batch_size": batch, "micro_batch_size": batch // 2, "lr": lr}


_ADAMW_128 = _first("adamw", 128, 0.0015)
_ADAMW_256 = _first("adamw", 256, 0.00212)
_ADAMW_512 = _first("adamw", 512, 0.006)
_MUON_512 = _first("muon", 512, 0.005)
_MUON_1024 = _first("muon", 1024, 0.0141)
_MUON_2048 = _first("muon", 2048, 0.01)
_MUON_8192 = _first("muon", 8192, 0.04)

GRID = {
    "ramp_adamw_128": {**_ADAMW_128, "method": "ramp"},
    "ramp_adamw_256": {**_ADAMW_256, "method": "ramp"},
    "ramp_adamw_512": {**_ADAMW_512, "method": "ramp"},
    "ramp_adamw_128_guard": {**_ADAMW_128, "method": "ramp", "guard": 2.0},
    "ramp_adamw_256_guard": {**_ADAMW_256, "method": "ramp", "guard": 2.0},
    "ramp_muon_512": {**_MUON_512, "method": "ramp"},
    "seesaw_adamw_256": {**_ADAMW_256, "method": "seesaw"},
    "ramp_muon_2048": {**_MUON_2048, "method": "ramp"},
    "ramp_muon_1024": {**_MUON_1024, "method": "ramp"},
    "seesaw_muon_2048": {**_MUON_2048, "method": "seesaw"},
    "seesaw_muon_8192": {**_MUON_8192, "method": "seesaw"},
}
