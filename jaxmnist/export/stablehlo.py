"""A trained network as a StableHLO program that runs wherever jax and flatbuffers are installed.

program = jax.export.deserialize(bytearray(Path("model3.stablehlo").read_bytes()))
logits = program.call(images)
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from jaxmnist.classifier import Classifier
from jaxmnist.data import SIDE
from jaxmnist.errors import UserError
from jaxmnist.networks import models, target

_PLATFORMS = ("cpu", "cuda", "tpu")


def content(classifier: Classifier, file: Path) -> bytes:
    """A serialized ``jax.export.Exported`` from images, uint8 (N, 28, 28), to logits (N, 10).

    N is free, the weights and the normalisation are inside, everything is computed in float32.

    Raises:
      UserError: where flatbuffers is not installed, which JAX writes the program with.
    """
    network = models.Network(classifier.network.layers)
    variables = {"params": classifier.params, "batch_stats": classifier.batch_stats}
    (n,) = export.symbolic_shape("N")
    with target.form(target.ACCELERATOR):  # plain operations, which any platform takes
        program = export.export(
            jax.jit(lambda images: network.apply(variables, images, train=False)),
            platforms=_PLATFORMS,
        )(jax.ShapeDtypeStruct((n, SIDE, SIDE), jnp.uint8))
    try:
        return bytes(program.serialize())
    except ImportError as error:
        raise UserError(
            f"{file} needs flatbuffers: pip install flatbuffers, or choose another format"
        ) from error
