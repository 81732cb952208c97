"""Networks written to files: completely or not at all, in the format of the suffix."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from classifiers import METADATA, config_of, random_classifier
from weight_files import load

import jaxmnist
from jaxmnist.classifier import Classifier
from jaxmnist.config import flatten, from_json
from jaxmnist.errors import UserError
from jaxmnist.export import files, torch_weights

SUFFIXES = (*torch_weights.SUFFIXES, ".onnx", ".stablehlo")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return random_classifier(model="compact_tiny")


def assert_same_network(found: Classifier, expected: Classifier) -> None:
    for ours, theirs in (
        (found.params, expected.params),
        (found.batch_stats, expected.batch_stats),
    ):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_safetensors_know_everything(classifier: Classifier, tmp_path: Path):
    jaxmnist.save(classifier, tmp_path / "mine.safetensors")
    found = jaxmnist.load(tmp_path / "mine.safetensors")
    assert_same_network(found, classifier)
    assert flatten(found.config) == flatten(classifier.config)
    assert found.metadata == classifier.metadata
    assert found.source == f"{tmp_path}/mine.safetensors"
    jaxmnist.save(found, tmp_path / "again.safetensors")
    assert jaxmnist.load(tmp_path / "again.safetensors").metadata == classifier.metadata


def test_metadata(classifier: Classifier):
    known = dict(classifier.metadata)
    assert flatten(from_json(known.pop("config"))) == flatten(config_of(model="compact_tiny"))
    assert known == {
        "model": "compact_tiny",
        "params": "6584",
        "version": jaxmnist.__version__,
        **METADATA,
    }


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torch_files_need_their_recipe(suffix: str, classifier: Classifier, tmp_path: Path):
    file = tmp_path / f"mine{suffix}"
    jaxmnist.save(classifier, str(file))
    with pytest.raises(UserError, match=f"mine{suffix} does not say its recipe: name "):
        jaxmnist.load(file)
    found = jaxmnist.load(file, recipe="compact_tiny")
    assert_same_network(found, classifier)
    assert set(found.metadata) == {"model", "params", "config", "version", "recipe"}


@pytest.mark.parametrize("suffix", torch_weights.SUFFIXES)
@pytest.mark.parametrize(("step", "counted"), [("321", 321), ("many", 0), ("-1", 0), ("9" * 30, 0)])
def test_batch_counters_are_the_step_where_it_is_one(
    step: str, counted: int, suffix: str, classifier: Classifier, tmp_path: Path
):
    told = Classifier(
        classifier.config, classifier.params, classifier.batch_stats, "", {"step": step}
    )
    jaxmnist.save(told, tmp_path / f"mine{suffix}")
    found = load(tmp_path / f"mine{suffix}")
    counters = [int(array) for key, array in found.items() if key.endswith("num_batches_tracked")]
    assert counters == [counted] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_there_is_replaced(suffix: str, classifier: Classifier, tmp_path: Path):
    file = tmp_path / f"mine{suffix}"
    file.write_text("old")
    jaxmnist.save(classifier, file)
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_size > 4 * 6584


def test_home_is_known(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    jaxmnist.save(classifier, "~/mine.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    assert_same_network(jaxmnist.load("~/mine.safetensors"), classifier)


@pytest.mark.parametrize("name", ["mine", "mine.h5", "mine.ONNX", ".onnx", "mine.onnx.gz", "", "~"])
def test_other_suffixes_are_refused(
    name: str, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"must end in .*\.safetensors.*\.onnx, \.stablehlo"):
        jaxmnist.save(classifier, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", ["none/mine", "file/mine", "folder", "x" * 300])
def test_places_that_cannot_be_written(
    place: str, suffix: str, classifier: Classifier, tmp_path: Path
):
    (tmp_path / "file").write_text("text")
    (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="choose another") as raised:
        files.save(classifier, tmp_path / f"{place}{suffix}")
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_old_file_survives_a_failure(
    suffix: str, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / f"mine{suffix}"
    file.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        files.save(classifier, file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk")
def test_full_disk(classifier: Classifier, tmp_path: Path):
    file = tmp_path / "mine.safetensors"
    file.write_text("old")
    (tmp_path / "mine.safetensors.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        files.save(classifier, file)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
