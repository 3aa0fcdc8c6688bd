"""Sets that stay on disk: a miniature of ImageNet in its own format, read in the order of sets in memory."""

import io
import pickle

import numpy as np
import pytest

from hessabs.data import Position, as_source, epoch_order, hold_out, load, reader
from hessabs.data.source import Examples

pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")

TRAIN, CLASSES, SIZE, SEED = 13, 5, 16, 3


def jpeg(rng, label):
    """A JPEG of random size whose red tells its label, with a ramp of blue across."""
    shape = (*rng.integers(20, 60, 2), 3)
    pixels = np.full(shape, 40 * label + 20, np.uint8)
    pixels[..., 2] = np.linspace(0, 255, shape[1])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def write_imagenet(folder, train=TRAIN):
    """Write ``imagenet2012`` as TFDS writes it: JPEGs of any size, a file name, splits train and validation."""
    import tensorflow_datasets as tfds

    from tests.tfds_writer import write_dataset

    rng = np.random.default_rng(0)

    def split(number):
        labels = np.arange(number) % CLASSES
        names = [f"n{label:08d}_{i}.JPEG" for i, label in enumerate(labels)]
        return {"file_name": names, "image": [jpeg(rng, label) for label in labels], "label": labels}

    write_dataset(
        folder,
        "imagenet2012",
        {"train": split(train), "validation": split(6)},
        version="5.1.0",
        shards=2,
        features={
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
        },
    )


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_imagenet(folder)
    return folder


@pytest.fixture
def dataset(imagenet):
    return load("imagenet2012", data_dir=imagenet, image_size=SIZE)


def stream(dataset, count, size=4, **options):
    read = reader(dataset.train, size, seed=SEED, **options)
    return [read(1) for _ in range(count)]


