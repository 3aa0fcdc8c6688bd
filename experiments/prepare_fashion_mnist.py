"""Prepare real Fashion-MNIST for TFDS from Debian's package dataset-fashion-mnist, with no download.

    apt-get install dataset-fashion-mnist
    python experiments/prepare_fashion_mnist.py DATA_DIR

Debian ships upstream's deflate streams behind a shorter gzip header. With upstream's header put back, the files
have the SHA-256 that TFDS verifies, and its own builder prepares them. Needs tensorflow (for this step alone),
tensorflow-datasets, importlib_resources and array_record.
"""

import hashlib
import pathlib
import struct
import sys
import tempfile

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")

# name: (modification time in upstream's gzip header, SHA-256 of upstream's archive)
ARCHIVES = {
    "train-images-idx3-ubyte": (
        1504176606,
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels-idx1-ubyte": (
        1504176606,
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images-idx3-ubyte": (
        1504176627,
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels-idx1-ubyte": (
        1504176627,
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}


def rebuild_archives(out: pathlib.Path) -> None:
    """Write upstream's four archives into a folder, each checked by its SHA-256."""
    if not DEBIAN.is_dir():
        sys.exit(f"{DEBIAN} does not exist: install Debian's package dataset-fashion-mnist.")
    for name, (mtime, want) in ARCHIVES.items():
        deflate_stream = (DEBIAN / f"{name}.gz").read_bytes()[10:]
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", mtime) + b"\x00\x03" + name.encode() + b"\0"
        got = hashlib.sha256(header + deflate_stream).hexdigest()
        if got != want:
            sys.exit(f"{name}: SHA-256 is {got}, not upstream's {want}; another version of the package?")
        (out / f"{name}.gz").write_bytes(header + deflate_stream)


def main() -> None:
    """Rebuild the archives and let TFDS prepare them."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as archives:
        rebuild_archives(pathlib.Path(archives))
        builder = tfds.builder("fashion_mnist", data_dir=sys.argv[1], file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=archives))
    print(builder.data_path)


if __name__ == "__main__":
    main()
