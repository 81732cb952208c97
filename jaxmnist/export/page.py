"""A trained network as a web page to draw digits on: one file that needs nothing but a browser.

page.html is the page without a network: the forward pass in JavaScript, layer by layer, and MNIST's
form of a digit as photos/form.py makes it. Here the layers and the weights are put into it.
"""

import base64
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxmnist
from jaxmnist.classifier import Classifier
from jaxmnist.networks import layers
from jaxmnist.networks.models import MEAN, STD

_TEMPLATE = Path(__file__).with_name("page.html")
_PLACE = "/*NETWORK*/null"

Leaves = Mapping[str, np.ndarray]
Described = dict[str, Any]


class _Numbers:
    """All weights in one row."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._size = 0

    def add(self, array: np.ndarray | None) -> int:
        """Where the array begins; -1 for none."""
        if array is None:
            return -1
        first = self._size
        self._arrays.append(array.astype("<f4").ravel())
        self._size += array.size
        return first

    def text(self) -> str:
        joined = np.concatenate([np.zeros(0, "<f4"), *self._arrays])
        return base64.b64encode(joined.tobytes()).decode("ascii")


def _convolution(kernel_HWIO: np.ndarray, padding: int, numbers: _Numbers) -> Described:
    size, _, inputs, features = kernel_HWIO.shape
    return {
        "kind": "conv",
        "size": size,
        "padding": padding,
        "inputs": inputs,
        "features": features,
        "weight": numbers.add(kernel_HWIO.transpose(3, 2, 0, 1)),
    }


def _conv(layer: layers.Conv, leaves: Leaves, numbers: _Numbers) -> list[Described]:
    conv = _convolution(leaves["kernel"], layer.padding, numbers)
    return [conv | {"bias": numbers.add(leaves.get("bias"))}]


def _separable(layer: layers.SeparableConv, leaves: Leaves, numbers: _Numbers) -> list[Described]:
    depthwise = _convolution(leaves["depthwise"], layer.padding, numbers)
    pointwise = _convolution(leaves["pointwise"], 0, numbers)
    return [depthwise | {"bias": -1}, pointwise | {"bias": numbers.add(leaves.get("bias"))}]


def _batch_norm(layer: layers.BatchNorm, leaves: Leaves, numbers: _Numbers) -> list[Described]:
    factor = leaves["scale"] / np.sqrt(leaves["var"] + layer.EPSILON)
    offset = leaves["bias"] - leaves["mean"] * factor
    return [{"kind": "affine", "factor": numbers.add(factor), "offset": numbers.add(offset)}]


def _linear(layer: layers.Linear, leaves: Leaves, numbers: _Numbers) -> list[Described]:
    linear = {
        "kind": "linear",
        "features": layer.features,
        "weight": numbers.add(leaves["kernel"].T),
        "bias": numbers.add(leaves.get("bias")),
    }
    return [linear]


_KINDS: dict[type[layers.Layer], Callable[[Any, Leaves, _Numbers], list[Described]]] = {
    layers.Conv: _conv,
    layers.SeparableConv: _separable,
    layers.BatchNorm: _batch_norm,
    layers.Linear: _linear,
    layers.Relu: lambda *_: [{"kind": "relu"}],
    layers.Silu: lambda *_: [{"kind": "silu"}],
    layers.MaxPool: lambda *_: [{"kind": "maxpool"}],
    layers.GlobalAvgPool: lambda *_: [{"kind": "pool", "maximum": False}],
    layers.GlobalAvgMaxPool: lambda *_: [{"kind": "pool", "maximum": True}],
    layers.Flatten: lambda *_: [],  # maps lie one behind the other already
    layers.Dropout: lambda *_: [],
}


def content(classifier: Classifier) -> bytes:
    """The page, in UTF-8."""
    numbers = _Numbers()
    described = [
        part
        for position, layer in enumerate(classifier.network.layers)
        for part in _KINDS[type(layer)](layer, classifier.leaves(position), numbers)
    ]
    network = {
        "mean": MEAN,
        "std": STD,
        "layers": described,
        "weights": numbers.text(),
        "about": _about(classifier),
    }
    text = json.dumps(network).replace("<", "\\u003c")  # no text in it ends the script
    return _TEMPLATE.read_text(encoding="utf-8").replace(_PLACE, text).encode()


def _about(classifier: Classifier) -> str:
    known = classifier.metadata
    text = f"{known.get('recipe') or known['model']}, {int(known['params']):,} parameters"
    with contextlib.suppress(KeyError, ValueError):  # a file's metadata can be anything
        accuracy = float(known["final_accuracy"])
        if not math.isfinite(accuracy):
            raise ValueError
        what = "test images" if classifier.config.split == "train/test" else "images held out"
        text += f", {accuracy:.2f} % of {what} right"
    return f"{text}. Made by jaxmnist {jaxmnist.__version__}; what is drawn stays on this page."
