"""MNIST and its drop-in relatives, in host memory. Shapes: N images of H rows and W columns."""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.resources
import importlib.util
import itertools
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxmnist.errors import UserError

SIDE = 28  # images are SIDE×SIDE
SPLITS = ("train/test", "train/val")
_VAL_SIZE = 10_000

_MAX_ITEMS = 1_000_000  # Room for all of EMNIST (814,255); a gzip bomb costs at most 784 MB.

_IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_BUNDLED_SHA256 = {
    "train-images-idx3-ubyte": "0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
    "train-labels-idx1-ubyte": "1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
    "t10k-images-idx3-ubyte": "1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
    "t10k-labels-idx1-ubyte": "b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and their labels, in host memory.

    images_NHW: uint8 (N, 28, 28), 0 for background to 255 for ink.
    labels_N: uint8 (N,), each 0 to 9.
    """

    images_NHW: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.labels_N)


def load(dataset: str | os.PathLike[str], split: str) -> tuple[Dataset, Dataset]:
    """Loads the training and the evaluation set.

    Args:
      dataset: 'mnist' for the bundled files, whose checksums are verified; or a folder with the
        four IDX files under MNIST's names, plain or .gz; or 'tfds:NAME' for a TFDS set of
        28x28x1 uint8 images in 10 classes. A prepared TFDS set loads without TensorFlow.
      split: 'train/test' for the whole training and test sets; 'train/val' for the training set
        under a fixed permutation, its last 10,000 images held out for evaluation. The test set
        is then not read.

    Returns:
      (train, eval), each with uint8 (N, 28, 28) images and uint8 (N,) labels.

    Raises:
      UserError: an argument is unknown, or a file is missing, unreadable or malformed.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; use one of: {', '.join(SPLITS)}")
    if not isinstance(dataset, str):
        # A path is a folder, whatever its name.
        dataset = os.path.abspath(os.path.expanduser(dataset))
    read = _reader(dataset)
    train = read("train")
    if split == "train/test":
        return train, read("test")
    if len(train) <= _VAL_SIZE:
        raise UserError(
            f"dataset {dataset!r}: only {len(train)} training images; use split 'train/test'"
        )
    # RandomState rather than default_rng: numpy guarantees that its stream never changes.
    order_N = np.random.RandomState(0).permutation(len(train))
    kept, held_out = (
        Dataset(train.images_NHW[i], train.labels_N[i]) for i in np.split(order_N, [-_VAL_SIZE])
    )
    return kept, held_out


@contextlib.contextmanager
def _as_user_error(source: object, remedy: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns `errors` into a UserError of one line."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
        raise UserError(f"{source}: {reason}; {remedy}") from error


def _reader(dataset: str) -> Callable[[str], Dataset]:
    """The function that reads one part, 'train' or 'test', of `dataset`."""
    if dataset == "mnist":
        return _read_bundled
    if dataset.startswith("tfds:"):
        return functools.partial(_read_tfds, _prepared_tfds_builder(dataset), dataset)
    # The os.path functions answer for any string; pathlib's raise on '~nobody' and long names.
    folder = os.path.expanduser(dataset)
    if os.path.isdir(folder):
        return functools.partial(_read_folder, Path(folder))
    raise UserError(
        f"dataset {dataset!r} is no folder; use 'mnist', a folder of IDX files or 'tfds:NAME'"
    )


def _read_bundled(part: str) -> Dataset:
    folder = importlib.resources.files("jaxmnist") / "mnist"
    files = [folder / f"{name}.gz" for name in _IDX_NAMES[part]]
    for file in files:
        with _as_user_error(file, "reinstall jaxmnist", OSError, ValueError):
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            if sha256 != _BUNDLED_SHA256[file.name.removesuffix(".gz")]:
                raise ValueError(f"unexpected SHA-256 {sha256}")
    return _read_idx_pair(*files)


def _read_folder(folder: Path, part: str) -> Dataset:
    return _read_idx_pair(*(_find_idx(folder, name) for name in _IDX_NAMES[part]))


def _find_idx(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, plain or .gz; some mirrors write its '-idx' as '.idx'."""
    stems = name, name.replace("-idx", ".idx")
    files = [folder / (stem + suffix) for stem, suffix in itertools.product(stems, ("", ".gz"))]
    for is_there in (os.path.isfile, os.path.exists):  # some archives have folders of these names
        for file in filter(is_there, files):
            return file
    raise UserError(f"{folder / name}: no such file, nor {name}.gz; put the IDX file there")


def _read_idx_pair(images_file: Traversable, labels_file: Traversable) -> Dataset:
    images_NHW = _read_idx(images_file, (SIDE, SIDE))
    labels_N = _read_idx(labels_file, ())
    if len(images_NHW) != len(labels_N):
        raise UserError(
            f"{labels_file}: {len(labels_N)} labels for the {len(images_NHW)} images of "
            f"{images_file.name}; take both files from the same set"
        )
    if labels_N.max() > 9:
        raise UserError(f"{labels_file}: label {labels_N.max()}; use a set with labels 0 to 9")
    return Dataset(images_NHW, labels_N)


def _read_idx(file: Traversable, item_shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 (N, *item_shape) array, N > 0, of an IDX file, which is gzipped if named .gz."""
    decompress = gzip.open if file.name.endswith(".gz") else contextlib.nullcontext
    with (
        _as_user_error(file, "replace the file", OSError, EOFError, zlib.error, ValueError),
        file.open("rb") as raw,
        decompress(raw) as stream,
    ):
        return _parse_idx(stream, item_shape)


def _parse_idx(stream: IO[bytes] | gzip.GzipFile, item_shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 (N, *item_shape) array of an IDX stream; ValueError if it is anything else."""
    # Big-endian uint32: a magic number made of the type code (8: uint8) and the rank; the shape.
    rank = 1 + len(item_shape)
    layout = struct.Struct(f">{1 + rank}I")
    header = _read_at_most(stream, layout.size)
    if len(header) < layout.size:
        raise ValueError(f"header of {len(header)} bytes is truncated, expected {layout.size}")
    magic, count, *found_shape = layout.unpack(header)
    if magic != 0x800 + rank:
        raise ValueError(f"magic number {magic}, expected {0x800 + rank}")
    if tuple(found_shape) != item_shape:
        raise ValueError(f"image shape {tuple(found_shape)}, expected {item_shape}")
    if not 0 < count <= _MAX_ITEMS:
        raise ValueError(f"header declares {count} items, expected 1 to {_MAX_ITEMS}")
    size = count * math.prod(item_shape)
    body = _read_at_most(stream, size + 1)
    if len(body) != size:
        fault = f"truncated to {len(body)} of" if len(body) < size else "trailing bytes after"
        raise ValueError(f"{fault} the {size} bytes that the header declares")
    return np.frombuffer(body, np.uint8).reshape(count, *item_shape)


def _read_at_most(stream: IO[bytes] | gzip.GzipFile, size: int) -> bytearray:
    """Up to `size` bytes. Memory follows what the stream holds, not what a header claims."""
    data = bytearray()
    while chunk := stream.read(min(1 << 20, size - len(data))):
        data += chunk
    return data


def _prepared_tfds_builder(dataset: str) -> Any:
    """The tfds DatasetBuilder of 'tfds:NAME', after preparing the set if that is still to do."""
    import tensorflow_datasets as tfds  # Here, for no other kind of dataset needs it.
    from tensorflow_datasets.core.download import downloader

    # TFDS has no exception of its own: names, downloads and files fail with whatever lies below.
    with _as_user_error(dataset, "check the name, as in 'tfds:kmnist'", Exception):
        builder: Any = tfds.builder(dataset.removeprefix("tfds:"))
        features = dict(builder.info.features)
    shape = getattr(features.get("image"), "shape", None)
    classes = getattr(features.get("label"), "num_classes", None)
    if (shape, classes) != ((28, 28, 1), 10):
        raise UserError(
            f"{dataset}: image shape {shape}, {classes} classes; use one of (28, 28, 1), 10 classes"
        )
    if builder.is_prepared():
        return builder
    # Asked before the download, which TFDS would start and only then miss TensorFlow.
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{dataset}: not prepared in {builder.data_dir}; pip install 'jaxmnist[tfds]' first"
        )
    # TFDS's own ten retries, each after a longer pause, stall for minutes without a network.
    downloader.MAX_RETRIES = 4
    with _as_user_error(dataset, "check network, disk and 'jaxmnist[tfds]'", Exception):
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=config)
    return builder


def _read_tfds(builder: Any, dataset: str, part: str) -> Dataset:
    with _as_user_error(dataset, f"delete {builder.data_dir} if it is damaged", Exception):
        info, split = builder.info, builder.info.splits[part]
        if info.file_format.value == "tfrecord":
            # TFDS reads its default format through TensorFlow only, but decodes without it.
            records = itertools.chain.from_iterable(map(_tfrecords, split.filepaths))
            examples = map(info.features.deserialize_example_np, records)
        else:
            examples = builder.as_data_source(part)
        images, labels = zip(*((e["image"], e["label"]) for e in examples), strict=True)
        if len(labels) != split.num_examples or max(labels) > 9:
            raise ValueError(f"{len(labels)} of {split.num_examples} examples, or bad labels")
        images_NHW = np.stack(images, dtype=np.uint8, casting="equiv")[..., 0]
        if builder.name == "emnist":  # which TFDS leaves on their side, as NIST wrote them
            images_NHW = np.ascontiguousarray(images_NHW.swapaxes(1, 2))
        return Dataset(images_NHW, np.array(labels, np.uint8))


def _tfrecords(path: os.PathLike[str]) -> Iterator[bytes]:
    """The records of a TFRecord file: each has its length (uint64), a CRC, the data, a CRC."""
    data = Path(path).read_bytes()
    start = 0
    while start < len(data):
        (size,) = struct.unpack_from("<Q", data, start)
        yield data[start + 12 : start + 12 + size]
        start += size + 16
    if start > len(data):
        raise ValueError(f"{path} is truncated")
