"""A trained network as an ONNX model of standard nodes.

Batch norms are kept as nodes of their own: runtimes fold them into the convolutions themselves, and
in Netron the network is the one that was trained. Dropout does nothing after training and is left
out. Activations are (N, C, H, W), kernels (O, I, H, W), as everywhere in ONNX.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxmnist
from jaxmnist.classifier import Classifier
from jaxmnist.data import SIDE
from jaxmnist.errors import UserError
from jaxmnist.networks import layers
from jaxmnist.networks.models import MEAN, STD

_OPSET = 17  # of 2022: what is in use today reads it
_IR_VERSION = 8

Leaves = Mapping[str, np.ndarray]


class _Graph:
    """A chain of nodes, each of which reads what the one before has written."""

    def __init__(self, helper: Any, numpy_helper: Any, first: str):
        self._helper, self._numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.output = first

    def add(self, kind: str, name: str, *constants: tuple[str, np.ndarray], **attributes) -> None:
        """A node that reads the newest output and ``constants``, and writes NAME/KIND."""
        self.output = self.join(kind, name, [self.output], *constants, **attributes)

    def join(
        self,
        kind: str,
        name: str,
        inputs: list[str],
        *constants: tuple[str, np.ndarray],
        **attributes,
    ) -> str:
        """A node that reads ``inputs`` and ``constants``; returns the name of what it writes."""
        names = [f"{name}.{leaf}" for leaf, _ in constants]
        self.initializers += [
            self._numpy_helper.from_array(array, full)
            for full, (_, array) in zip(names, constants, strict=True)
        ]
        output = f"{name}/{kind}"
        self.nodes.append(
            self._helper.make_node(kind, [*inputs, *names], [output], name=output, **attributes)
        )
        return output


def _convolution(
    graph: _Graph,
    name: str,
    kernel_HWIO: np.ndarray,
    bias_O: np.ndarray | None,
    padding: int = 0,
    group: int = 1,
) -> None:
    constants = [("weight", np.ascontiguousarray(kernel_HWIO.transpose(3, 2, 0, 1)))]
    if bias_O is not None:
        constants.append(("bias", bias_O))
    shape = list(kernel_HWIO.shape[:2])
    graph.add("Conv", name, *constants, kernel_shape=shape, pads=[padding] * 4, group=group)


def _conv(graph: _Graph, name: str, layer: layers.Conv, leaves: Leaves) -> None:
    _convolution(graph, name, leaves["kernel"], leaves.get("bias"), layer.padding)


def _separable(graph: _Graph, name: str, layer: layers.SeparableConv, leaves: Leaves) -> None:
    depthwise, pointwise = leaves["depthwise"], leaves["pointwise"]
    group = depthwise.shape[3]
    _convolution(graph, f"{name}.depthwise", depthwise, None, layer.padding, group)
    _convolution(graph, f"{name}.pointwise", pointwise, leaves.get("bias"))


def _batch_norm(graph: _Graph, name: str, layer: layers.BatchNorm, leaves: Leaves) -> None:
    # By their names in PyTorch, as those of the convolutions are.
    constants = (
        ("weight", leaves["scale"]),
        ("bias", leaves["bias"]),
        ("running_mean", leaves["mean"]),
        ("running_var", leaves["var"]),
    )
    graph.add("BatchNormalization", name, *constants, epsilon=layer.EPSILON)


def _linear(graph: _Graph, name: str, layer: layers.Linear, leaves: Leaves) -> None:
    constants = [("weight", np.ascontiguousarray(leaves["kernel"].T))]
    if layer.use_bias:
        constants.append(("bias", leaves["bias"]))
    graph.add("Gemm", name, *constants, transB=1)


def _mean_and_maximum(graph: _Graph, name: str, _: layers.Layer, __: Leaves) -> None:
    both = [
        graph.join(kind, name, [graph.output]) for kind in ("GlobalAveragePool", "GlobalMaxPool")
    ]
    graph.output = graph.join("Concat", name, both, axis=1)


def _silu(graph: _Graph, name: str, _: layers.Layer, __: Leaves) -> None:
    x = graph.output
    graph.output = graph.join("Mul", name, [x, graph.join("Sigmoid", name, [x])])


_NODES: dict[type[layers.Layer], Callable[[_Graph, str, Any, Leaves], None]] = {
    layers.Conv: _conv,
    layers.SeparableConv: _separable,
    layers.BatchNorm: _batch_norm,
    layers.Linear: _linear,
    layers.GlobalAvgMaxPool: _mean_and_maximum,
    layers.Relu: lambda graph, name, _, __: graph.add("Relu", name),
    layers.Silu: _silu,
    layers.MaxPool: lambda graph, name, _, __: graph.add(
        "MaxPool", name, kernel_shape=[2, 2], strides=[2, 2]
    ),
    layers.GlobalAvgPool: lambda graph, name, _, __: graph.add("GlobalAveragePool", name),
    layers.Flatten: lambda graph, name, _, __: graph.add("Flatten", name),
    layers.Dropout: lambda graph, name, _, __: None,
}


def content(classifier: Classifier, file: Path) -> bytes:
    """A model with the input ``images``, uint8 (N, 28, 28), and the output ``logits`` (N, 10).

    N is free, normalisation is inside, everything is computed in float32. What is known of the
    network stands in the model's metadata.

    Raises:
      UserError: where onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise UserError(f"{file} needs onnx: pip install onnx, or choose another format") from error

    graph = _Graph(helper, numpy_helper, "images")
    graph.add("Cast", "input", to=TensorProto.FLOAT)
    graph.add("Unsqueeze", "input", ("axes", np.array([1], np.int64)))
    graph.add("Div", "pixels", ("range", np.array(255, np.float32)))
    graph.add("Sub", "normalize", ("mean", np.array(MEAN, np.float32)))
    graph.add("Div", "normalize", ("std", np.array(STD, np.float32)))
    for position, layer in enumerate(classifier.network.layers):
        leaves = classifier.leaves(position)
        _NODES[type(layer)](graph, f"layers.{position}", layer, leaves)
    graph.nodes[-1].output[0] = "logits"
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            str(classifier.config.model),
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
            graph.initializers,
        ),
        producer_name="jaxmnist",
        producer_version=jaxmnist.__version__,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    model.doc_string = "Handwritten digits: images of 0 for background to 255 for ink."
    helper.set_model_props(model, classifier.metadata)
    checker.check_model(model, full_check=True)
    return model.SerializeToString()