def same(one, two):
    assert len(one) == len(two)
    for (a, position), (b, other) in zip(one, two, strict=True):
        assert position == other
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_examples_are_decoded_when_they_are_taken(dataset):
    chosen = np.array([7, 0, 12])
    batch = dataset.train.take(chosen)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (TRAIN, 6, CLASSES)
    assert (batch["image"].shape, batch["image"].dtype) == ((3, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(batch["label"], chosen % CLASSES)
    red = batch["image"][..., 0].astype(int)
    np.testing.assert_allclose(red - (40 * (chosen % CLASSES) + 20).reshape(3, 1, 1), 0, atol=8)  # JPEG's loss


def test_hold_out_reads_nothing(dataset, monkeypatch):
    whole = dataset.train.take(np.arange(TRAIN))["label"]
    monkeypatch.setattr("hessabs.data.prepared.decode", None)
    rest, held = hold_out(dataset.train, 3)
    assert (len(rest), len(held)) == (10, 3)
    monkeypatch.undo()
    labels = [part.take(np.arange(len(part)))["label"] for part in (rest, held)]
    assert sorted(np.concatenate(labels)) == sorted(whole)
    read = reader(rest, 5, seed=SEED, augmentation="resized_crop")
    np.testing.assert_array_equal(read(1)[0]["label"], labels[0][epoch_order(SEED, 0, 10)[:5]])


def test_order_is_that_of_the_seed(dataset):
    """Three epochs of floor(13 / 4) micro-batches."""
    got = stream(dataset, 9)
    for number, (batch, position) in enumerate(got):
        epoch, index = divmod(number, 3)
        order = epoch_order(SEED, epoch, TRAIN)[4 * index : 4 * index + 4]
        np.testing.assert_array_equal(batch["label"], order % CLASSES)
        assert position == (Position(epoch, index + 1) if index < 2 else Position(epoch + 1, 0))


@pytest.mark.parametrize("augmentation", ["none", "crop_flip", "resized_crop"])
def test_resumes_anywhere(dataset, augmentation):
    whole = stream(dataset, 8, augmentation=augmentation)
    for start in (1, 3, 5):
        same(stream(dataset, 8 - start, position=whole[start - 1][1], augmentation=augmentation), whole[start:])


def test_several_at_once_and_replays(dataset):
    single = stream(dataset, 3)
    batch, position = reader(dataset.train, 4, seed=SEED)(3)
    assert position == Position(1, 0)
    np.testing.assert_array_equal(batch["image"], np.concatenate([b["image"] for b, _ in single]))
    replayed = stream(dataset, 4, replays=2)
    for i, (b, _) in enumerate(replayed):
        np.testing.assert_array_equal(b["label"], single[i // 2][0]["label"])


def test_remainder_is_filled_up_at_weight_0(dataset):
    batch, position = stream(dataset, 4, keep_remainder=True)[-1]
    assert position == Position(1, 0)
    assert batch["weight"].tolist() == [1, 0, 0, 0]


def own_rows(process, dealt):
    """The rows of one of two processes, each of two devices."""

    def rows(number):
        share = number // 2
        places = np.arange(number)
        places = (places.reshape(-1, 4).T if dealt else places.reshape(4, -1)).reshape(-1)
        return places[process * share :][:share]

    return rows


COUNTS = (1, 1, 1, 4, 1, 4, 4, 1)  # micro-batches at once: two epochs of eight, and one more
ROOM = 4  # threads that may have begun on what is called off


class Counting:
    """34 examples, 8 micro-batches of 4 and 2 over; which of them were decoded."""

    crops = True

    def __init__(self, items):
        self.items, self.decoded = items, []

    def __len__(self):
        return 34

    def __getitem__(self, index, *bits):
        self.decoded.append(index)
        return self.items.__getitem__(index % TRAIN, *bits)


@pytest.mark.parametrize("augmentation", ["crop_flip", "resized_crop"])
@pytest.mark.parametrize("dealt", [True, False])
def test_each_process_decodes_its_own_rows_alone(dataset, dealt, augmentation):
    records = dataset.train.items
    options = {"seed": SEED, "augmentation": augmentation}
    whole = reader(Examples(Counting(records)), 4, **options)
    batches = [whole(count)[0] for count in COUNTS]
    parts = []
    for process in range(2):
        counting = Counting(records)
        read = reader(Examples(counting), 4, **options, own_rows=own_rows(process, dealt))
        counting.decoded.clear()  # what was looked at before the first batch
        decoded = counting.decoded
        parts.append([read(count) for count in COUNTS])
        own = sum(4 * count // 2 for count in COUNTS)
        ahead = 4 * max(COUNTS) // 2  # half of the next batch is decoded already
        # Seven times it was another number of micro-batches than was to be expected.
        assert own <= len(decoded) <= own + ahead + (0 if dealt else 7 * ROOM)
        if dealt:  # nothing of the other process, whatever is read at once
            places = [i for i in range(4 * 8) if i % 4 // 2 == process]
            orders = [epoch_order(SEED, epoch, 34) for epoch in range(3)]
            assert set(decoded) <= {int(order[i]) for order in orders for i in places}
    for count, batch, *shares in zip(COUNTS, batches, *parts, strict=True):
        rows = np.concatenate([own_rows(process, dealt)(4 * count) for process in range(2)])
        assert sorted(rows.tolist()) == list(range(4 * count))
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([s[name] for s, _ in shares]), batch[name][rows])
        assert shares[0][1] == shares[1][1]


def test_own_rows_resume_replay_and_fill_up(dataset):
    rows = own_rows(1, dealt=True)
    whole = stream(dataset, 8, keep_remainder=True, replays=2)
    options = {"own_rows": rows, "keep_remainder": True, "replays": 2}
    want = [({name: array[rows(4)] for name, array in batch.items()}, after) for batch, after in whole]
    same(stream(dataset, 8, **options), want)
    same(stream(dataset, 5, position=whole[2][1], **options), want[3:])


@pytest.mark.slow
def test_own_rows_by_worker_processes(dataset):
    options = {"own_rows": own_rows(0, dealt=True), "augmentation": "resized_crop"}
    same(stream(dataset, 5, num_workers=2, **options), stream(dataset, 5, **options))


def test_augmentation_follows_the_example_not_the_batch(dataset):
    """The same crops in micro-batches of 4 and of 2."""
    four = np.concatenate([b["image"] for b, _ in stream(dataset, 3, 4, augmentation="resized_crop")])
    two = np.concatenate([b["image"] for b, _ in stream(dataset, 6, 2, augmentation="resized_crop")])
    np.testing.assert_array_equal(four, two)
    plain = np.concatenate([b["image"] for b, _ in stream(dataset, 3, 4)])
    assert (np.abs(plain.astype(int) - four).max((1, 2, 3)) > 20).sum() >= 6


def test_records_travel_without_their_open_files(dataset):
    records = dataset.train.items
    first = records[5]["image"]
    again = pickle.loads(pickle.dumps(records))
    assert "_source" not in again.__dict__
    np.testing.assert_array_equal(again[5]["image"], first)


def test_worker_processes_change_nothing(dataset):
    options = {"augmentation": "resized_crop"}
    same(stream(dataset, 7, num_workers=2, **options), stream(dataset, 7, **options))


def test_a_missing_shard_is_named(imagenet, tmp_path):
    import shutil

    shutil.copytree(imagenet, tmp_path / "half")
    shard = tmp_path / "half/imagenet2012/5.1.0/imagenet2012-train.array_record-00001-of-00002"
    shard.unlink()
    with pytest.raises(ValueError, match=r"train is missing: .*00001-of-00002 \(7 examples expected\)"):
        load("imagenet2012", data_dir=tmp_path / "half", image_size=SIZE)


def test_variable_sizes_in_memory_point_to_image_size(imagenet):
    with pytest.raises(ValueError, match="--image_size"):
        load("imagenet2012", data_dir=imagenet)


def test_crops_need_images_that_are_decoded():
    arrays = {"image": np.zeros((4, 8, 8, 1), np.uint8)}
    with pytest.raises(ValueError, match="`resized_crop` crops images as they are decoded: load them with"):
        reader(arrays, 2, seed=0, augmentation="resized_crop")


class Squares:
    """Examples of the caller's own, some of which a test may make wrong."""

    def __init__(self, wrong=None):
        self.wrong = wrong or {}

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return self.wrong.get(index, {"x": np.full(3, index**2), "pair": (np.float32(index), np.int8(index))})


def test_any_random_access_is_read_in_the_order_of_the_seed():
    read = reader(Squares(), 4, seed=SEED, keep_remainder=True)
    for epoch in range(2):
        order = epoch_order(SEED, epoch, 11)
        batches = [read(count)[0] for count in (1, 2)]
        x = np.concatenate([batch["x"] for batch in batches])
        np.testing.assert_array_equal(x[:, 0], np.concatenate([order, order[:1]]) ** 2)
        assert x.shape == (12, 3)
        assert batches[1]["weight"].tolist() == [1] * 7 + [0]
        assert batches[0]["pair"][0].dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"x": np.zeros(2, int), "pair": (np.float32(0), np.int8(0))},
            r"0 has .*int64\(3,\).* 5 has .*int64\(2,\)",
        ),
        ({"x": np.zeros(3, int)}, r"example 0 has .*'pair'.* example 5 has {'x': 'int64\(3,\)'}"),
    ],
)
def test_examples_that_differ(wrong, said):
    read = reader(Squares({5: wrong}), 11, seed=0)
    with pytest.raises(ValueError, match=said):
        read(1)
    with pytest.raises(ValueError, match=said):
        as_source(Squares({5: wrong})).take(np.arange(11))


def test_worker_processes_need_a_source_that_travels():
    class Local(Squares):
        pass

    with pytest.raises(ValueError, match=r"`data_workers`.*define its functions at the top of a module"):
        reader(Local(), 2, seed=0, num_workers=1)(1)
