"""The stream: a function of seed and position alone, with batches of one size."""

import itertools

import numpy as np
import pytest

from hessabs.data import (
    Position,
    Source,
    epoch_order,
    eval_batches,
    micro_batches,
    micro_batches_per_epoch,
    reader,
)


def arrays(n):
    image = np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3)
    return {"image": image, "label": np.arange(n, dtype=np.int32)}


def take(stream, count):
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_epoch_order_is_a_permutation(n):
    order = epoch_order(3, 5, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_epoch_order_depends_on_seed_and_epoch_alone():
    expected = epoch_order(3, 5, 100)
    np.random.seed(1)  # noqa: NPY002  the global generator must not matter
    np.testing.assert_array_equal(epoch_order(3, 5, 100), expected)
    np.testing.assert_array_equal(epoch_order(np.int64(3), np.int32(5), 100), expected)
    others = [epoch_order(3, 6, 100), epoch_order(4, 5, 100), epoch_order(5, 3, 100)]
    assert not any(np.array_equal(other, expected) for other in others)


def test_epoch_order_is_uniform():
    # Each of 4 places holds each of 4 examples 1,000 times in 4,000 epochs; sd 27, so 5 sd is 137.
    orders = np.stack([epoch_order(0, epoch, 4) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=4) for column in orders.T])
    np.testing.assert_allclose(counts, 1000, atol=137)


@pytest.mark.parametrize("draw", [lambda n: np.arange(n)[::-1] * 7, lambda n: np.arange(n) % 3])
def test_epoch_order_is_that_of_a_stable_sort(monkeypatch, draw):
    class Philox:
        def __init__(self, seed):
            del seed

        def random_raw(self, n):
            return draw(n).astype(np.uint64)

    monkeypatch.setattr(np.random, "Philox", Philox)
    np.testing.assert_array_equal(epoch_order(0, 0, 1000), np.argsort(draw(1000), kind="stable"))


@pytest.mark.parametrize("bad", [(-1, 0, 4), (0, -1, 4), (0, 0, -1)])
def test_epoch_order_refuses_negatives(bad):
    with pytest.raises(ValueError, match=r"must be at least 0, got -1"):
        epoch_order(*bad)


@pytest.mark.parametrize(
    ("n", "size", "dropped", "kept"),
    [(50_000, 128, 390, 391), (8, 4, 2, 2), (5, 5, 1, 1), (7, 1, 7, 7)],
)
def test_micro_batches_per_epoch(n, size, dropped, kept):
    assert micro_batches_per_epoch(n, size) == dropped
    assert micro_batches_per_epoch(n, size, keep_remainder=True) == kept


@pytest.mark.parametrize("size", [0, -3, 11])
def test_size_out_of_range_shows_both(size):
    message = rf"`size` must lie in \[1, the number of examples=10\], got {size}\."
    with pytest.raises(ValueError, match=message):
        micro_batches_per_epoch(10, size)
    with pytest.raises(ValueError, match=message):
        micro_batches(arrays(10), size, seed=0)


@pytest.mark.parametrize("keep_remainder", [False, True])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (9, 3), (4, 4), (5, 4), (3, 1)])
def test_shapes_dtypes_and_positions(n, size, keep_remainder):
    per_epoch = micro_batches_per_epoch(n, size, keep_remainder)
    stream = micro_batches(arrays(n), size, seed=0, keep_remainder=keep_remainder)
    for i, (batch, position) in enumerate(take(stream, 2 * per_epoch + 1)):
        assert set(batch) == {"image", "label", "weight"}
        assert batch["image"].shape == (size, 2, 2, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].shape == batch["weight"].shape == (size,)
        assert batch["label"].dtype == np.int32
        assert batch["weight"].dtype == np.float32
        assert position == Position(*divmod(i + 1, per_epoch))
        np.testing.assert_array_equal(batch["image"], arrays(n)["image"][batch["label"]])


def test_remainder_is_dropped():
    batches = take(micro_batches(arrays(10), 4, seed=2), 4)
    for epoch in range(2):
        labels = np.concatenate([b["label"] for b, _ in batches[2 * epoch : 2 * epoch + 2]])
        np.testing.assert_array_equal(labels, epoch_order(2, epoch, 10)[:8])
    assert all((b["weight"] == 1).all() for b, _ in batches)


def test_remainder_is_kept_at_weight_zero():
    batches = take(micro_batches(arrays(10), 4, seed=2, keep_remainder=True), 6)
    for epoch in range(2):
        order = epoch_order(2, epoch, 10)
        part = [b for b, _ in batches[3 * epoch : 3 * epoch + 3]]
        labels = np.concatenate([b["label"] for b in part])
        weights = np.concatenate([b["weight"] for b in part])
        np.testing.assert_array_equal(labels, np.concatenate([order, order[:2]]))
        np.testing.assert_array_equal(weights, [1] * 10 + [0] * 2)


@pytest.mark.parametrize("keep_remainder", [False, True])
def test_resume_from_any_position(keep_remainder):
    def labels(items):
        return [(b["label"].tolist(), b["weight"].tolist(), p) for b, p in items]

    def start(**kwargs):
        return micro_batches(arrays(11), 3, seed=7, keep_remainder=keep_remainder, **kwargs)

    whole = take(start(), 13)
    for i, (_, position) in enumerate(whole):
        rest = take(start(position=position), 12 - i)
        assert labels(rest) == labels(whole[i + 1 :])
    plain = (0, 0)  # as a checkpoint may give it back
    assert labels(take(start(position=plain), 2)) == labels(whole[:2])


