"""A training set on the device: the batches, and so the run, have the bits of those made on the host."""

import jax
import numpy as np
import pytest

from hessabs.data import Arrays, reader
from hessabs.training import resident, run
from hessabs.training.loop import train
from tests.training.runs import MICRO, bits, make_run

pytestmark = pytest.mark.sampled


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


@pytest.mark.slow
def test_a_run_ends_with_the_bits_of_one_that_reads_from_the_host(monkeypatch):
    def go():
        settings = {"method": "gg", "epochs": 3, "lr_decay_epochs": (1,), "max_batch_size": 8 * MICRO}
        return train(make_run(**settings, micro_batch="auto"))

    host, asked = go(), []
    assert host.records[-1]["batch_size"] == 8 * MICRO

    def on_device(source, mesh):
        asked.append(mesh)
        return resident.on_device(source.arrays)

    monkeypatch.setattr(run, "make_gather", on_device)
    there = go()
    assert asked
    assert bits(there.params) == bits(host.params)
    assert there.summary["compilations"] == host.summary["compilations"]


def test_a_set_lies_on_an_accelerator_if_it_fits(monkeypatch):
    source = Arrays({"label": np.zeros(1000, np.int32)})
    assert resident.make_gather(source) is None  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    limits = iter([{"bytes_limit": 16_000}, {"bytes_limit": 15_999}, None])

    class Device:
        def memory_stats(self):
            return next(limits)

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert resident.make_gather(source) is not None
    assert resident.make_gather(source) is None
    assert resident.make_gather(source) is None  # nothing is known of its memory
