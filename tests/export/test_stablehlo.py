"""StableHLO programs: the same logits, for any number of images, with nothing but JAX."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from classifiers import ALL, assert_as_many_right, random_classifier, some_images
from jax import export

import jaxmnist
from jaxmnist import sources
from jaxmnist.classifier import Classifier
from jaxmnist.errors import UserError
from jaxmnist.export import stablehlo

ALONE = """
import sys
from pathlib import Path

import jax, jax.export
import numpy as np

program = jax.export.deserialize(bytearray(Path("given.stablehlo").read_bytes()))
np.save("logits.npy", program.call(np.load("images.npy")))
print(sorted({"flax", "jaxmnist"} & set(sys.modules)))
"""


BRIEFLY = ("blocks", "model2")  # every kind of layer


def test_without_flatbuffers(monkeypatch: pytest.MonkeyPatch):
    """JAX imports it where it serialises."""

    def refuse(_: object) -> bytes:
        raise ImportError("flatbuffers")

    monkeypatch.setattr(export.Exported, "serialize", refuse)
    with pytest.raises(UserError, match="stablehlo needs flatbuffers: pip install flatbuffers"):
        stablehlo.content(random_classifier(), Path("a.stablehlo"))


def exported(classifier: Classifier) -> export.Exported:
    return export.deserialize(bytearray(stablehlo.content(classifier, Path("network.stablehlo"))))


@pytest.fixture(scope="module")
def images_NHW(mnist) -> np.ndarray:
    return some_images(mnist[1])


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=() if name in BRIEFLY else pytest.mark.long)
        for name, fields in ALL.items()
    ],
)
def test_logits_are_the_same(fields: dict[str, Any], images_NHW: np.ndarray):
    classifier = random_classifier(**fields)
    expected_NK = classifier.logits(images_NHW)
    assert np.ptp(expected_NK, axis=0).min() > 0.3, "the images must differ for it to mean anything"
    program = exported(classifier)
    for count in (7, 1):
        found_NK = program.call(images_NHW[:count])
        np.testing.assert_allclose(found_NK, expected_NK[:count], rtol=0, atol=1e-4)


def test_input_output_and_platforms():
    program = exported(random_classifier())
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert program.nr_devices == 1
    (images,), (logits,) = program.in_avals, program.out_avals
    assert (str(images.shape), images.dtype) == ("(N, 28, 28)", np.uint8)
    assert (str(logits.shape), logits.dtype) == ("(N, 10)", np.float32)
    assert program.in_tree == jax.tree.structure(((0,), {}))


def test_it_computes_in_float32_whatever_the_training_did(images_NHW: np.ndarray):
    halved = exported(random_classifier(precision="bfloat16"))
    expected_NK = random_classifier().logits(images_NHW)
    np.testing.assert_allclose(halved.call(images_NHW), expected_NK, rtol=0, atol=1e-4)


@pytest.mark.long
def test_it_runs_where_only_jax_is(tmp_path: Path, images_NHW: np.ndarray):
    classifier = jaxmnist.load("model3")
    jaxmnist.save(classifier, tmp_path / "given.stablehlo")
    np.save(tmp_path / "images.npy", images_NHW)
    command = [sys.executable, "-I", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    found_NK = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(found_NK, classifier.logits(images_NHW), rtol=0, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", sources.packaged())
def test_packaged_networks_get_as_many_images_right(name: str, mnist: tuple[Any, Any]):
    classifier, (_, test) = jaxmnist.load(name), mnist
    program = exported(classifier)
    parts = [np.asarray(program.call(part)) for part in np.split(test.images_NHW, 10)]
    assert_as_many_right(classifier, np.concatenate(parts), test)
