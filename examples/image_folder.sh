#!/usr/bin/env bash
# A folder of images, a sub-folder for each class: train on it, look at the curvature, attack it, predict.
#
#     examples/image_folder.sh [FOLDER]    # for what it writes; runs/image_folder if not given
#
# The images are scikit-learn's digits, written as PNG files in the first step. With a folder of your own leave that
# step out, and let --resize N bring images of several sizes to one.
set -euo pipefail
folder=${1:-runs/image_folder}

# FOLDER/images/CLASS/NUMBER.png; every fifth image of a class is held out for the test.
python - "$folder/images" <<'PYTHON'
import pathlib, sys
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (image, label) in enumerate(zip(digits.images, digits.target)):
    path = pathlib.Path(sys.argv[1], f"digit_{label}", f"{number:04d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(image * 255 / 16)).save(path)
PYTHON

# Batches grow from 32 to 256 by ABSA. The network may be a file of your own: --model net.py:factory.
hessabs train --dataset "folder:$folder/images" --model mlp --batch_size 32 --max_batch_size 256 --patience 3 \
  --epochs 10 --lr_decay_epochs 7 --lr 0.03 --epsilon 0.05 --workdir "$folder/run" --overwrite

# The commands below know network and data from the run.
hessabs spectrum --workdir "$folder/run" --top 5 --density --num_examples 512
hessabs attack --workdir "$folder/run" --attack pgd --epsilon 0.02,0.05 --num_examples 200
# Both are held out.
hessabs predict --workdir "$folder/run" "$folder"/images/digit_3/0003.png "$folder"/images/digit_7/0007.png
