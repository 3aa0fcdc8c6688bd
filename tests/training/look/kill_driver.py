"""Looks at a small run in a process of its own, to be killed: ``kill_driver.py spectrum|attack FOLDER``."""

import pathlib
import sys

from hessabs.training.look import attack, spectrum
from tests.training.look import kinds

SPECTRUM = spectrum.Options(
    top=3, num_examples=60, batch_size=5, rtol=1e-6, max_matvecs=60, block="last", save_seconds=0.0
)
ATTACK = attack.Options(("fgsm", "pgd"), (0.1,), steps=5, restarts=2, num_examples=80, batch_size=8)


def look(command, folder):
    """Do all of it."""
    if command == "spectrum":
        return spectrum.spectrum(*kinds.images()[:3], folder, SPECTRUM)
    return attack.attack(*kinds.images()[:3], folder, ATTACK)


if __name__ == "__main__":
    look(sys.argv[1], pathlib.Path(sys.argv[2]))
