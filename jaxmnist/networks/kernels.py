"""Convolutions for GPUs, in Pallas: each is one kernel that adds up in registers.

Out of XLA's operations a convolution this small goes through memory several times: windows are
written out, multiplied, and the products added up. Matrix units would gain nothing: their tiles are
16 wide where layers have 7 or 10 channels, and float32 takes them three products. On an H200, 64
networks of model3 train in half the time that they take out of XLA's operations.

Of many networks one comes after the other, so that what neighbouring programs share is still in the
cache; the rule that ``vmap`` has for kernels would begin with a program of each network.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from jaxmnist.errors import UserError
from jaxmnist.networks import target

# Chosen on an H200, out of a few that were timed for layers of the recipes.
WARP = 32  # threads of a program
IMAGES = 128  # of a program, four a thread; where a network is alone, one a thread
OUTPUTS = 8  # channels of the result that a program takes at once
PIXELS = 4  # of one row that it takes at once
GRADIENTS = 96  # weights whose gradients a program takes at once, at most
ROWS = 2  # of the result that it adds up

_INDEX_LIMIT = 2**31 - 1  # elements that int32 can count


class _Sizes(NamedTuple):
    """Those of a convolution of S networks."""

    networks: int
    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    images: int

    @property
    def out_height(self) -> int:
        return self.height + 2 * self.padding[0] - self.kernel[0] + 1

    @property
    def out_width(self) -> int:
        return self.width + 2 * self.padding[1] - self.kernel[1] + 1


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

    def of_all(x_SHCWN: jax.Array, kernel_SHWIO: jax.Array, *bias_SO: jax.Array) -> jax.Array:
        networks, height, inputs, width, images = x_SHCWN.shape
        _, kh, kw, _, outputs = kernel_SHWIO.shape
        sizes = _Sizes(networks, height, width, inputs, outputs, (kh, kw), padding, images)
        return _convolve_all(sizes, x_SHCWN, kernel_SHWIO, *bias_SO)

    bias = () if bias_O is None else (bias_O,)
    return _over_networks(of_all)(x_HCWN, kernel_HWIO, *bias)


def _gradient(x_HCWN: jax.Array, dy_HOWN: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """That of the kernel: float32 (kh, kw, I, O)."""

    def of_all(x_SHCWN: jax.Array, dy_SHOWN: jax.Array) -> jax.Array:
        networks, height, inputs, width, images = x_SHCWN.shape
        _, out_height, outputs, out_width, _ = dy_SHOWN.shape
        kernel = height + 2 * padding[0] - out_height + 1, width + 2 * padding[1] - out_width + 1
        sizes = _Sizes(networks, height, width, inputs, outputs, kernel, padding, images)
        return _gradients_of_all(sizes, x_SHCWN, dy_SHOWN)

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


def _run(
    kernel: Callable,
    name: str,
    programs: int,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    *arrays: jax.Array,
) -> jax.Array:
    """Runs so many programs of a warp each, on flat arrays; the result gets its shape."""
    interpreted = target.current().kernels is target.Kernels.INTERPRETED
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((math.prod(shape),), dtype),
        grid=(programs,),
        interpret=interpreted,
        compiler_params=None if interpreted else triton.CompilerParams(num_warps=1, num_stages=1),
        name=name,
    )
    return call(*(a.reshape(-1) for a in arrays)).reshape(shape)


def _digits(number: jax.Array, *counts: int) -> list[jax.Array]:
    """``number`` taken apart: the digits below ``counts``, the fastest first, and what is left."""
    digits = []
    for count in counts:
        digits.append(lax.rem(number, count))
        number = lax.div(number, count)
    return [*digits, number]


def _convolve_all(
    sizes: _Sizes, x_SHCWN: jax.Array, kernel_SHWIO: jax.Array, *bias_SO: jax.Array
) -> jax.Array:
    """A program has some neighbouring pixels and channels of the result, of some images."""
    networks, height, width, inputs, outputs, (kh, kw), padding, images = sizes
    out_height, out_width = sizes.out_height, sizes.out_width
    groups = pl.cdiv(outputs, OUTPUTS)
    group_size = pl.cdiv(outputs, groups)
    pixels = min(PIXELS, out_width)
    chunks = pl.cdiv(out_width, pixels)
    # Alone, a network has too few programs to fill a GPU.
    lanes = WARP if networks == 1 else IMAGES
    blocks = pl.cdiv(images, lanes)

    def kernel(x_ref, kernel_ref, *rest):
        *bias_ref, y_ref = rest
        digits = _digits(pl.program_id(0), groups, chunks, out_height, blocks)
        group, chunk, out_row, block, network = digits
        first_output, first_pixel = group * group_size, chunk * pixels
        image = block * lanes + jnp.arange(lanes)

        def output(o: int) -> jax.Array:
            """The o-th of the group; of those that are not there the last, but no sum is stored."""
            if outputs % group_size == 0:
                return first_output + o
            return jnp.minimum(first_output + o, outputs - 1)

        def row_of_x(r: jax.Array, c: jax.Array) -> list[jax.Array]:
            row = out_row + r - padding[0]
            found = []
            for place in range(pixels + kw - 1):
                column = first_pixel + place - padding[1]
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                at = (((network * height + row) * inputs + c) * width + column) * images
                x_N = triton.load(x_ref.at[at + image], mask=(image < images) & inside, other=0)
                found.append(x_N.astype(jnp.float32))
            return found

        def add(tap: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            r, c = lax.div(tap, inputs), lax.rem(tap, inputs)
            x_row, new = row_of_x(r, c), list(sums)
            for j in range(kw):
                at = (((network * kh + r) * kw + j) * inputs + c) * outputs
                for o in range(group_size):
                    weight = kernel_ref[at + output(o)]
                    for p in range(pixels):
                        new[o * pixels + p] += weight.astype(jnp.float32) * x_row[p + j]
            return tuple(new)

        sums = []
        for o in range(group_size):
            total_N = jnp.zeros(lanes, jnp.float32)
            if bias_ref:
                total_N += bias_ref[0][network * outputs + output(o)].astype(jnp.float32)
            sums += [total_N] * pixels
        sums = lax.fori_loop(0, kh * inputs, add, tuple(sums))
        for o in range(group_size):
            for p in range(pixels):
                at = ((network * out_height + out_row) * outputs + first_output + o) * out_width
                there = (first_output + o < outputs) & (first_pixel + p < out_width)
                mask = (image < images) & there
                y_N = sums[o * pixels + p].astype(x_SHCWN.dtype)
                triton.store(y_ref.at[(at + first_pixel + p) * images + image], y_N, mask=mask)

    shape = networks, out_height, outputs, out_width, images
    programs = networks * blocks * out_height * chunks * groups
    name = f"conv_{inputs}_{outputs}_{out_height}"
    return _run(kernel, name, programs, shape, x_SHCWN.dtype, x_SHCWN, kernel_SHWIO, *bias_SO)


def _channels(inputs: int, outputs: int, taps: int) -> tuple[int, int]:
    """Of so many channels those whose products a program takes: what has the least to be read."""
    choices = []
    for some_inputs in {pl.cdiv(inputs, parts) for parts in range(1, inputs + 1)}:
        for some_outputs in {pl.cdiv(outputs, parts) for parts in range(1, outputs + 1)}:
            reads = inputs * pl.cdiv(outputs, some_outputs) + outputs * pl.cdiv(inputs, some_inputs)
            if some_inputs * some_outputs * taps <= max(GRADIENTS, taps):
                choices.append((reads, some_inputs, some_outputs))
    return min(choices)[1:]


def _gradients_of_all(sizes: _Sizes, x_SHCWN: jax.Array, dy_SHOWN: jax.Array) -> jax.Array:
    """A program has some of the weights, over some rows of the result and a warp of images.

    Returns:
      float32 (S, parts, kh, kw, I, O): the gradients are the sums of the parts.
    """
    networks, height, width, inputs, outputs, (kh, kw), padding, images = sizes
    out_height, out_width = sizes.out_height, sizes.out_width
    # Of the image itself there is so little to read that a program takes all rows of the kernel.
    taps = kh if inputs == 1 else 1
    some_inputs, some_outputs = _channels(inputs, outputs, taps * kw)
    input_groups, output_groups = pl.cdiv(inputs, some_inputs), pl.cdiv(outputs, some_outputs)
    rows = 1 if networks == 1 else min(ROWS, out_height)
    blocks, bands = pl.cdiv(images, WARP), pl.cdiv(out_height, rows)

    def kernel(x_ref, dy_ref, sums_ref):
        counts = input_groups, output_groups, kh // taps, blocks, bands
        input_group, output_group, step, block, band, network = _digits(pl.program_id(0), *counts)
        first_input, first_output = input_group * some_inputs, output_group * some_outputs
        first_tap = step * taps
        image = block * WARP + jnp.arange(WARP)

        def over_row(number: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            out_row = band * rows + number
            there = (image < images) & (out_row < out_height)

            def column_of_x(column: jax.Array) -> tuple[jax.Array, ...]:
                found = []
                for r in range(taps):
                    row = out_row + first_tap + r - padding[0]
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    for i in range(some_inputs):
                        at = ((network * height + row) * inputs + first_input + i) * width + column
                        mask = there & inside
                        if inputs % some_inputs:
                            mask &= first_input + i < inputs
                        found.append(triton.load(x_ref.at[at * images + image], mask=mask, other=0))
                return tuple(found)

            def pixel_of_dy(column: jax.Array) -> tuple[jax.Array, ...]:
                found = []
                for o in range(some_outputs):
                    at = (network * out_height + out_row) * outputs + first_output + o
                    at = (at * out_width + column) * images + image
                    mask = there & (column < out_width)
                    if outputs % some_outputs:
                        mask &= first_output + o < outputs
                    found.append(triton.load(dy_ref.at[at], mask=mask, other=0))
                return tuple(found)

            def over_pixel(column: jax.Array, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
                sums, window, dy = carry
                # Read ahead, while this pixel's products are added.
                following = column_of_x(column + kw - padding[1]), pixel_of_dy(column + 1)
                new = list(sums)
                for o, dy_N in enumerate(dy):
                    for place, x_N in enumerate(window):
                        product_N = x_N.astype(jnp.float32) * dy_N.astype(jnp.float32)
                        new[place * some_outputs + o] += product_N
                return tuple(new), (*window[taps * some_inputs :], *following[0]), following[1]

            window = ()
            for j in range(kw):
                window += column_of_x(jnp.int32(j - padding[1]))
            carry = sums, window, pixel_of_dy(jnp.int32(0))
            return lax.fori_loop(0, out_width, over_pixel, carry)[0]

        places = list(
            itertools.product(range(kw), range(taps), range(some_inputs), range(some_outputs))
        )
        sums = lax.fori_loop(0, rows, over_row, (jnp.zeros(WARP, jnp.float32),) * len(places))
        for (j, r, i, o), total_N in zip(places, sums, strict=True):
            at = (((network * bands + band) * blocks + block) * kh + first_tap + r) * kw + j
            at = (at * inputs + first_input + i) * outputs + first_output + o
            mask = (first_input + i < inputs) & (first_output + o < outputs)
            triton.store(sums_ref.at[at], total_N.sum(), mask=mask)

    parts = bands * blocks
    shape = networks, parts, kh, kw, inputs, outputs
    programs = networks * parts * (kh // taps) * output_groups * input_groups
    name = f"conv_gradient_{inputs}_{outputs}_{out_height}"
    return _run(kernel, name, programs, shape, jnp.float32, x_SHCWN, dy_SHOWN)
