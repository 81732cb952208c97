"""Networks that several tests write in other formats."""

from typing import Any

import jax
import numpy as np

from jaxmnist import data
from jaxmnist.classifier import Classifier
from jaxmnist.config import Config, architecture, default_config
from jaxmnist.networks import layers, models, prng

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
ORIENTED: dict[str, Any] = SMALL | {
    "network.blocks": "8k3o/8do-=-16o/10d",
    "network.pool_first": True,
}
ALL: dict[str, dict[str, Any]] = {
    **{name: {"model": name} for name in models.NETWORKS},
    "blocks": DESCRIBED,
    "small": SMALL,
    "oriented": ORIENTED,
}
"""Each network, and three that a recipe describes, by the fields that make them."""


def every_kind() -> list[type[layers.Layer]]:
    """The layers that networks are made of."""
    classes = [kind for kind in vars(layers).values() if isinstance(kind, type)]
    kinds = [kind for kind in classes if issubclass(kind, layers.Layer)]
    return [kind for kind in kinds if "__call__" in vars(kind)]


def config_of(**fields: Any) -> Config:
    config = default_config()
    config.update_from_flattened_dict({"model": "model3"} | fields)
    return config


def random_classifier(**fields: Any) -> Classifier:
    """With random weights, and batch norms away from their start."""
    config = config_of(**fields)
    network = models.build(architecture(config))
    random = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            return random.uniform(0.5, 2, leaf.shape).astype(np.float32)
        # Kernels such that activations neither grow nor vanish on their way.
        spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if name in KERNELS else 0.2
        return random.normal(0, spread, leaf.shape).astype(np.float32)

    blank_NHW = jax.ShapeDtypeStruct((1, 28, 28), np.uint8)
    shapes = jax.eval_shape(lambda x: network.init(prng.key(0), x, train=False), blank_NHW)
    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    params, batch_stats = drawn["params"], drawn["batch_stats"]
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
