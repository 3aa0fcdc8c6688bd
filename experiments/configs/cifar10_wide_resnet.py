"""CIFAR-10 with Wide-ResNet-16-4, 90 epochs, every method and column of the slides.

    python experiments/run.py cifar10_wide_resnet --data_dir DIR

For a GPU. Settings as in cifar10_resnet20; the updates that must come out are planned in results/slides.
"""

from experiments.slides import runs

SLIDES = ("cifar10", "wide_resnet16_4", 50_000)
SEEDS = (0,)
BASE = {"dataset": "cifar10", "model": "wide_resnet16_4", "epochs": 90, "epsilon": 0.005, "pgd_steps": 20}
GRID = runs((640, 3200, 5120, 10240, 16000))
