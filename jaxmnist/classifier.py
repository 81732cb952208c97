"""A trained network at work: digits and probabilities of images."""

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmnist
from jaxmnist.config import Config, architecture
from jaxmnist.data import SIDE
from jaxmnist.errors import UserError
from jaxmnist.networks import analyze, models
from jaxmnist.training import parallel

BATCH = 128  # images that go through a core's own cache at once


@functools.partial(jax.jit, static_argnames="network")
def _apply(network: models.Network, variables: Any, images_NHW: jax.Array) -> Any:
    """Compiled once for each shape, for all classifiers of equal networks."""
    return network.apply(variables, images_NHW, train=False)


class Prediction(NamedTuple):
    """What a network sees in images; for a single one without the leading axis."""

    digits: np.ndarray
    """int64 (N,)."""
    probabilities: np.ndarray
    """float32 (N, 10), of each digit."""


class Classifier:
    """A trained network.

    Attributes:
      config: what it was trained with.
      network: the Flax module.
      params: its parameters.
      batch_stats: the statistics of its batch norms.
      source: where it comes from, in words.
      metadata: what the files that it is saved in say about it, text by name: model, params,
        config (JSON), version; as far as it is known seed, epoch, step, recipe and final_accuracy
        (percent, on what the recipe evaluates on).
    """

    def __init__(
        self,
        config: Config,
        params: Any,
        batch_stats: Any,
        source: str,
        metadata: Mapping[str, str] | None = None,
    ):
        self.config, self.params, self.batch_stats = config, params, batch_stats
        self.source = source
        self.network = models.build(architecture(config), dtype=jnp.dtype(config.precision))
        self.metadata = {
            "config": config.to_json(),
            "version": jaxmnist.__version__,
            **(metadata or {}),
            "model": str(config.model),
            "params": str(sum(leaf.size for leaf in jax.tree.leaves(params))),
        }

    def __repr__(self) -> str:
        return f"<Classifier {self.config.model} of {self.source}>"

    def logits(self, images: Any) -> np.ndarray:
        """The logits, float32 (N, 10), or (10,) of a single image.

        Args:
          images: uint8 (N, 28, 28) or (28, 28), NumPy or JAX; 0 for background, 255 for ink.

        Raises:
          UserError: for other shapes and types, and for a network whose logits are not finite.
        """
        images_NHW = np.asarray(images)
        if images_NHW.dtype != np.uint8:
            raise UserError(
                f"the images are of type {images_NHW.dtype}: they must be uint8, from 0 for "
                "background to 255 for ink"
            )
        if images_NHW.shape[-2:] != (SIDE, SIDE) or images_NHW.ndim not in (2, 3):
            raise UserError(
                f"the images have the shape {images_NHW.shape}: it must be (N, {SIDE}, {SIDE}) or "
                f"({SIDE}, {SIDE})"
            )
        if images_NHW.ndim == 2:
            return self.logits(images_NHW[None])[0]
        parts = [images_NHW[first : first + BATCH] for first in range(0, len(images_NHW), BATCH)]
        found = [np.zeros((0, 10), np.float32)]
        found += map(self._logits_of_part, parts[:1])  # alone: it may have to be compiled
        with ThreadPoolExecutor(parallel.cores()) as cores:
            found += cores.map(self._logits_of_part, parts[1:])
        logits_NK = np.concatenate(found)
        if not np.isfinite(logits_NK).all():
            raise UserError(f"{self.source} gives no finite logits: its weights are damaged")
        return logits_NK

    def _logits_of_part(self, part_NHW: np.ndarray) -> np.ndarray:
        """Of up to BATCH images."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        # Of few shapes, each of which is compiled once: the next power of two.
        size = 1 << (len(part_NHW) - 1).bit_length()
        padded_NHW = np.zeros((size, SIDE, SIDE), np.uint8)
        padded_NHW[: len(part_NHW)] = part_NHW
        logits_NK = _apply(self.network, variables, padded_NHW)
        return np.asarray(logits_NK, np.float32)[: len(part_NHW)]

    def predict(self, images: Any) -> Prediction:
        """Digits and probabilities of uint8 images, (N, 28, 28) or (28, 28).

        Raises:
          UserError: for other shapes and types.
        """
        logits_NK = self.logits(images)
        weights_NK = np.exp(logits_NK - logits_NK.max(-1, keepdims=True))
        probabilities_NK = weights_NK / weights_NK.sum(-1, keepdims=True)
        return Prediction(logits_NK.argmax(-1), probabilities_NK)

    def leaves(self, position: int) -> dict[str, np.ndarray]:
        """Parameters and statistics of the layer at ``position`` of the list, float32 by name.

        Tied ones are whole, as in PyTorch.
        """
        owner = models.owners(self.network.layers)[position]
        layer = self.network.layers[position]
        return {
            name: np.asarray(layer.whole(name, array), np.float32)
            for collection in (self.params, self.batch_stats)
            for name, array in collection.get(f"layers_{owner}", {}).items()
        }

    def summary(self) -> str:
        """The table of layers: outputs, parameters, receptive field."""
        return analyze.table(analyze.summarize(self.network))
