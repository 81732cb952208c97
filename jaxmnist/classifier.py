"""A trained network at work: digits and probabilities of images."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.config import Config, architecture
from jaxmnist.errors import UserError
from jaxmnist.networks import analyze, models
from jaxmnist.networks.models import SIDE

_BATCH = 1024


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
    """

    def __init__(self, config: Config, params: Any, batch_stats: Any, source: str):
        self.config, self.params, self.batch_stats = config, params, batch_stats
        self.source = source
        self.network = models.build(architecture(config), dtype=jnp.dtype(config.precision))
        self._apply = jax.jit(functools.partial(self.network.apply, train=False))

    def __repr__(self) -> str:
        return f"<Classifier {self.config.model} of {self.source}>"

    def logits(self, images: Any) -> np.ndarray:
        """The logits, float32 (N, 10), or (10,) of a single image.

        Args:
          images: uint8 (N, 28, 28) or (28, 28), NumPy or JAX; 0 for background, 255 for ink.

        Raises:
          UserError: for other shapes and types.
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
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        found = [np.zeros((0, 10), np.float32)]
        for start in range(0, len(images_NHW), _BATCH):
            part_NHW = images_NHW[start : start + _BATCH]
            # Of few shapes, each of which is compiled once: the next power of two.
            size = min(_BATCH, 1 << (len(part_NHW) - 1).bit_length())
            padded_NHW = np.zeros((size, SIDE, SIDE), np.uint8)
            padded_NHW[: len(part_NHW)] = part_NHW
            logits_NK: Any = self._apply(variables, padded_NHW)
            found.append(np.asarray(logits_NK, np.float32)[: len(part_NHW)])
        return np.concatenate(found)

    def predict(self, images: Any) -> Prediction:
        """Digits and probabilities of uint8 images, (N, 28, 28) or (28, 28).

        Raises:
          UserError: for other shapes and types.
        """
        logits_NK = self.logits(images)
        weights_NK = np.exp(logits_NK - logits_NK.max(-1, keepdims=True))
        probabilities_NK = weights_NK / weights_NK.sum(-1, keepdims=True)
        return Prediction(logits_NK.argmax(-1), probabilities_NK)

    def summary(self) -> str:
        """The table of layers: outputs, parameters, receptive field."""
        return analyze.table(analyze.summarize(self.network))
