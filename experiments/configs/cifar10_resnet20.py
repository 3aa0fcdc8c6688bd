"""CIFAR-10 with ResNet-20 (the "ResNet-18" of the slides), 90 epochs, every method and column of the slides.

    python experiments/run.py cifar10_resnet20 --data_dir DIR

For a GPU. No augmentation and no weight decay, pixels in [0, 1], as in the authors' code; batch norm sees 128
images (ghost batch norm). The updates that must come out are planned in results/slides.
"""

from experiments.slides import runs

SLIDES = ("cifar10", "resnet18", 50_000)
SEEDS = (0,)
BASE = {"dataset": "cifar10", "model": "resnet20", "epochs": 90, "epsilon": 0.005, "pgd_steps": 20}
GRID = runs((640, 3200, 5120, 10240, 16000))
