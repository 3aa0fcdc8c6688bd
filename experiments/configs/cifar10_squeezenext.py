"""CIFAR-10 with 1.0-SqueezeNext-23, 200 epochs, every column of the slides (they print no FB).

    python experiments/run.py cifar10_squeezenext --data_dir DIR

For a GPU. The recipe of the PyTorch port that the authors link: decays at 60, 120 and 160, weight decay
5e-4, random crops and flips (pixels in [0, 1], not normalised). A patience of ten epochs allows fewer
updates than the slides print for 13 of 14 runs of ABS and ABSA; 34 epochs is the least that allows all of
them.
"""

from experiments.slides import runs

SLIDES = ("cifar10", "squeezenext23", 50_000)
SEEDS = (0,)
BASE = {
    "dataset": "cifar10",
    "model": "squeezenext23",
    "augment": "crop_flip",
    "epochs": 200,
    "lr_decay_epochs": (60, 120, 160),
    "weight_decay": 5e-4,
    "epsilon": 0.005,
    "pgd_steps": 20,
}
GRID = runs((256, 512, 1024, 2048, 4096, 8192, 16384), growing={"patience": 34})
