"""Networks that several tests write in other formats."""

from typing import Any

import numpy as np

from jaxmnist import data
from jaxmnist.classifier import Classifier
from jaxmnist.config import Config, architecture, default_config
from jaxmnist.export import torch_weights
from jaxmnist.networks import models

KERNELS = ("kernel", "depthwise", "pointwise")
METADATA = {"recipe": "mine", "seed": "5", "epoch": "3", "step": "321", "final_accuracy": "98.5"}

DESCRIBED: dict[str, Any] = {
    "model": "blocks",
    "network.blocks": "4-6/8",
    "network.padding": "1/0",
    "network.head": "avgmax",
    "network.head_bias": True,
}
SMALL: dict[str, Any] = {
    "model": "blocks",
    "network.blocks": "6-8k5d/8d-=/10d",
    "network.padding": "0",
    "network.head": "maps",
    "network.head_bias": True,
    "network.activation": "silu",
    "network.batch_norm_scale": False,
}
ALL: dict[str, dict[str, Any]] = {
    **{name: {"model": name} for name in models.NETWORKS},
    "blocks": DESCRIBED,
    "small": SMALL,
}
"""Each network, and two that a recipe describes, by the fields that make them."""


def config_of(**fields: Any) -> Config:
    config = default_config()
    config.update_from_flattened_dict({"model": "model3"} | fields)
    return config


def random_classifier(**fields: Any) -> Classifier:
    """With random weights, and batch norms away from their start."""
    config = config_of(**fields)
    network = models.build(architecture(config))
    random = np.random.default_rng(0)

    def draw(slot: torch_weights.Slot) -> np.ndarray:
        if slot.leaf in ("scale", "var"):
            return random.uniform(0.5, 2, slot.shape)
        # Kernels such that activations neither grow nor vanish on their way.
        spread = (2 / np.prod(slot.shape[1:])) ** 0.5 if slot.leaf in KERNELS else 0.2
        return random.normal(0, spread, slot.shape)

    drawn: dict[str, np.ndarray] = {}
    shared: dict[tuple[str, str], np.ndarray] = {}
    for slot in torch_weights.slots(network):
        place = slot.layer, slot.leaf
        if place not in shared:
            shared[place] = draw(slot).astype(np.float32)
        drawn[slot.key] = shared[place]
    params, batch_stats, _ = torch_weights.from_state_dict(network, drawn, in_order=False)
    return Classifier(config, params, batch_stats, "random numbers", METADATA)


def some_images(dataset: data.Dataset) -> np.ndarray:
    """Seven: four of a data set, and noise, which has ink at the edges as well."""
    noise_NHW = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    return np.concatenate([dataset.images_NHW[:4], noise_NHW])


def assert_as_many_right(classifier: Classifier, found_NK: Any, dataset: data.Dataset) -> None:
    """What an exported network finds in a whole data set is right as often, but for two."""
    expected = count_right(classifier.logits(dataset.images_NHW), dataset)
    assert expected > 9800
    assert abs(count_right(found_NK, dataset) - expected) <= 2


def count_right(logits_NK: np.ndarray, dataset: data.Dataset) -> int:
    return int((logits_NK.argmax(1) == dataset.labels_N).sum())
