"""Tiny ImageNet with ResNet-50, 120 epochs, every column of the slides (they print no ABS).

    python experiments/run.py tiny_imagenet_resnet50 --data_dir DIR

For GPUs. Decays of 0.1 at 60 and 90, random crops and flips. The updates that they print for ABSA need a
patience above 35 epochs: 40 here. Epsilon is not known for certain.
"""

from experiments.slides import runs

SLIDES = ("tiny_imagenet", "resnet50", 100_000)
SEEDS = (0,)
BASE = {
    "dataset": "tiny_imagenet",
    "model": "resnet50_tiny",
    "augment": "crop_flip",
    "epochs": 120,
    "lr_decay_epochs": (60, 90),
    "lr_decay": 0.1,
    "epsilon": 0.005,
    "pgd_steps": 20,
}
GRID = runs((256, 512, 1024, 2048, 4096, 8192, 16384), two_decays=0.1, growing={"patience": 40})
