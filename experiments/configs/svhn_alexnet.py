"""SVHN (531,131 images, its split "extra") with AlexNet, 20 epochs, every method and column of the slides.

    python experiments/run.py svhn_alexnet --data_dir DIR

For a GPU. Three measurements an epoch: with one, even the earliest growth gives more updates than the
slides print for 7 of the 10 runs of ABS and ABSA. The learning rate (0.01) and epsilon are not known for
certain.
"""

from experiments.slides import runs

SLIDES = ("svhn", "alexnet", 531_131)
SEEDS = (0,)
BASE = {
    "dataset": "svhn_cropped",
    "train_split": "extra",
    "model": "alexnet_svhn",
    "epochs": 20,
    "lr": 0.01,
    "lr_decay_epochs": (10, 15),
    "epsilon": 0.005,
    "pgd_steps": 20,
}
GRID = runs(
    (512, 2048, 8192, 32768, 131072), two_decays=0.2, growing={"measure_every": 531_131 // 128 * 128 // 3}
)
