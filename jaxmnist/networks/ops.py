"""The fast functions under the layers: convolution, pooling, matrix products, batch-minor.

Their gradients are written by hand where XLA's own are slow. What is said about XLA on CPU was
measured with jax 0.10 on two cores; ``benchmarks/throughput.py`` shows what it comes to.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxmnist.networks import target
from jaxmnist.networks.target import Kernels


def _pad(x_HCWN: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x_HCWN, ((rows, rows), (0, 0), (columns, columns), (0, 0)))


def _over_rows(function: Callable, count: int, *windowed: tuple[jax.Array, int]) -> Any:
    """Stacks ``function(window, …)`` over ``count`` windows, one row further down each.

    ``windowed``: arrays whose first axis is H, each with the number of rows in its window.
    """
    if target.current().one_by_one:

        def at(row: jax.Array) -> Any:
            return function(*(lax.dynamic_slice_in_dim(a, row, size) for a, size in windowed))

        return lax.map(at, lax.iota(jnp.int32, count))
    windows = (
        jnp.stack([a[row : row + count] for row in range(size)], axis=1) for a, size in windowed
    )
    return jax.vmap(function)(*windows)


def _width_shifts(x_CWN: jax.Array, count: int) -> jax.Array:
    """Stacks ``count`` copies of x, each one pixel further left: (count·C, W-count+1, N)."""
    width = x_CWN.shape[1] - count + 1
    return jnp.concatenate([x_CWN[:, j : j + width] for j in range(count)])


def _patches(x_KCWN: jax.Array, count: int) -> jax.Array:
    """What each pixel of a row of the result sees of K rows of one map: (count·K, pixels·N)."""
    rows = len(x_KCWN)
    return _width_shifts(materialize(x_KCWN)[:, 0], count).reshape(count * rows, -1)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """a·b over axis ``contract[0]`` of a and ``contract[1]`` of b, summed in at least float32."""
    accumulate = jnp.promote_types(a.dtype, jnp.float32)
    if not target.current().bfloat16_products:
        a, b = a.astype(accumulate), b.astype(accumulate)
    dims = (((contract[0],), (contract[1],)), ((), ()))
    # GPUs and TPUs would round the factors of float32 products to 8 or 11 bits.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=accumulate)


def materialize(x: jax.Array) -> jax.Array:
    """x itself, but computed once: for what is dear to compute.

    XLA on CPU fuses whatever it can into each of its consumers and computes it anew in each, and a
    slice with a variable start, fused, is read number by number. It drops optimization barriers
    before it does so, but never looks into a conditional.
    """
    if not target.current().materializes:
        return x
    # What the compiler cannot know. NaN means divergence anyway; integers are always finite.
    finite = x.ravel()[0] < jnp.inf
    nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return lax.cond(finite, lambda: x, lambda: jnp.full_like(x, nothing))


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def conv2d(
    x_HCWN: jax.Array, kernel_HWIO: jax.Array, bias_O: jax.Array | None = None, padding: int = 0
) -> jax.Array:
    """Stride-1 cross-correlation as in ``torch.nn.functional.conv2d``, row by row.

    A row of the result sees kh rows of x, which lie side by side in memory: a (kw·O, kh·I) matrix
    times these gives one map per kernel column, and the maps, shifted in width, add up to the row.
    What a row needs stays in a core's own cache, where a whole layer would go through memory
    several times; and memory is what convolutions this small cost. The gradients use the same
    forms. Only a single input channel, the image itself, is taken apart into patches: nine maps
    in, instead of three times O maps out. GPUs have kernels instead, see ``kernels``, except
    for float64.

    Args:
      x_HCWN: (H, I, W, N), any float dtype.
      kernel_HWIO: (kh, kw, I, O), the dtype of x.
      bias_O: (O,), the dtype of x, or None.
      padding: zeros added on each side of H and W, fewer than kh.

    Returns:
      (H+2·padding-kh+1, O, W+2·padding-kw+1, N) in the dtype of x.
    """
    if padding >= len(kernel_HWIO):
        raise ValueError(f"padding {padding} must be smaller than the kernel, {len(kernel_HWIO)}")
    if target.current().kernels is not Kernels.NONE and x_HCWN.dtype != jnp.float64:
        from jaxmnist.networks import gpu_conv  # takes a while, and a CPU does without

        return gpu_conv.conv2d(x_HCWN, kernel_HWIO, bias_O, padding)
    return _conv2d(x_HCWN, kernel_HWIO, bias_O, padding)


def _conv2d_primal(x_HCWN, kernel_HWIO, bias_O, padding):
    return _conv2d_forward(x_HCWN, kernel_HWIO, bias_O, padding)[0]


def _conv2d_forward(x_HCWN, kernel_HWIO, bias_O, padding):
    kh, kw, i, o = kernel_HWIO.shape
    padded_HCWN = _pad(x_HCWN, padding, padding)
    height, _, width, n = padded_HCWN.shape
    out_width = width - kw + 1
    # By kernel column where the maps are added up, by kernel row in patches.
    matrix = kernel_HWIO.transpose(1, 3, 0, 2).reshape(kw * o, kh * i)
    patch_matrix = kernel_HWIO.transpose(3, 1, 0, 2).reshape(o, kw * kh * i)

    def row(x_KCWN: jax.Array) -> jax.Array:
        if i == 1:
            y_OWN = dot(patch_matrix, _patches(x_KCWN, kw), (1, 0)).reshape(o, out_width, n)
        else:
            maps = dot(matrix, x_KCWN.reshape(kh * i, -1), (1, 0)).reshape(kw, o, width, n)
            y_OWN = _sum(maps[j, :, j : j + out_width] for j in range(kw))
        if bias_O is not None:
            y_OWN += bias_O[:, None, None]
        return y_OWN.astype(x_HCWN.dtype)

    y_HCWN = _over_rows(row, height - kh + 1, (padded_HCWN, kh))
    return y_HCWN, (x_HCWN, kernel_HWIO, bias_O)


def _conv2d_backward(padding, residuals, dy_HOWN):
    x_HCWN, kernel_HWIO, bias_O = residuals
    kh, kw, i, o = kernel_HWIO.shape
    padded_HOWN = _pad(dy_HOWN, kh - 1 - padding, 0)
    width, out_width, n = x_HCWN.shape[2] + 2 * padding, *dy_HOWN.shape[2:]
    # Row r of a window of dy saw x through row kh-1-r of the kernel.
    matrix = kernel_HWIO[::-1].transpose(1, 2, 0, 3).reshape(kw * i, kh * o)

    def row(dy_KOWN: jax.Array, x_1CWN: jax.Array) -> tuple[jax.Array, jax.Array]:
        dy = dy_KOWN.reshape(kh * o, -1)
        shifts = _width_shifts(materialize(x_1CWN)[0], kw).reshape(kw * i, -1)
        dmatrix = dot(dy, _fill_tile(shifts), (1, 1))[:, : kw * i]
        dshifts = dot(matrix, dy, (1, 0)).reshape(kw, i, out_width, n)
        dx_CWN = _sum(jnp.pad(dshifts[j], ((0, 0), (j, kw - 1 - j), (0, 0))) for j in range(kw))
        return dx_CWN[:, padding : width - padding].astype(x_HCWN.dtype), dmatrix

    def row_of_patches(dy_1OWN: jax.Array, x_KCWN: jax.Array) -> jax.Array:
        return dot(dy_1OWN.reshape(o, -1), _fill_tile(_patches(x_KCWN, kw)), (1, 1))[:, : kw * kh]

    x_rows = _pad(x_HCWN, 0, padding), 1
    dx_HCWN, dmatrix_H = _over_rows(row, len(x_HCWN), (padded_HOWN, kh), x_rows)
    if i == 1:
        x_windows = _pad(x_HCWN, padding, padding), kh
        dmatrix_H = _over_rows(row_of_patches, len(dy_HOWN), (dy_HOWN, 1), x_windows)
        dkernel_HWIO = dmatrix_H.sum(0).reshape(o, kw, kh, i).transpose(2, 1, 3, 0)
    else:
        dkernel_HWIO = dmatrix_H.sum(0).reshape(kh, o, kw, i)[::-1].transpose(0, 2, 3, 1)
    # Of the padded array: a second reader of dy would have XLA write it twice.
    dbias_O = None if bias_O is None else padded_HOWN.sum((0, 2, 3)).astype(bias_O.dtype)
    return dx_HCWN, dkernel_HWIO.astype(kernel_HWIO.dtype), dbias_O


def _fill_tile(matrix: jax.Array) -> jax.Array:
    """Zero rows up to a multiple of the target's ``tile_rows`` where these add less than a third.

    On a CPU a weight gradient over 30, 54 or 60 rows takes half as long again as one over 32 or 64,
    and one over 25 a quarter longer.
    """
    missing = -len(matrix) % target.current().tile_rows
    if missing == 0 or missing * 3 >= len(matrix):
        return matrix
    return jnp.concatenate([matrix, jnp.zeros((missing, matrix.shape[1]), matrix.dtype)])


_conv2d = jax.custom_vjp(_conv2d_primal, nondiff_argnums=(3,))
_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def separable_conv2d(
    x_HCWN: jax.Array,
    depthwise_HW1I: jax.Array,
    pointwise_11IO: jax.Array,
    bias_O: jax.Array | None = None,
    padding: int = 0,
) -> jax.Array:
    """A depthwise convolution, and a 1×1 convolution behind it row by row.

    Args:
      x_HCWN: (H, I, W, N), any float dtype.
      depthwise_HW1I: (kh, kw, 1, I), the dtype of x.
      pointwise_11IO: (1, 1, I, O), the dtype of x.
      bias_O: (O,), the dtype of x, or None.
      padding: zeros added on each side of H and W, fewer than kh.

    Returns:
      (H+2·padding-kh+1, O, W+2·padding-kw+1, N) in the dtype of x.
    """
    padded_HCWN = _pad(x_HCWN, padding, padding)
    y_HCWN = _separable(padded_HCWN, depthwise_HW1I[:, :, 0], pointwise_11IO[0, 0])
    if bias_O is None:
        return y_HCWN
    # In float32, as its gradient, a sum over all pixels, is to be.
    wide = jnp.promote_types(y_HCWN.dtype, jnp.float32)
    return (y_HCWN.astype(wide) + bias_O.astype(wide)[None, :, None, None]).astype(y_HCWN.dtype)


@jax.custom_vjp
def _separable(x_HCWN: jax.Array, depthwise_HWI: jax.Array, pointwise_IO: jax.Array) -> jax.Array:
    return _separable_forward(x_HCWN, depthwise_HWI, pointwise_IO)[0]


def _depthwise(x_HCWN: jax.Array, kernel_HWC: jax.Array) -> jax.Array:
    """As ``_separable``, without its second convolution; summed in at least float32."""
    kh, kw, _ = kernel_HWC.shape
    height, width = len(x_HCWN) - kh + 1, x_HCWN.shape[2] - kw + 1
    factor_HWC = kernel_HWC.astype(jnp.promote_types(kernel_HWC.dtype, jnp.float32))
    # A single pass: what it sees of one map at a time fits into the smallest cache.
    y_HCWN = _sum(
        factor_HWC[r, j, None, :, None, None] * x_HCWN[r : r + height, :, j : j + width]
        for r in range(kh)
        for j in range(kw)
    )
    return y_HCWN.astype(x_HCWN.dtype)


def _depthwise_gradient(x_HCWN: jax.Array, dy_HCWN: jax.Array) -> jax.Array:
    """That of the kernel of ``_depthwise``, (kh, kw, C)."""
    (height, channels, width, _), dtype = dy_HCWN.shape, jnp.promote_types(x_HCWN.dtype, "float32")
    kh, kw = len(x_HCWN) - height + 1, x_HCWN.shape[2] - width + 1
    taps = [(r, j) for r in range(kh) for j in range(kw)]

    def over_axes() -> jax.Array:
        x, dy = x_HCWN.astype(dtype), dy_HCWN.astype(dtype)
        products = (x[r : r + height, :, j : j + width] * dy for r, j in taps)
        return jnp.stack([product.sum((0, 2, 3)) for product in products])

    def pixel_by_pixel(first: ArrayLike, rows: int) -> jax.Array:
        x = lax.dynamic_slice_in_dim(x_HCWN, first, rows + kh - 1)
        dy = lax.dynamic_slice_in_dim(dy_HCWN, first, rows)
        if rows < height:
            x, dy = materialize(x), materialize(dy)
        x, dy = x.astype(dtype), dy.astype(dtype)
        pixels = [(h, w) for h in range(rows) for w in range(width)]
        sums = (_sum(x[r + h, :, j + w] * dy[h, :, w] for h, w in pixels) for r, j in taps)
        return jnp.stack(list(sums)).sum(2)

    if not target.current().one_by_one:
        return over_axes().reshape(kh, kw, channels)
    # XLA on CPU vectorizes no sum over axes: written out it takes a third of the time, as long as
    # there are not too many terms.
    fitting = (n for n in range(1, height + 1) if height % n == 0 and len(taps) * n * width <= 900)
    rows = max(fitting, default=1)
    if rows == height:
        return pixel_by_pixel(0, rows).reshape(kh, kw, channels)
    starts = rows * lax.iota(jnp.int32, height // rows)
    parts = lax.map(lambda first: pixel_by_pixel(first, rows), starts)
    return parts.sum(0).reshape(kh, kw, channels)


def _separable_forward(x_HCWN, depthwise_HWI, pointwise_IO):
    between_HCWN = _depthwise(x_HCWN, depthwise_HWI)
    height, i, width, n = between_HCWN.shape

    def row(between_1CWN: jax.Array) -> jax.Array:
        y_OWN = dot(pointwise_IO, between_1CWN.reshape(i, -1), (0, 0)).reshape(-1, width, n)
        return y_OWN.astype(x_HCWN.dtype)

    y_HCWN = _over_rows(row, height, (between_HCWN, 1))
    return y_HCWN, (x_HCWN, depthwise_HWI, pointwise_IO, between_HCWN)


def _separable_backward(residuals, dy_HOWN):
    x_HCWN, depthwise_HWI, pointwise_IO, between_HCWN = residuals
    kh, kw, i = depthwise_HWI.shape
    height, o, width, n = dy_HOWN.shape

    def row(dy_1OWN: jax.Array, between_1CWN: jax.Array) -> tuple[jax.Array, jax.Array]:
        dy, between = dy_1OWN.reshape(o, -1), between_1CWN.reshape(i, -1)
        dbetween = dot(pointwise_IO, dy, (1, 0)).reshape(i, width, n)
        return dbetween.astype(x_HCWN.dtype), dot(between, dy, (1, 1))

    dbetween_HCWN, dpointwise_HIO = _over_rows(row, height, (dy_HOWN, 1), (between_HCWN, 1))
    dx_HCWN = _depthwise(_pad(dbetween_HCWN, kh - 1, kw - 1), depthwise_HWI[::-1, ::-1])
    ddepthwise_HWI = _depthwise_gradient(x_HCWN, dbetween_HCWN).astype(depthwise_HWI.dtype)
    return dx_HCWN, ddepthwise_HWI, dpointwise_HIO.sum(0).astype(pointwise_IO.dtype)


_separable.defvjp(_separable_forward, _separable_backward)


@jax.custom_vjp
def max_pool(x_HCWN: jax.Array) -> jax.Array:
    """2×2 maximum with stride 2, (H, C, W, N) to (H//2, C, W//2, N).

    Where several pixels of a patch are equal, the whole gradient goes to the first of them in
    row-major order, as in PyTorch. The gradient is hand-written: differentiated slices become
    interior pads, which XLA on CPU turns into branches, eight times slower.
    """
    return _max_pool_forward(x_HCWN)[0]


def _corners(x_HCWN: jax.Array) -> list[jax.Array]:
    """The four pixels of each patch in row-major order, each (H//2, C, W//2, N)."""
    h, _, w, _ = x_HCWN.shape
    return [x_HCWN[r : h // 2 * 2 : 2, :, j : w // 2 * 2 : 2] for r in (0, 1) for j in (0, 1)]


def _max_pool_forward(x_HCWN: jax.Array):
    y_HCWN = functools.reduce(jnp.maximum, _corners(x_HCWN))
    return y_HCWN, (x_HCWN, y_HCWN)


def _max_pool_backward(residuals: tuple[jax.Array, jax.Array], dy_HCWN: jax.Array):
    x_HCWN, y_HCWN = residuals
    h, c, w, n = dy_HCWN.shape
    first, second, third, _ = (corner == y_HCWN for corner in _corners(x_HCWN))
    winner = jnp.where(first, 0, jnp.where(second, 1, jnp.where(third, 2, 3)))
    winner = materialize(winner.astype(jnp.uint8))
    # Spread by broadcasting: stacked, the four corners would be branches again.
    place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 2, 1, 1, 2, 1)
    won = winner[:, None, :, :, None] == place
    dx_HCWN = jnp.where(won, dy_HCWN[:, None, :, :, None], 0).reshape(2 * h, c, 2 * w, n)
    full_h, _, full_w, _ = x_HCWN.shape
    return (jnp.pad(dx_HCWN, ((0, full_h - 2 * h), (0, 0), (0, full_w - 2 * w), (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
