"""A trained network as a StableHLO program that needs nothing but JAX to run.

program = jax.export.deserialize(bytearray(Path("model3.stablehlo").read_bytes()))
logits = program.call(images)
"""

import jax
import jax.numpy as jnp
from jax import export

from jaxmnist.classifier import Classifier
from jaxmnist.networks import models, target
from jaxmnist.networks.models import SIDE

_PLATFORMS = ("cpu", "cuda", "tpu")


def content(classifier: Classifier) -> bytes:
    """A serialized ``jax.export.Exported`` from images, uint8 (N, 28, 28), to logits (N, 10).

    N is free, the weights and the normalisation are inside, everything is computed in float32.
    """
    network = models.Network(classifier.network.layers)
    variables = {"params": classifier.params, "batch_stats": classifier.batch_stats}
    (n,) = export.symbolic_shape("N")
    with target.form(target.ACCELERATOR):  # plain operations, which any platform takes
        program = export.export(
            jax.jit(lambda images: network.apply(variables, images, train=False)),
            platforms=_PLATFORMS,
        )(jax.ShapeDtypeStruct((n, SIDE, SIDE), jnp.uint8))
    return bytes(program.serialize())
