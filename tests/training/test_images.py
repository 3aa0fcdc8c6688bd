"""Images that are decoded when they are used, and augmented on the device, from disk to a trained network."""

import jax
import numpy as np
import pytest

from hessabs.data import crop_flip
from hessabs.training import fit
from hessabs.training.assemble import assemble
from hessabs.training.tasks.common import scale_images

SIZE = 16


def test_the_shift_that_the_stream_drew_is_applied_before_images_are_scaled():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    shift = np.stack([rng.integers(0, 9, 6), rng.integers(0, 9, 6), rng.integers(0, 2, 6)], axis=1)
    got = jax.jit(scale_images)({"image": image, "shift": shift, "label": np.arange(6)})
    assert sorted(got) == ["image", "label"]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0)))
    want = [padded[i, y : y + 8, x : x + 8][:, :: -1 if flip else 1] for i, (y, x, flip) in enumerate(shift)]
    np.testing.assert_allclose(got["image"], np.stack(want) / 255, rtol=1e-6)
    np.testing.assert_array_equal(crop_flip(image, shift), np.stack(want))


@pytest.mark.slow
def test_a_run_on_crops_of_images_that_stay_on_disk(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
    pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")
    from tests.data.test_from_disk import TRAIN, write_imagenet

    write_imagenet(tmp_path)
    settings = {"dataset": "imagenet2012", "data_dir": str(tmp_path), "image_size": SIZE, "model": "mlp"}
    run = {"augment": "resized_crop", "method": "bl", "epochs": 2, "batch_size": 8, "micro_batch_size": 4}
    parts = assemble({**settings, **run, "lr_decay_epochs": (), "lr": 0.01})
    assert len(parts.task.train) == TRAIN
    result = fit(parts.task, parts.optimizer, parts.rule, **parts.options)
    assert result.summary["updates"] == 2 * (TRAIN // 4) // 2 == 3
    assert all(np.isfinite([line["train_loss"], line["test_loss"]]).all() for line in result.records)
    assert result.summary["eigenvalue"] > 0
