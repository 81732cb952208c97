"""The layers of the compact networks, in the layout that is fastest on CPU and GPU.

Activations are batch-minor, (H, C, W, N): the batch fills the vector lanes whatever the image size,
and the rows that a convolution looks at lie side by side, ready for a matrix product. Parameters
keep the names and shapes that Flax users expect (``kernel`` HWIO, ``scale``, ``bias``, ``mean``,
``var``).

Every layer maps an array with the batch last to another one and says with ``window(height)`` how
large the patch is that it looks at and how far it strides; ``analyze.py`` derives receptive fields
from that. Semantics and initialisation are those of the ``torch.nn`` layer of the same name.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmnist.networks import prng, symmetry
from jaxmnist.networks.ops import conv2d, dot, max_pool, separable_conv2d


class Window(NamedTuple):
    """Side length of the patch a layer looks at and the stride it moves by, in input pixels."""

    size: int = 1
    stride: int = 1


class Layer(nn.Module, kw_only=True):
    """Maps an array with the batch last to another one.

    Where the batch is split over devices, ``axis_name`` is the name of the mapped axis (that of
    ``shard_map`` or ``pmap``) along which its parts lie.
    """

    axis_name: str | None = None

    def window(self, height: int) -> Window:
        """The patch of an input ``height`` pixels high that one output pixel sees."""
        return Window()

    def whole(self, name: str, leaf: jax.Array) -> jax.Array:
        """What the parameter or statistic ``name`` stands for: the tensor that PyTorch has."""
        return leaf


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser U(-1/√fan_in, 1/√fan_in): torch's default for conv and linear, bias included."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _per_channel(a_C: jax.Array) -> jax.Array:
    return a_C[None, :, None, None]


class Convolution(Layer):
    """What convolutions with stride 1 have in common.

    With ``oriented`` the result is made of oriented maps, see ``symmetry``, and an eighth of the
    kernels is trained. ``oriented_input`` says that the input is made of such maps.
    """

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False
    oriented: bool = False
    oriented_input: bool = False

    def window(self, height: int) -> Window:
        return Window(self.kernel_size)

    def whole(self, name: str, leaf: jax.Array) -> jax.Array:
        if not self._tied(name):
            return leaf
        if name == "bias":
            return symmetry.whole_vector(leaf)
        across = self.oriented_input and name != "depthwise"
        return symmetry.whole_kernel(leaf, oriented_input=across)

    def _tied(self, name: str) -> bool:
        return self.oriented_input if name == "depthwise" else self.oriented

    def tensor(self, name: str, init: nn.initializers.Initializer, *shape: int) -> jax.Array:
        """The parameter ``name`` as a whole, of that shape."""
        own = shape[-1] // symmetry.ORIENTATIONS if self._tied(name) else shape[-1]
        return self.whole(name, self.param(name, init, (*shape[:-1], own)))


class Conv(Convolution):
    """2-D convolution, as ``torch.nn.Conv2d``."""

    @nn.compact
    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        size, channels = self.kernel_size, x_HCWN.shape[1]
        init = uniform_fan_in(size**2 * channels)
        kernel = self.tensor("kernel", init, size, size, channels, self.features)
        bias = self.tensor("bias", init, self.features) if self.use_bias else None
        kernel, bias = jax.tree.map(lambda leaf: leaf.astype(x_HCWN.dtype), (kernel, bias))
        return conv2d(x_HCWN, kernel, bias, self.padding)


class SeparableConv(Convolution):
    """A depthwise convolution and a 1×1 convolution behind it, with nothing in between.

    In PyTorch ``Conv2d(I, I, kernel_size, groups=I, bias=False)`` and ``Conv2d(I, O, 1)``. The
    depthwise kernels of oriented maps are turned with the maps.
    """

    @nn.compact
    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        size, channels = self.kernel_size, x_HCWN.shape[1]
        depthwise_HW1I = self.tensor("depthwise", uniform_fan_in(size**2), size, size, 1, channels)
        init = uniform_fan_in(channels)
        pointwise_11IO = self.tensor("pointwise", init, 1, 1, channels, self.features)
        bias = self.tensor("bias", init, self.features) if self.use_bias else None
        depthwise_HW1I, pointwise_11IO, bias = jax.tree.map(
            lambda leaf: leaf.astype(x_HCWN.dtype), (depthwise_HW1I, pointwise_11IO, bias)
        )
        return separable_conv2d(x_HCWN, depthwise_HW1I, pointwise_11IO, bias, self.padding)


class Flatten(Layer):
    """The maps of an image as one vector, (H, C, W, N) to (C·H·W, N): ``torch.nn.Flatten``."""

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        return x_HCWN.swapaxes(0, 1).reshape(-1, x_HCWN.shape[-1])


class Linear(Layer):
    """Fully connected layer, (I, N) to (O, N), as ``torch.nn.Linear``."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_IN: jax.Array, *, train: bool) -> jax.Array:
        init = uniform_fan_in(len(x_IN))
        kernel_IO = self.param("kernel", init, (len(x_IN), self.features))
        y_ON = dot(kernel_IO.astype(x_IN.dtype), x_IN, (0, 0))
        if self.use_bias:
            y_ON += self.param("bias", init, (self.features,)).astype(y_ON.dtype)[:, None]
        return y_ON.astype(x_IN.dtype)


