"""The layers of the compact networks, in the layout that is fastest on CPU and GPU.

Activations are batch-minor, (C, H, W, N): the batch fills the vector lanes whatever the image size,
and a convolution becomes one matrix product whose long axis is H·W·N. Parameters keep the names and
shapes that Flax users expect (``kernel`` HWIO, ``scale``, ``bias``, ``mean``, ``var``).

Every layer maps an array with the batch last to another one and says with ``window(height)`` how
large the patch is that it looks at and how far it strides; ``analyze.py`` derives receptive fields
from that. Semantics and initialisation are those of the ``torch.nn`` layer of the same name.
"""

import functools
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class Window(NamedTuple):
    """Side length of the patch a layer looks at and the stride it moves by, in input pixels."""

    size: int = 1
    stride: int = 1


class Layer(nn.Module):
    """Maps an array with the batch last to another one."""

    def window(self, height: int) -> Window:
        """The patch of an input ``height`` pixels high that one output pixel sees."""
        return Window()


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Initialiser U(-1/√fan_in, 1/√fan_in): torch's default for conv and linear, bias included."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _per_channel(a_C: jax.Array) -> jax.Array:
    return a_C[:, None, None, None]


def _pad_hw(x_CHWN: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x_CHWN, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _width_shifts(x_CHWN: jax.Array, count: int) -> jax.Array:
    """Stacks ``count`` copies of x, each one pixel further left: (count·C, H, W-count+1, N)."""
    width = x_CHWN.shape[2] - count + 1
    return jnp.concatenate([x_CHWN[:, :, j : j + width] for j in range(count)], axis=0)


def _rows_matrix(kernel_HWIO: jax.Array) -> jax.Array:
    """The kernel as the (kh·O, kw·I) matrix from width shifts to one map per kernel row."""
    kh, kw, i, o = kernel_HWIO.shape
    return kernel_HWIO.transpose(0, 3, 1, 2).reshape(kh * o, kw * i)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """a·b over axis ``contract[0]`` of a and ``contract[1]`` of b, summed in at least float32."""
    accumulate = jnp.promote_types(a.dtype, jnp.float32)
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=accumulate)


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def conv2d(x_CHWN: jax.Array, kernel_HWIO: jax.Array, padding: int) -> jax.Array:
    """Stride-1 cross-correlation as in ``torch.nn.functional.conv2d``, by one matrix product.

    The "rows" form: width shifts of x, stacked along C, times a (kh·O, kw·I) matrix give one map
    per kernel row; these, shifted in height, add up to the result. It moves a third of the memory
    of im2col, and memory is what a convolution this small costs. The hand-written gradient uses
    the same form, because XLA's own gradient convolutions are slow inside ``lax.scan`` on CPU.

    Args:
      x_CHWN: (I, H, W, N), any float dtype.
      kernel_HWIO: (kh, kw, I, O), the dtype of x.
      padding: zeros added on each side of H and W.

    Returns:
      (O, H+2·padding-kh+1, W+2·padding-kw+1, N) in the dtype of x.
    """
    return _conv2d(x_CHWN, kernel_HWIO, padding)


def _conv2d_primal(x_CHWN: jax.Array, kernel_HWIO: jax.Array, padding: int) -> jax.Array:
    return _conv2d_forward(x_CHWN, kernel_HWIO, padding)[0]


def _conv2d_forward(x_CHWN: jax.Array, kernel_HWIO: jax.Array, padding: int):
    kh, kw, _, o = kernel_HWIO.shape
    shifts_KHWN = _width_shifts(_pad_hw(x_CHWN, padding), kw)
    k, height, width, n = shifts_KHWN.shape
    maps = _dot(_rows_matrix(kernel_HWIO), shifts_KHWN.reshape(k, -1), (1, 0))
    maps_ROHWN = maps.reshape(kh, o, height, width, n)
    out_height = height - kh + 1
    y_CHWN = _sum(maps_ROHWN[r, :, r : r + out_height] for r in range(kh))
    return y_CHWN.astype(x_CHWN.dtype), (x_CHWN, kernel_HWIO)


def _conv2d_backward(padding: int, residuals: tuple[jax.Array, jax.Array], dy_OHWN: jax.Array):
    x_CHWN, kernel_HWIO = residuals
    kh, kw, i, o = kernel_HWIO.shape
    shifts_KHWN = _width_shifts(_pad_hw(x_CHWN, padding), kw)
    k, height, width, n = shifts_KHWN.shape
    dmaps = jnp.concatenate(
        [jnp.pad(dy_OHWN, ((0, 0), (r, kh - 1 - r), (0, 0), (0, 0))) for r in range(kh)], axis=0
    ).reshape(kh * o, -1)

    dmatrix = _dot(dmaps, shifts_KHWN.reshape(k, -1), (1, 1))
    dkernel_HWIO = dmatrix.reshape(kh, o, kw, i).transpose(0, 2, 3, 1)

    dshifts = _dot(_rows_matrix(kernel_HWIO), dmaps, (0, 0))
    dshifts_SCHWN = dshifts.reshape(kw, i, height, width, n)
    dx_CHWN = _sum(
        jnp.pad(dshifts_SCHWN[j], ((0, 0), (0, 0), (j, kw - 1 - j), (0, 0))) for j in range(kw)
    )
    dx_CHWN = dx_CHWN[:, padding : height - padding, padding : width + kw - 1 - padding]
    return dx_CHWN.astype(x_CHWN.dtype), dkernel_HWIO.astype(kernel_HWIO.dtype)


