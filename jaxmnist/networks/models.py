"""The eight networks, each written down once, and the Flax module that runs one.

The parameter table, the receptive field and the mapping to PyTorch are derived from these lists.
Where the published write-ups are silent the choice is marked "inferred".
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxmnist.networks import blocks
from jaxmnist.networks.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgMaxPool,
    GlobalAvgPool,
    Layer,
    Linear,
    MaxPool,
    Relu,
)

Layers = tuple[Layer, ...]
Rate = ArrayLike | None

MEAN, STD = 0.1307, 0.3081  # of the MNIST training pixels scaled to [0, 1], as everyone rounds them


class Network(nn.Module):
    """Runs a list of layers; parameters are named ``layers_0``, ``layers_1``…

    The numbers are positions in the list, as in ``torch.nn.Sequential``; a layer that comes several
    times has its first one. ``dtype`` is that of the activations; parameters and statistics stay
    float32.
    """

    layers: Sequence[Layer]
    dtype: DTypeLike = jnp.float32
    # Of itself Flax names a layer that comes several times by the first of its places in the order
    # of words, 11 before 3.
    preserve_adopted_names: ClassVar[bool] = True

    def __call__(self, images_NHW: jax.Array, *, train: bool) -> jax.Array:
        """Logits (N, 10) of uint8 images (N, 28, 28).

        In training mode it needs the rng ``dropout`` and updates the collection ``batch_stats``.
        """
        return self.from_batch_minor(images_NHW.transpose(1, 2, 0), train=train)

    def from_batch_minor(self, images_HWN: jax.Array, *, train: bool) -> jax.Array:
        """As ``__call__``, for images that are (28, 28, N) already: spares a transposition."""
        wide_HWN = images_HWN.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = ((wide_HWN / 255 - MEAN) / STD).astype(self.dtype)[:, None]
        for layer in self.layers:
            x = layer(x, train=train)
        return x.T


Model = str | blocks.Blocks


def build(
    model: Model,
    dropout: Rate = None,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
) -> Network:
    """The network ``model``, one of NETWORKS by name or described, with the rate ``dropout``.

    The rate may be a traced number; None is no dropout. ``axis_name``: the mapped axis that batches
    are split over, see ``Layer``.
    """
    described = isinstance(model, blocks.Blocks)
    layers = blocks.layers(model, dropout) if described else NETWORKS[model](dropout)
    clones = [
        layer.clone(axis_name=axis_name, name=f"layers_{place}")
        for place, layer in enumerate(layers)
    ]
    return Network(tuple(clones[owner] for owner in owners(layers)), dtype)


def owners(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The position under which each layer's parameters are kept.

    A layer that comes several times has one set of them, at the first of its places.
    """
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(layer), place) for place, layer in enumerate(layers))


def conv_bn_relu(features: int, padding: int, use_bias: bool = False) -> Layers:
    return Conv(features, 3, padding, use_bias), BatchNorm(), Relu()


def conv_relu_bn(features: int, padding: int) -> Layers:
    return Conv(features, 3, padding), Relu(), BatchNorm()


def compact_tiny(dropout: Rate) -> Layers:
    """6,584 parameters. The head, average beside max pool, is inferred from the count."""
    return (
        *conv_bn_relu(8, 1),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(16, 1),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(32, 1),
        GlobalAvgMaxPool(),
        Flatten(),
        Linear(10, use_bias=False),
    )


def compact(dropout: Rate) -> Layers:
    """CompactMNISTNet: 18,472 parameters, receptive field 56."""
    return (
        *conv_bn_relu(8, 1),
        *conv_bn_relu(8, 1),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(16, 1),
        *conv_bn_relu(16, 1),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(32, 1),
        *conv_bn_relu(32, 1),
        GlobalAvgPool(),
        Flatten(),
        Linear(10, use_bias=False),
    )


def lightweight(dropout: Rate) -> Layers:
    """19,210 parameters, receptive field 40. Every convolution has a bias."""
    return (
        *conv_bn_relu(6, 1, use_bias=True),
        *conv_bn_relu(10, 1, use_bias=True),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(16, 1, use_bias=True),
        *conv_bn_relu(18, 1, use_bias=True),
        MaxPool(),
        Dropout(dropout, whole_channels=True),
        *conv_bn_relu(32, 0, use_bias=True),
        *conv_bn_relu(24, 0, use_bias=True),
        Conv(10, 3, 0, use_bias=True),
        GlobalAvgPool(),
        Flatten(),
    )


def model1(dropout: Rate) -> Layers:
    """13,808 parameters, receptive field 32. ReLU comes before batch norm."""
    return (
        *conv_relu_bn(16, 0),
        Dropout(dropout),
        *conv_relu_bn(32, 0),
        Dropout(dropout),
        Conv(10, 1),
        MaxPool(),
        *conv_relu_bn(16, 0),
        Dropout(dropout),
        *conv_relu_bn(16, 0),
        Dropout(dropout),
        *conv_relu_bn(16, 0),
        Dropout(dropout),
        *conv_relu_bn(16, 1),
        Dropout(dropout),
        GlobalAvgPool(),
        Conv(10, 1),
        Flatten(),
    )


def model2(dropout: Rate) -> Layers:
    """9,382 parameters, receptive field 40. Every convolution has a bias."""
    return (
        *conv_bn_relu(16, 1, use_bias=True),
        *conv_bn_relu(16, 1, use_bias=True),
        MaxPool(),
        Conv(12, 1, use_bias=True),
        Dropout(dropout),
        *conv_bn_relu(20, 1, use_bias=True),
        *conv_bn_relu(20, 1, use_bias=True),
        MaxPool(),
        Conv(24, 1, use_bias=True),
        Dropout(dropout),
        GlobalAvgPool(),
        Conv(10, 1, use_bias=True),
        Flatten(),
    )


def model3(_: Rate) -> Layers:
    """7,784 parameters, receptive field 42. No dropout."""
    return (
        *conv_bn_relu(7, 0),
        *conv_bn_relu(7, 0),
        *conv_bn_relu(10, 0),
        MaxPool(),
        *conv_bn_relu(10, 0),
        *conv_bn_relu(12, 0),
        MaxPool(),
        *conv_bn_relu(16, 1),
        *conv_bn_relu(18, 1),
        GlobalAvgPool(),
        Flatten(),
        Linear(10),
    )


def efficient(dropout: Rate) -> Layers:
    """19,664 parameters, receptive field 28."""
    return (
        *conv_bn_relu(16, 0),
        *conv_bn_relu(32, 0),
        Dropout(dropout),
        MaxPool(),
        Conv(16, 1),
        BatchNorm(),
        Relu(),
        *conv_bn_relu(32, 0),
        Dropout(dropout),
        *conv_bn_relu(32, 0),
        Dropout(dropout),
        GlobalAvgPool(),
        Conv(10, 1),
        Flatten(),
    )


def net8k(dropout: Rate) -> Layers:
    """8,440 parameters, receptive field 48."""
    return (
        *conv_bn_relu(8, 1),
        *conv_bn_relu(16, 1),
        MaxPool(),
        *conv_bn_relu(16, 1),
        *conv_bn_relu(16, 1),
        MaxPool(),
        *conv_bn_relu(16, 1),
        Dropout(dropout),
        Conv(10, 1),
        GlobalAvgPool(),
        Flatten(),
    )


NETWORKS: dict[str, Callable[[Rate], Layers]] = {
    network.__name__: network
    for network in (
        compact_tiny,
        compact,
        lightweight,
        model1,
        model2,
        model3,
        efficient,
        net8k,
    )
}
