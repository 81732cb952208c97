"""ONNX models: the same logits in onnxruntime, in standard nodes that say what they are."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from classifiers import (
    ALL,
    assert_as_many_right,
    every_kind,
    random_classifier,
    some_images,
)
from onnx import checker, numpy_helper

import jaxmnist
from jaxmnist import sources
from jaxmnist.classifier import Classifier
from jaxmnist.errors import UserError
from jaxmnist.export import onnx as onnx_export
from jaxmnist.export import torch_weights
from jaxmnist.networks import layers

INPUT = ["Cast", "Unsqueeze", "Div", "Sub", "Div"]
CONV_BN_RELU = ["Conv", "BatchNormalization", "Relu"]
KINDS = {*INPUT, *CONV_BN_RELU, "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Concat"}
KINDS |= {"Flatten", "Gemm", "Sigmoid", "Mul"}


class Exported(NamedTuple):
    """A network, and the ONNX model of it."""

    classifier: Classifier
    content: bytes
    model: onnx.ModelProto


def export(classifier: Classifier) -> Exported:
    content = onnx_export.content(classifier, Path("given.onnx"))
    return Exported(classifier, content, onnx.load_model_from_string(content))


def session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(content: bytes, images_NHW: np.ndarray) -> np.ndarray:
    (logits_NK,) = session(content).run(["logits"], {"images": images_NHW})
    return np.asarray(logits_NK)


@pytest.fixture(scope="module", params=ALL.values(), ids=list(ALL))
def exported(request: pytest.FixtureRequest) -> Exported:
    return export(random_classifier(**request.param))


@pytest.fixture(scope="module")
def images_NHW(mnist) -> np.ndarray:
    return some_images(mnist[1])


def test_logits_are_the_same(exported: Exported, images_NHW: np.ndarray):
    expected_NK = exported.classifier.logits(images_NHW)
    assert np.ptp(expected_NK, axis=0).min() > 0.3, "the images must differ for it to mean anything"
    for count in (7, 1):
        found_NK = run(exported.content, images_NHW[:count])
        assert found_NK.dtype == np.float32
        np.testing.assert_allclose(found_NK, expected_NK[:count], rtol=0, atol=1e-4)


def test_input_and_output(exported: Exported):
    running = session(exported.content)
    found = [(v.name, v.type, v.shape) for v in (*running.get_inputs(), *running.get_outputs())]
    assert found == [
        ("images", "tensor(uint8)", ["N", 28, 28]),
        ("logits", "tensor(float)", ["N", 10]),
    ]


def test_it_passes_the_full_check(exported: Exported):
    checker.check_model(exported.model, full_check=True)
    (opset,) = exported.model.opset_import
    assert (opset.domain, opset.version) == ("", 17)
    assert exported.model.ir_version == 8
    assert exported.model.producer_version == jaxmnist.__version__


def test_nodes_are_standard_ones(exported: Exported):
    """One a layer; dropout is none, SiLU and separable are two, mean and maximum three."""
    nodes = exported.model.graph.node
    kinds = [node.op_type for node in nodes]
    assert {node.domain for node in nodes} == {""}
    assert set(kinds) <= KINDS
    assert kinds[:5] == INPUT
    counts = {
        layers.Dropout: 0,
        layers.GlobalAvgMaxPool: 3,
        layers.SeparableConv: 2,
        layers.Silu: 2,
    }
    expected = [counts.get(type(layer), 1) for layer in exported.classifier.network.layers]
    assert len(kinds) == 5 + sum(expected)


def test_weights_have_their_names_in_torch(exported: Exported):
    classifier, found = exported.classifier, exported.model.graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in found}
    expected = torch_weights.to_state_dict(
        classifier.network, classifier.params, classifier.batch_stats, step=0
    )
    slots = torch_weights.slots(classifier.network)
    assert [name for name in arrays if name.startswith("layers.")] == [slot.key for slot in slots]
    for slot in slots:
        np.testing.assert_array_equal(arrays[slot.key], expected[slot.key], err_msg=slot.key)


def test_metadata(exported: Exported):
    found = {entry.key: entry.value for entry in exported.model.metadata_props}
    assert found == exported.classifier.metadata
    assert found["step"] == "321"
    assert exported.model.graph.name == found["model"]


def test_model3_layer_by_layer():
    kinds = [node.op_type for node in export(random_classifier()).model.graph.node]
    assert kinds == [
        *INPUT,
        *3 * CONV_BN_RELU,
        "MaxPool",
        *2 * CONV_BN_RELU,
        "MaxPool",
        *2 * CONV_BN_RELU,
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]


def test_every_kind_of_layer_has_its_nodes():
    assert set(onnx_export._NODES) == set(every_kind())


def test_it_computes_in_float32_whatever_the_training_did(images_NHW: np.ndarray):
    halved = export(random_classifier(precision="bfloat16"))
    expected_NK = random_classifier().logits(images_NHW)
    np.testing.assert_allclose(run(halved.content, images_NHW), expected_NK, rtol=0, atol=1e-4)


def test_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError) as raised:
        jaxmnist.save(random_classifier(), tmp_path / "mine.onnx")
    assert str(raised.value).startswith(f"{tmp_path}/mine.onnx needs onnx: pip install onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("name", sources.packaged())
def test_packaged_networks_get_as_many_images_right(name: str, mnist: tuple[Any, Any]):
    classifier, (_, test) = jaxmnist.load(name), mnist
    found_NK = run(export(classifier).content, test.images_NHW)
    assert_as_many_right(classifier, found_NK, test)