class BatchNorm(Layer):
    """Batch normalisation over (H, W, N), as ``torch.nn.BatchNorm2d``.

    The batch is normalised with its biased variance, the running one collects the unbiased.
    Statistics are computed in at least float32 whatever the dtype of x, and over all parts of a
    batch that is split. Without ``use_scale`` the scale is not trained: it stays 1, beside the
    running statistics. Of ``oriented`` maps, see ``symmetry``, the eight that belong together are
    normalised together.
    """

    use_scale: bool = True
    oriented: bool = False

    EPSILON: ClassVar[float] = 1e-5
    MOMENTUM: ClassVar[float] = 0.9  # torch counts the other way round: its momentum is 0.1

    def whole(self, name: str, leaf: jax.Array) -> jax.Array:
        return symmetry.whole_vector(leaf) if self.oriented else leaf

    @nn.compact
    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        channels = x_HCWN.shape[1] // (symmetry.ORIENTATIONS if self.oriented else 1)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, (channels,))
        else:
            scale = self.variable("batch_stats", "scale", jnp.ones, (channels,)).value
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))

        wide_HCWN = x_HCWN.astype(jnp.promote_types(x_HCWN.dtype, jnp.float32))
        if train:
            mean = wide_HCWN.mean((0, 2, 3))
            var = wide_HCWN.var((0, 2, 3))
            count = x_HCWN[:, 0].size
            if self.oriented:
                mean, var = _together(*(a.reshape(-1, channels) for a in (mean, var)))
                count *= symmetry.ORIENTATIONS
            if self.axis_name:
                moments_P2C = lax.all_gather(jnp.stack([mean, var]), self.axis_name)
                mean, var = _together(moments_P2C[:, 0], moments_P2C[:, 1])
                count *= len(moments_P2C)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                old = self.MOMENTUM
                running_mean.value = old * running_mean.value + (1 - old) * mean
                running_var.value = old * running_var.value + (1 - old) * unbiased
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.EPSILON)
        offset = bias - mean * factor
        factor, offset = self.whole("scale", factor), self.whole("bias", offset)
        y_HCWN = wide_HCWN * _per_channel(factor) + _per_channel(offset)
        return y_HCWN.astype(x_HCWN.dtype)


def _together(mean_PC: jax.Array, var_PC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance, (C,), of P equal parts taken together."""
    mean_C = mean_PC.mean(0)
    return mean_C, (var_PC + (mean_PC - mean_C[None]) ** 2).mean(0)


class Relu(Layer):
    """max(x, 0), with gradient 0 at 0."""

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(x_HCWN)


class Silu(Layer):
    """x·sigmoid(x), as ``torch.nn.SiLU`` (Elfwing et al., 2018)."""

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        return nn.silu(x_HCWN)


class Dropout(Layer):
    """Zeroes elements with probability ``rate``, scales the rest by 1/(1-rate): ``nn.Dropout``.

    With ``whole_channels`` it zeroes whole maps, one decision per image and channel:
    ``torch.nn.Dropout2d``. How a batch is split does not change what is zeroed. The rate may be a
    traced number; None is no dropout.
    """

    rate: ArrayLike | None
    whole_channels: bool = False

    @nn.compact
    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate is None:
            return x_HCWN
        *shape, n = x_HCWN.shape
        if self.whole_channels:
            shape = [1, shape[1], 1]
        batch, first = n, 0
        if self.axis_name:
            batch *= lax.axis_size(self.axis_name)
            first = n * lax.axis_index(self.axis_name)
        bits = prng.bits_slice(self.make_rng("dropout"), (*shape, batch), first, n)
        kept = 1 - jnp.asarray(self.rate, jnp.float32)
        # As jax.random.bernoulli, which makes a float of the upper 23 bits and compares that.
        keep = bits >> 9 < jnp.ceil(kept * 2**23).astype(jnp.uint32)
        return jnp.where(keep, x_HCWN * (1 / kept).astype(x_HCWN.dtype), 0)


class MaxPool(Layer):
    """``max_pool``, as ``torch.nn.MaxPool2d(2)``: a last odd row or column is dropped."""

    def window(self, height: int) -> Window:
        return Window(2, 2)

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        return max_pool(x_HCWN)


class GlobalAvgPool(Layer):
    """Mean over the whole map, (H, C, W, N) to (1, C, 1, N)."""

    def window(self, height: int) -> Window:
        return Window(height)

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        return x_HCWN.mean((0, 2), keepdims=True)


class GlobalAvgMaxPool(Layer):
    """Mean and maximum over the whole map, stacked: (H, C, W, N) to (1, 2·C, 1, N).

    Equal maxima share the gradient evenly, as in ``torch.amax``.
    """

    def window(self, height: int) -> Window:
        return Window(height)

    def __call__(self, x_HCWN: jax.Array, *, train: bool) -> jax.Array:
        mean = x_HCWN.mean((0, 2), keepdims=True)
        return jnp.concatenate([mean, x_HCWN.max((0, 2), keepdims=True)], axis=1)
