"""Tests of jaxmnist.data. Nothing here needs the network, TensorFlow or JAX."""

import contextlib
import gzip
import importlib.util
import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st
from PIL import Image
from tensorflow_datasets.core import constants as tfds_constants
from tensorflow_datasets.core.decode import DeserializeMethod

from jaxmnist import data
from jaxmnist.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NAMES = [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS]
TEST_HISTOGRAM = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def random_dataset(count: int, seed: int = 0) -> data.Dataset:
    rng = np.random.default_rng(seed)
    images_NHW = rng.integers(0, 256, (count, 28, 28), np.uint8)
    return data.Dataset(images_NHW, rng.integers(0, 10, count, np.uint8))


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def idx_files(train: data.Dataset, test: data.Dataset) -> dict[str, bytes]:
    arrays = [train.images_NHW, train.labels_N, test.images_NHW, test.labels_N]
    return {name: idx_bytes(array) for name, array in zip(NAMES, arrays, strict=True)}


def write_files(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        folder.joinpath(name).write_bytes(content)
    return str(folder)


def assert_same(found: data.Dataset, expected: data.Dataset) -> None:
    assert found.images_NHW.dtype == found.labels_N.dtype == np.uint8
    np.testing.assert_array_equal(found.images_NHW, expected.images_NHW)
    np.testing.assert_array_equal(found.labels_N, expected.labels_N)
    assert len(found) == len(expected)


def load_error(dataset: str, split: str = "train/test") -> str:
    """The message of the UserError that loading raises, checked to be a single line."""
    with pytest.raises(UserError) as caught:
        data.load(dataset, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TRAIN, TEST = random_dataset(4), random_dataset(3, seed=1)
FILES = idx_files(TRAIN, TEST)


# The bundled files.


def test_bundled_mnist(mnist):
    train, test = mnist
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.images_NHW.shape == (60_000, 28, 28)
    assert test.images_NHW.shape == (10_000, 28, 28)
    assert train.labels_N[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(test.labels_N).tolist() == TEST_HISTOGRAM
    # The mean and deviation that every PyTorch MNIST script normalises with.
    np.testing.assert_allclose(train.images_NHW.mean() / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(train.images_NHW.std() / 255, 0.3081, atol=5e-5)


def test_validation_split_is_a_fixed_permutation_of_the_training_set(mnist):
    whole, _ = mnist
    train, val = data.load("mnist", "train/val")
    assert (len(train), len(val)) == (50_000, 10_000)
    assert train.labels_N[:10].tolist() == [3, 6, 6, 6, 0, 3, 6, 2, 5, 6]
    assert val.labels_N[:10].tolist() == [8, 3, 1, 7, 7, 5, 2, 2, 1, 0]
    order_N = np.random.RandomState(0).permutation(60_000)
    assert_same(
        train, data.Dataset(whole.images_NHW[order_N[:50_000]], whole.labels_N[order_N[:50_000]])
    )
    assert_same(
        val, data.Dataset(whole.images_NHW[order_N[50_000:]], whole.labels_N[order_N[50_000:]])
    )


@pytest.mark.parametrize("content", [None, b"not the official file"])
def test_damaged_bundle(tmp_path, monkeypatch, content):
    if content:
        tmp_path.joinpath("mnist").mkdir()
        tmp_path.joinpath("mnist", f"{TRAIN_IMAGES}.gz").write_bytes(content)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    message = load_error("mnist")
    assert TRAIN_IMAGES in message
    assert "reinstall jaxmnist" in message


# Folders of IDX files.


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_folder_round_trip(tmp_path, zipped, dotted):
    for name, content in FILES.items():
        name = name.replace("-idx", ".idx") if dotted else name
        name, content = (f"{name}.gz", gzip.compress(content)) if zipped else (name, content)
        tmp_path.joinpath(name).write_bytes(content)
    for folder in (tmp_path, str(tmp_path)):
        train, test = data.load(folder, "train/test")
        assert_same(train, TRAIN)
        assert_same(test, TEST)


def test_a_path_is_a_folder_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mnist", "tfds:x"):
        tmp_path.joinpath(name).mkdir()
        write_files(tmp_path / name, FILES)
        assert_same(data.load(Path(name), "train/test")[0], TRAIN)


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.joinpath("digits").mkdir()
    write_files(tmp_path / "digits", FILES)
    assert_same(data.load("~/digits", "train/test")[0], TRAIN)


def test_validation_split_does_not_need_the_test_files(tmp_path):
    whole = random_dataset(10_001)
    files = idx_files(whole, TEST)
    dataset = write_files(tmp_path, {name: files[name] for name in NAMES[:2]})
    train, val = data.load(dataset, "train/val")
    assert (len(train), len(val)) == (1, 10_000)
    both = np.concatenate([train.images_NHW, val.images_NHW])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(whole.images_NHW, axis=0))


def test_validation_split_of_a_small_training_set(tmp_path):
    dataset = write_files(tmp_path, idx_files(random_dataset(10_000), TEST))
    message = load_error(dataset, "train/val")
    assert dataset in message
    assert "10000 training images" in message


def test_unknown_split():
    assert "'test'" in load_error("mnist", "test")
    assert "train/test, train/val" in load_error("mnist", "")


@pytest.mark.parametrize(
    "dataset", ["", "cifar", "no/such/folder", "~no-such-user", "a\0b", "x" * 5000]
)
def test_unknown_dataset(dataset):
    message = load_error(dataset)
    assert f"{dataset!r} is no folder" in message
    assert "'mnist', a folder of IDX files or 'tfds:NAME'" in message


def test_dataset_that_is_a_file(tmp_path):
    path = tmp_path / "mnist.npz"
    path.touch()
    assert f"{str(path)!r} is no folder" in load_error(str(path))


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(tmp_path, name):
    dataset = write_files(tmp_path, {n: FILES[n] for n in NAMES if n != name})
    assert str(tmp_path / name) in load_error(dataset)


def test_unreadable_file(tmp_path):
    dataset = write_files(tmp_path, {n: FILES[n] for n in NAMES[:3]})
    tmp_path.joinpath(TEST_LABELS).mkdir()
    message = load_error(dataset)
    assert TEST_LABELS in message
    assert "directory" in message


def test_folders_named_like_the_files_do_no_harm(tmp_path):
    """Kaggle's archive has them beside files whose names have a dot."""
    dataset = write_files(tmp_path, {n.replace("-idx", ".idx"): FILES[n] for n in NAMES})
    for name in NAMES:
        tmp_path.joinpath(name).mkdir()
        tmp_path.joinpath(name, name).write_bytes(FILES[name])
    train, test = data.load(dataset, "train/test")
    assert_same(train, TRAIN)
    assert_same(test, TEST)


def header(*fields: int) -> bytes:
    return struct.pack(f">{len(fields)}I", *fields)


IMAGES, LABELS = FILES[TRAIN_IMAGES], FILES[TRAIN_LABELS]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (TRAIN_IMAGES, b"", "header of 0 bytes is truncated"),
        (TRAIN_IMAGES, IMAGES[:15], "header of 15 bytes is truncated"),
        (TRAIN_LABELS, LABELS[:7], "header of 7 bytes is truncated"),
        (TRAIN_IMAGES, IMAGES[:-1], "truncated to 3135 of the 3136 bytes"),
        (TRAIN_LABELS, LABELS[:-1], "truncated to 3 of the 4 bytes"),
        (TEST_IMAGES, FILES[TEST_IMAGES] + b"\0", "trailing bytes"),
        (TEST_LABELS, FILES[TEST_LABELS] + b"\0", "trailing bytes"),
        (TRAIN_IMAGES, LABELS + bytes(20), "magic number 2049, expected 2051"),
        (TRAIN_LABELS, IMAGES, "magic number 2051, expected 2049"),
        (TRAIN_IMAGES, header(2051, 1, 32, 32) + bytes(1024), "image shape (32, 32)"),
        (TRAIN_IMAGES, header(2051, 0, 28, 28), "declares 0 items"),
        (TRAIN_IMAGES, header(2051, 2**32 - 1, 28, 28), "declares 4294967295 items"),
        (TRAIN_LABELS, LABELS[:-1] + b"\x0a", "label 10"),
        (TRAIN_LABELS, idx_bytes(np.zeros(5, np.uint8)), "5 labels for the 4 images"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_malformed_file(tmp_path, name, content, found, zipped):
    dataset = write_files(tmp_path, {n: FILES[n] for n in NAMES if n != name})
    write_files(tmp_path, {f"{name}.gz": gzip.compress(content)} if zipped else {name: content})
    message = load_error(dataset)
    assert name in message
    assert found in message


@pytest.mark.parametrize("damage", ["not gzip", "truncated", "checksum", "body", "trailing"])
def test_corrupted_gzip(tmp_path, damage):
    good = gzip.compress(IMAGES)
    content = {
        "not gzip": IMAGES,
        "truncated": good[:-9],
        "checksum": good[:-8] + bytes(8),
        "body": good[:40] + bytes(40) + good[80:],
        "trailing": good + b"garbage",
    }[damage]
    dataset = write_files(tmp_path, {n: FILES[n] for n in NAMES[1:]})
    write_files(tmp_path, {f"{TRAIN_IMAGES}.gz": content})
    assert TRAIN_IMAGES in load_error(dataset)


@pytest.mark.parametrize(
    "body",
    [gzip.compress(header(2051, 1_000_000, 28, 28)), gzip.compress(IMAGES + bytes(100_000_000), 1)],
    ids=["forged count", "bomb"],
)
def test_memory_is_bounded_by_what_is_there_and_what_is_declared(tmp_path, body):
    dataset = write_files(tmp_path, {n: FILES[n] for n in NAMES[1:]})
    write_files(tmp_path, {f"{TRAIN_IMAGES}.gz": body})
    tracemalloc.start()
    try:
        message = load_error(dataset)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert TRAIN_IMAGES in message
    assert peak < 8_000_000


@st.composite
def mutated_files(draw) -> dict[str, bytes]:
    """The valid files, one of them mutated anywhere (headers foremost), perhaps inside gzip."""
    files = dict(FILES)
    name = draw(st.sampled_from(NAMES))
    zipped = draw(st.booleans())
    inside = zipped and draw(st.booleans())
    valid = files.pop(name)
    content = bytearray(gzip.compress(valid) if zipped and not inside else valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, 20) | st.integers(0, len(content)))
        length = draw(st.integers(0, 4))
        content[at : at + length] = draw(st.binary(max_size=4))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    files[name + ".gz" * zipped] = gzip.compress(content) if inside else bytes(content)
    return files


@hypothesis.given(files=mutated_files())
@hypothesis.settings(max_examples=200, deadline=None)
def test_any_bytes_load_or_raise_a_user_error(tmp_path_factory, files):
    dataset = write_files(tmp_path_factory.mktemp("idx"), files)
    with contextlib.suppress(UserError):
        for part in data.load(dataset, "train/test"):
            assert part.images_NHW.shape == (len(part), 28, 28)
            assert part.labels_N.shape == (len(part),)
            assert part.labels_N.max() <= 9


# TensorFlow Datasets. The sets are prepared for real: TFDS needs TensorFlow to encode arrays as
# PNG or to write TFRecord, but not to store images that are PNG already as ArrayRecord.


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """TRAIN and TEST as a registered TFDS dataset that needs no download."""

    VERSION = tfds.core.Version("1.0.0")
    failure: Exception | None = None

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self):
        return digits_info(self)

    def _split_generators(self, dl_manager):
        if self.failure:
            raise self.failure
        return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

    def _generate_examples(self, dataset):
        for i, (image_HW, label) in enumerate(
            zip(dataset.images_NHW, dataset.labels_N, strict=True)
        ):
            png = io.BytesIO()
            Image.fromarray(image_HW).save(png, "png")
            yield i, {"image": png.getvalue(), "label": int(label)}


def digits_info(builder):
    features = {
        "image": tfds.features.Image(shape=(28, 28, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(
        builder=builder, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )


@pytest.fixture
def tfds_dir(tmp_path, monkeypatch) -> Path:
    """An empty TFDS_DATA_DIR, which TFDS reads once, when it is imported."""
    monkeypatch.setattr(tfds_constants, "DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def prepared_dir(tfds_dir) -> Path:
    """The folder of TinyDigits, prepared."""
    TinyDigits().download_and_prepare()
    return tfds_dir / "tiny_digits" / "1.0.0"


def pretend_tensorflow_is_installed(monkeypatch, installed: bool) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: installed or None if name == "tensorflow" else find_spec(name, *rest),
    )


def convert_to_tfrecord(folder: Path) -> None:
    """Rewrites a prepared ArrayRecord dataset in TFDS's default format, as TensorFlow would."""
    builder: Any = tfds.builder_from_directory(folder)
    for split in ("train", "test"):
        (path,) = map(Path, builder.info.splits[split].filepaths)
        records = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(
            b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records)
        )
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def assert_tiny_digits_load() -> None:
    train, test = data.load("tfds:tiny_digits", "train/test")
    assert_same(train, TRAIN)
    assert_same(test, TEST)


def test_prepared_tfds_set_loads_without_tensorflow(prepared_dir, monkeypatch):
    pretend_tensorflow_is_installed(monkeypatch, False)
    assert_tiny_digits_load()


def test_emnist_stands_upright(prepared_dir, monkeypatch):
    """TFDS has it on its side: https://www.tensorflow.org/datasets/catalog/emnist."""
    builder = data._prepared_tfds_builder("tfds:tiny_digits")
    monkeypatch.setattr(builder, "name", "emnist", raising=False)
    train = data._read_tfds(builder, "tfds:emnist/digits", "train")
    np.testing.assert_array_equal(train.images_NHW, TRAIN.images_NHW.swapaxes(1, 2))
    np.testing.assert_array_equal(train.labels_N, TRAIN.labels_N)


def test_prepared_tfrecord_set_loads_without_tensorflow(prepared_dir, monkeypatch):
    convert_to_tfrecord(prepared_dir)
    pretend_tensorflow_is_installed(monkeypatch, False)
    monkeypatch.setattr(TinyDigits, "__init__", tfds.core.GeneratorBasedBuilder.__init__)
    assert_tiny_digits_load()


@pytest.mark.parametrize("kept", [0, 5, 300, -1, None])
def test_damaged_tfrecord(prepared_dir, monkeypatch, kept):
    convert_to_tfrecord(prepared_dir)
    monkeypatch.setattr(TinyDigits, "__init__", tfds.core.GeneratorBasedBuilder.__init__)
    (path,) = prepared_dir.glob("*train.tfrecord*")
    path.write_bytes(path.read_bytes()[:kept] if kept is not None else b"\xff" * 100)
    message = load_error("tfds:tiny_digits")
    assert "tfds:tiny_digits: " in message
    assert f"delete {prepared_dir} if it is damaged" in message


def test_unprepared_tfds_set_without_tensorflow(tfds_dir, monkeypatch):
    pretend_tensorflow_is_installed(monkeypatch, False)
    for name in ("mnist", "fashion_mnist", "kmnist", "emnist/digits"):
        message = load_error(f"tfds:{name}")
        assert f"tfds:{name}: not prepared in {tfds_dir / name}" in message
        assert "pip install 'jaxmnist[tfds]'" in message


def test_unprepared_tfds_set_is_prepared(tfds_dir, monkeypatch):
    pretend_tensorflow_is_installed(monkeypatch, True)
    assert_tiny_digits_load()
    assert tfds_dir.joinpath("tiny_digits").is_dir()


def test_failed_tfds_preparation(tfds_dir, monkeypatch):
    pretend_tensorflow_is_installed(monkeypatch, True)
    monkeypatch.setattr(TinyDigits, "failure", ConnectionError("no route to host"))
    message = load_error("tfds:tiny_digits")
    assert "tfds:tiny_digits: no route to host" in message
    assert "check network" in message


@pytest.mark.parametrize("name", ["", "no_such_set", "../mnist", "mnist/letters", "mnist:9.9.9"])
def test_unknown_tfds_set(tfds_dir, name):
    assert f"tfds:{name}: " in load_error(f"tfds:{name}")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cifar10", "image shape (32, 32, 3), 10 classes"),
        ("emnist/letters", "image shape (28, 28, 1), 37 classes"),
        ("imdb_reviews", "image shape None, 2 classes"),
    ],
)
def test_unsuitable_tfds_set(tfds_dir, name, found):
    assert f"tfds:{name}: {found}" in load_error(f"tfds:{name}")


def test_tfds_set_without_a_test_split(prepared_dir, monkeypatch):
    info = prepared_dir / "dataset_info.json"
    info.write_text(info.read_text().replace('"test"', '"unlabelled"'))
    message = load_error("tfds:tiny_digits")
    assert "tfds:tiny_digits: " in message
    assert "test" in message
