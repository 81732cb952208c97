"""``ops.conv2d`` for GPUs: what differentiation and ``vmap`` make of the functions in ``kernels``.

The rule that ``vmap`` has for kernels would begin with a program of each network, where these have
all of a network's programs side by side.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxmnist.errors import UserError
from jaxmnist.networks import kernels

_INDEX_LIMIT = 2**31 - 1  # elements that int32 can count


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def conv2d(
    x_HCWN: jax.Array, kernel_HWIO: jax.Array, bias_O: jax.Array | None, padding: int
) -> jax.Array:
    """As ``ops.conv2d``, for dtypes of up to 32 bits; sums are float32."""
    return _forward(x_HCWN, kernel_HWIO, bias_O, padding)[0]


def _forward(x_HCWN, kernel_HWIO, bias_O, padding):
    y_HOWN = _convolution(x_HCWN, kernel_HWIO, bias_O, (padding, padding))
    return y_HOWN, (x_HCWN, kernel_HWIO, bias_O)


def _backward(padding, residuals, dy_HOWN):
    x_HCWN, kernel_HWIO, bias_O = residuals
    kh, kw, _, _ = kernel_HWIO.shape
    turned_HWOI = kernel_HWIO[::-1, ::-1].swapaxes(2, 3)
    dx_HCWN = _convolution(dy_HOWN, turned_HWOI, None, (kh - 1 - padding, kw - 1 - padding))
    dkernel_HWIO = _gradient(x_HCWN, dy_HOWN, (padding, padding)).astype(kernel_HWIO.dtype)
    if bias_O is None:
        return dx_HCWN, dkernel_HWIO, None
    dbias_O = dy_HOWN.astype(jnp.float32).sum((0, 2, 3)).astype(bias_O.dtype)
    return dx_HCWN, dkernel_HWIO, dbias_O


conv2d.defvjp(_forward, _backward)


def _convolution(
    x_HCWN: jax.Array, kernel_HWIO: jax.Array, bias_O: jax.Array | None, padding: tuple[int, int]
) -> jax.Array:
    """With the padding of H and that of W."""
    bias = () if bias_O is None else (bias_O,)
    of_all = functools.partial(kernels.convolve, padding)
    return _over_networks(of_all)(x_HCWN, kernel_HWIO, *bias)


def _gradient(x_HCWN: jax.Array, dy_HOWN: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """That of the kernel: float32 (kh, kw, I, O)."""
    of_all = functools.partial(kernels.gradients, padding)
    return _over_networks(of_all, lambda parts: parts.sum(1))(x_HCWN, dy_HOWN)


def _over_networks(
    function: Callable[..., jax.Array],
    finish: Callable[[jax.Array], jax.Array] = lambda result: result,
) -> Callable[..., jax.Array]:
    """Makes of a function of S networks that of one, which ``vmap`` makes that of S again.

    ``finish`` makes of its result one that has S alone to do with the number of networks.
    """

    def fitting(*arrays: jax.Array) -> int:
        """The networks whose arrays, inside and out, have no more elements than int32 can count."""
        result = jax.eval_shape(function, *(a[:1] for a in arrays))
        largest = max(result.size, *(a[0].size for a in arrays))
        if largest > _INDEX_LIMIT:
            raise UserError(
                f"a network has an array of {largest:,} elements, and a kernel can count 2³¹-1: "
                "take a smaller config.batch_size, or fewer maps"
            )
        return _INDEX_LIMIT // largest

    @custom_vmap
    def of_one(*arrays: jax.Array) -> jax.Array:
        every = [a[None] for a in arrays]
        fitting(*every)
        return finish(function(*every))[0]

    @of_one.def_vmap
    def of_many(size: int, mapped: Any, *arrays: jax.Array) -> tuple[jax.Array, bool]:
        every = [
            a if own else jnp.broadcast_to(a[None], (size, *a.shape))
            for a, own in zip(arrays, mapped, strict=True)
        ]
        most = fitting(*every)
        parts = [
            finish(function(*(a[first : first + most] for a in every)))
            for first in range(0, size, most)
        ]
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts)), True

    return of_one
