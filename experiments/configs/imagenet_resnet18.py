"""ImageNet with ResNet-18, 90 epochs from batches of 256; GG without a largest batch, as the slides count it.

    python experiments/run.py imagenet_resnet18 --data_dir DIR

For GPUs. The slides give a time table alone (450,450 updates of BL, 166,216 of GG, 66,000 of ABS and ABSA), and
no largest batch for ABS and ABSA: 16,384 here. Epsilon is not known for certain.
"""

from experiments.slides import runs

SLIDES = ("imagenet", "resnet18", 1_281_167)
SEEDS = (0,)
BASE = {
    "dataset": "imagenet2012",
    "model": "resnet18",
    "image_size": 224,
    "augment": "resized_crop",
    "epochs": 90,
    "lr_decay": 0.1,
    "weight_decay": 1e-4,
    "epsilon": 0.005,
    "pgd_steps": 20,
}
GRID = {**runs((4096, 16384), smallest=256), **runs((256_000,), smallest=256, methods=("gg",))}
