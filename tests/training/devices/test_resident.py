"""A training set on the device: the batches, and so the run, have the bits of those made on the host."""

import jax
import numpy as np
import pytest

from hessabs.data import reader
from hessabs.training import Config, set_up, train
from hessabs.training.devices import resident


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
def test_batches_are_those_of_the_host(augmentation):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (50, 4, 4, 3), np.uint8), "label": np.arange(50, dtype=np.int32)}
    options = {"seed": 1, "keep_remainder": True, "augmentation": augmentation}
    here = reader(arrays, 8, **options)
    there = reader(arrays, 8, **options, gather=resident.on_device(arrays))
    for count in (1, 4, 2, 3, 4):  # the seventh micro-batch ends the epoch, filled up at weight 0
        (expected, after), (batch, position) = here(count), there(count)
        assert position == after
        assert batch.keys() == expected.keys()
        for name, array in expected.items():
            assert isinstance(batch[name], jax.Array | np.ndarray)
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


def test_a_run_ends_with_the_bits_of_one_that_reads_from_the_host():
    config = Config(dataset="digits", method="gg", epochs=3, max_batch_size=512, lr_decay_epochs=(1,))
    config = config._replace(micro_batch="auto")
    host = set_up(config)
    assert host.gather is None  # on a CPU
    there = set_up(config)._replace(gather=resident.on_device(host.dataset.train))
    results = train(host), train(there)
    for one, other in zip(*(jax.tree.leaves(result.params) for result in results), strict=True):
        np.testing.assert_array_equal(one, other)
    assert results[0].summary["compilations"] == results[1].summary["compilations"]


def test_a_set_lies_on_an_accelerator_if_it_fits(monkeypatch):
    arrays = {"label": np.zeros(1000, np.int32)}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    limits = iter([{"bytes_limit": 16_000}, {"bytes_limit": 15_999}, None])

    class Device:
        def memory_stats(self):
            return next(limits)

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert resident.make_gather(arrays) is not None
    assert resident.make_gather(arrays) is None
    assert resident.make_gather(arrays) is None  # nothing is known of its memory
