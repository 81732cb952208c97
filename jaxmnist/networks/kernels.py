"""Convolutions for GPUs, in Pallas: each is one kernel that adds up in registers.

Out of XLA's operations a convolution this small goes through memory several times: windows are
written out, multiplied, and the products added up. Matrix units would gain nothing: their tiles are
16 wide where layers have 7 or 10 channels, and float32 takes them three products. On an H200, 64
networks of model3 train in half the time that they take out of XLA's operations.

Of many networks (S) one comes after the other, so that what neighbouring programs share is still in
the cache. ``gpu_conv`` makes of these functions one that is differentiated and mapped.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from jaxmnist.networks import target

# Chosen on an H200, out of a few that were timed for layers of the recipes.
WARP = 32  # threads of a program
IMAGES = 128  # of a program, four a thread; where a network is alone, one a thread
OUTPUTS = 8  # channels of the result that a program takes at once
PIXELS = 4  # of one row that it takes at once
GRADIENTS = 96  # weights whose gradients a program takes at once, at most
ROWS = 2  # of the result that it adds up


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


def convolve(
    padding: tuple[int, int], x_SHCWN: jax.Array, kernel_SHWIO: jax.Array, *bias_SO: jax.Array
) -> jax.Array:
    """Of each network, with the padding of H and that of W: (S, H, O, W, N) in the dtype of x.

    A program has some neighbouring pixels and channels of the result, of some images.
    """
    networks, height, inputs, width, images = x_SHCWN.shape
    _, kh, kw, _, outputs = kernel_SHWIO.shape
    out_height = height + 2 * padding[0] - kh + 1
    out_width = width + 2 * padding[1] - kw + 1
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


def gradients(padding: tuple[int, int], x_SHCWN: jax.Array, dy_SHOWN: jax.Array) -> jax.Array:
    """Those of each network's kernel, in parts.

    A program has some of the weights, over some rows of the result and a warp of images.

    Returns:
      float32 (S, parts, kh, kw, I, O): the gradients are the sums of the parts.
    """
    networks, height, inputs, width, images = x_SHCWN.shape
    _, out_height, outputs, out_width, _ = dy_SHOWN.shape
    kh = height + 2 * padding[0] - out_height + 1
    kw = width + 2 * padding[1] - out_width + 1
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