@pytest.mark.parametrize("position", [(-1, 0), (0, -1), (0, 3), (2, 4)])
def test_position_out_of_range(position):
    with pytest.raises(ValueError, match=r"`position` must have .*\[0, 3\).*got Position\(epoch="):
        micro_batches(arrays(10), 3, seed=0, position=Position(*position))


def test_negative_seed():
    with pytest.raises(ValueError, match=r"`seed` must be at least 0, got -1"):
        micro_batches(arrays(10), 3, seed=-1)


@pytest.mark.parametrize(
    "function",
    [lambda a: micro_batches(a, 2, seed=0), lambda a: eval_batches(a, 2)],
    ids=["train", "eval"],
)
def test_bad_arrays(function):
    with pytest.raises(ValueError, match=r"same leading size, got {'image': 4, 'label': 3}"):
        function({"image": np.zeros(4), "label": np.zeros(3)})
    with pytest.raises(ValueError, match=r"must not hold 'weight'"):
        function({"image": np.zeros(4), "weight": np.zeros(4)})


@pytest.mark.parametrize("size", [1, 3, 5, 10, 32])
def test_eval_batches_visit_each_once_in_order(size):
    batches = list(eval_batches(arrays(10), size))
    assert len(batches) == -(-10 // size)
    assert all(b["image"].shape == (size, 2, 2, 3) for b in batches)
    weight = np.concatenate([b["weight"] for b in batches])
    label = np.concatenate([b["label"] for b in batches])
    assert weight.dtype == np.float32
    assert weight.sum() == 10
    np.testing.assert_array_equal(label[weight == 1], np.arange(10))
    assert (weight[10:] == 0).all()


def test_eval_batches_errors():
    with pytest.raises(ValueError, match=r"`size` must be at least 1, got 0"):
        eval_batches(arrays(10), 0)
    with pytest.raises(ValueError, match=r"at least one example"):
        eval_batches(arrays(0), 1)


@pytest.mark.parametrize("keep_remainder", [False, True])
def test_reading_several_at_once_changes_neither_order_nor_position(keep_remainder):
    options = {"seed": 7, "keep_remainder": keep_remainder}
    per_epoch = micro_batches_per_epoch(23, 3, keep_remainder)
    singles = take(micro_batches(arrays(23), 3, **options), 2 * per_epoch)
    rng, position, at = np.random.default_rng(0), Position(0, 0), 0
    read = reader(arrays(23), 3, **options)
    while at < 2 * per_epoch:
        count = int(rng.integers(1, per_epoch - position.index + 1))
        again, _ = reader(arrays(23), 3, position=position, **options)(count)
        batch, position = read(count)
        for name in batch:
            want = np.concatenate([single[name] for single, _ in singles[at : at + count]])
            np.testing.assert_array_equal(batch[name], want)
            np.testing.assert_array_equal(again[name], want)
        at += count
        assert position == singles[at - 1][1]


@pytest.mark.parametrize("count", [0, 3])
def test_reading_beyond_an_epoch(count):
    read = reader(arrays(10), 3, seed=0, position=Position(4, 1))
    with pytest.raises(ValueError, match=rf"lie in \[1, micro-batches left in the epoch=2\], got {count}"):
        read(count)


@pytest.mark.parametrize(("n", "size"), [(5000, 128), (5000, 700), (6100, 2048), (9000, 3000), (4100, 1)])
def test_reader_reads_what_the_order_says_however_it_gathers(n, size):
    data = {"label": np.arange(n, dtype=np.int32)}
    per_epoch = micro_batches_per_epoch(n, size)
    rng = np.random.default_rng(0)
    read, position = reader(data, size, seed=4), Position(0, 0)
    for _ in range(60):
        count = int(rng.integers(1, min(20, per_epoch - position.index) + 1))
        start = position.index * size
        expected = epoch_order(4, position.epoch, n)[start : start + count * size]
        batch, position = read(count)
        np.testing.assert_array_equal(batch["label"], expected)
        assert batch["weight"].shape == (count * size,)
        assert (batch["weight"] == 1).all()
    assert position.epoch > 0 or size == 1


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_could_not_be_read_is_what_is_read_next(in_memory):
    class Flaky(Source):
        failures = 1

        def __len__(self):
            return 8192

        def take(self, indices):
            if self.failures and 7 in indices:
                self.failures -= 1
                raise OSError("the disk is away")
            return {"number": np.asarray(indices)}

    source = Flaky()
    source.in_memory = in_memory
    read, plain = reader(source, 1024, seed=0), reader({"number": np.arange(8192)}, 1024, seed=0)
    failed = 0
    for _ in range(8):
        try:
            batch, position = read(1)
        except OSError:
            failed += 1
            batch, position = read(1)
        want, after = plain(1)
        np.testing.assert_array_equal(batch["number"], want["number"])
        assert position == after
    assert failed == 1


def test_what_the_stream_makes_is_no_name_of_a_source():
    images = {"image": np.zeros((2, 4, 4, 1), np.uint8), "label": np.zeros(2, np.int32)}
    with pytest.raises(ValueError, match="A source of images must not hold 'shift'"):
        reader({**images, "shift": np.zeros((2, 3), np.int32)}, 1, seed=0)
    reader({"x": np.zeros(2), "shift": np.zeros(2)}, 1, seed=0)
