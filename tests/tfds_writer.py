"""Write a prepared TFDS data set without TensorFlow, as TFDS lays it out on disk."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_dataset(
    data_dir: Path,
    name: str,
    splits: Mapping[str, Mapping[str, Sequence[Any]]],
    *,
    version: str = "3.0.2",
    config: str | None = None,
    num_classes: int | None = 10,
    image_shape: tuple[int | None, ...] | None = None,
    shards: int = 1,
    file_format: str = "array_record",
    features: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``data_dir/name[/config]/version`` with the features id, image and label of CIFAR-10.

    Args:
        data_dir: The folder of prepared sets.
        name: The name of the set.
        splits: ``{split: {"image": uint8 arrays (H, W, C), "label": ints}}``; a column may hold
            bytes or strings too, and other names need ``features``. A column ``id`` is made up.
        version: The version.
        config: The builder config, if any.
        num_classes: The number of classes that the metadata claims.
        image_shape: The image shape that the metadata claims; that of the first image by default.
        shards: The number of files of each split.
        file_format: What the metadata claims; the shards are array_record anyway.
        features: TFDS features to write in place of id, image and label.

    Returns:
        The folder that was written.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    first = next(iter(splits.values()))
    folder = Path(data_dir, name, *([config] if config else []), version)
    folder.mkdir(parents=True)
    if features is None:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=image_shape or first["image"][0].shape),
            "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
    tfds.features.FeaturesDict(dict(features)).save_config(folder)

    split_infos = []
    for split, columns in splits.items():
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        records = [
            _encode({"id": f"{split}_{i:05d}", **row} if "id" in features else row)
            for i, row in enumerate(rows)
        ]
        bounds = np.linspace(0, len(records), shards + 1).astype(int)
        for i in range(shards):
            path = folder / f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in records[bounds[i] : bounds[i + 1]]:
                writer.write(record)
            writer.close()
        split_infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(n) for n in np.diff(bounds)],
            }
        )

    info = {
        "citation": "",
        "description": "A small set for tests.",
        "downloadSize": "0",
        "fileFormat": file_format,
        "moduleName": f"tensorflow_datasets.image_classification.{name}",
        "name": name,
        "splits": split_infos,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": version,
    }
    if config:
        info["configName"] = config
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    return folder


def _encode(row: Mapping[str, Any]) -> bytes:
    """Encode one example as a serialised ``tf.train.Example``."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in row.items():
        feature = example.features.feature[name]
        if isinstance(value, np.ndarray) and value.ndim == 3:
            feature.bytes_list.value.append(_png(value))
        elif isinstance(value, bytes | str):
            feature.bytes_list.value.append(value.encode() if isinstance(value, str) else value)
        else:
            feature.int64_list.value.append(int(value))
    return example.SerializeToString()


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
