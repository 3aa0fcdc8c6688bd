"""ImageNet with AlexNet, 90 epochs from batches of 256.

    python experiments/run.py imagenet_alexnet --data_dir DIR

For GPUs. The slides show these results in a picture only; learning rate (0.01), decays, columns and epsilon are
this project's choice, after its ResNet-18.
"""

from experiments.slides import runs

SLIDES = ("imagenet", "alexnet", 1_281_167)
SEEDS = (0,)
BASE = {
    "dataset": "imagenet2012",
    "model": "alexnet",
    "image_size": 224,
    "augment": "resized_crop",
    "epochs": 90,
    "lr": 0.01,
    "lr_decay": 0.1,
    "weight_decay": 5e-4,
    "epsilon": 0.005,
    "pgd_steps": 20,
}
GRID = runs((4096, 16384), smallest=256)