_conv2d = jax.custom_vjp(_conv2d_primal, nondiff_argnums=(2,))
_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


class Conv(Layer):
    """2-D convolution with stride 1, as ``torch.nn.Conv2d``."""

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False

    def window(self, height: int) -> Window:
        return Window(self.kernel_size)

    @nn.compact
    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        channels = x_CHWN.shape[0]
        init = uniform_fan_in(self.kernel_size**2 * channels)
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", init, shape)
        y_CHWN = conv2d(x_CHWN, kernel.astype(x_CHWN.dtype), self.padding)
        if self.use_bias:
            bias = self.param("bias", init, (self.features,))
            y_CHWN += _per_channel(bias.astype(x_CHWN.dtype))
        return y_CHWN


class Flatten(Layer):
    """The maps of an image as one vector, (C, H, W, N) to (C·H·W, N): ``torch.nn.Flatten``."""

    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        return x_CHWN.reshape(-1, x_CHWN.shape[-1])


class Linear(Layer):
    """Fully connected layer, (I, N) to (O, N), as ``torch.nn.Linear``."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x_IN: jax.Array, *, train: bool) -> jax.Array:
        init = uniform_fan_in(len(x_IN))
        kernel_IO = self.param("kernel", init, (len(x_IN), self.features))
        y_ON = _dot(kernel_IO.astype(x_IN.dtype), x_IN, (0, 0))
        if self.use_bias:
            y_ON += self.param("bias", init, (self.features,)).astype(y_ON.dtype)[:, None]
        return y_ON.astype(x_IN.dtype)


class BatchNorm(Layer):
    """Batch normalisation over (H, W, N), as ``torch.nn.BatchNorm2d``.

    The batch is normalised with its biased variance, the running one collects the unbiased.
    Statistics are computed in at least float32 whatever the dtype of x.
    """

    EPSILON: ClassVar[float] = 1e-5
    MOMENTUM: ClassVar[float] = 0.9  # torch counts the other way round: its momentum is 0.1

    @nn.compact
    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        channels = x_CHWN.shape[0]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))

        wide_CHWN = x_CHWN.astype(jnp.promote_types(x_CHWN.dtype, jnp.float32))
        if train:
            mean = wide_CHWN.mean((1, 2, 3))
            var = wide_CHWN.var((1, 2, 3))
            if not self.is_initializing():
                count = x_CHWN[0].size
                unbiased = var * (count / (count - 1))
                old = self.MOMENTUM
                running_mean.value = old * running_mean.value + (1 - old) * mean
                running_var.value = old * running_var.value + (1 - old) * unbiased
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.EPSILON)
        offset = bias - mean * factor
        y_CHWN = wide_CHWN * _per_channel(factor) + _per_channel(offset)
        return y_CHWN.astype(x_CHWN.dtype)


class Relu(Layer):
    """max(x, 0), with gradient 0 at 0."""

    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        return nn.relu(x_CHWN)


class Dropout(Layer):
    """Zeroes elements with probability ``rate``, scales the rest by 1/(1-rate): ``nn.Dropout``.

    With ``whole_channels`` it zeroes whole maps, one decision per image and channel:
    ``torch.nn.Dropout2d``.
    """

    rate: float
    whole_channels: bool = False

    @nn.compact
    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x_CHWN
        c, _, _, n = x_CHWN.shape
        shape = (c, 1, 1, n) if self.whole_channels else x_CHWN.shape
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        return jnp.where(keep, x_CHWN / (1 - self.rate), 0)


class MaxPool(Layer):
    """2×2 maximum with stride 2, a last odd row or column dropped: ``torch.nn.MaxPool2d(2)``.

    Where several pixels of a patch are equal, the whole gradient goes to the first of them in
    row-major order, as in PyTorch; hence the selects, ``jnp.maximum`` would halve it.
    """

    def window(self, height: int) -> Window:
        return Window(2, 2)

    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        _, h, w, _ = x_CHWN.shape
        h, w = h // 2 * 2, w // 2 * 2

        def first_max(a, b):
            return jnp.where(a >= b, a, b)

        top = first_max(x_CHWN[:, 0:h:2, 0:w:2], x_CHWN[:, 0:h:2, 1:w:2])
        bottom = first_max(x_CHWN[:, 1:h:2, 0:w:2], x_CHWN[:, 1:h:2, 1:w:2])
        return first_max(top, bottom)


class GlobalAvgPool(Layer):
    """Mean over the whole map, (C, H, W, N) to (C, 1, 1, N)."""

    def window(self, height: int) -> Window:
        return Window(height)

    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        return x_CHWN.mean((1, 2), keepdims=True)


class GlobalAvgMaxPool(Layer):
    """Mean and maximum over the whole map, stacked: (C, H, W, N) to (2·C, 1, 1, N).

    Equal maxima share the gradient evenly, as in ``torch.amax``.
    """

    def window(self, height: int) -> Window:
        return Window(height)

    def __call__(self, x_CHWN: jax.Array, *, train: bool) -> jax.Array:
        mean = x_CHWN.mean((1, 2), keepdims=True)
        return jnp.concatenate([mean, x_CHWN.max((1, 2), keepdims=True)], axis=0)
