"""ResNet-20 with ABSA on CIFAR-10, as in the slides: batch 128 growing up to 128 times, no augmentation.

    python examples/cifar10.py                # TFDS downloads and prepares the data first (extra `prepare`)
    python examples/cifar10.py --data_dir DIR             # in DIR, or where DIR holds them already
    python examples/cifar10.py --dataset digits --epochs 2      # a machine without the data

Takes every flag of `hessabs train` (`--help` lists them): `--method bl` trains the baseline, `--max_batch_size
640` fills the first column of the slides' table. A flag given later wins over the settings below.
"""

import sys

from hessabs import cli

SLIDES = {
    "dataset": "cifar10",
    "model": "resnet20",
    "method": "absa",
    "epochs": 90,
    "batch_size": 128,
    "lr": 0.1,
    "lr_decay_epochs": "30,60,80",
    "lr_decay": 0.2,
    "momentum": 0.9,
    "workdir": "runs/cifar10",
}


if __name__ == "__main__":
    # The flags of the command line come last.
    cli.run(["train", *(f"--{name}={value}" for name, value in SLIDES.items()), *sys.argv[1:]])
