"""The fast functions under the layers: convolution, pooling, matrix products, batch-minor.

Their gradients are written by hand where XLA's own are slow. What is said about XLA on CPU was
measured with jax 0.10 on two cores; ``benchmarks/throughput.py`` shows what it comes to.
"""

import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_COLUMNS = 20_000  # of a gradient's matrices; they stay in the cache between two products


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


def _patches(x_1HWN: jax.Array, kernel_shape: tuple[int, int], padding: int) -> jax.Array:
    """im2col: what each kernel position sees of x, (kh·kw, H', W', N)."""
    x_1HWN = _pad_hw(x_1HWN, padding)
    (kh, kw), (_, height, width, _) = kernel_shape, x_1HWN.shape
    places = [(r, j) for r in range(kh) for j in range(kw)]
    return jnp.concatenate(
        [x_1HWN[:, r : r + height - kh + 1, j : j + width - kw + 1] for r, j in places], axis=0
    )


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """a·b over axis ``contract[0]`` of a and ``contract[1]`` of b, summed in at least float32."""
    accumulate = jnp.promote_types(a.dtype, jnp.float32)
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=accumulate)


@jax.custom_vjp
def materialize(x: jax.Array) -> jax.Array:
    """x itself, but computed once, and its gradient too: for what is dear to compute.

    XLA on CPU fuses whatever it can into each of its consumers and computes it anew in each: a
    dropout mask, or the gradient of a batch norm, three times in the three shifts of a
    convolution. It drops optimization barriers before it does so, but never looks into a
    conditional.
    """
    if jax.default_backend() != "cpu":
        return x
    # What the compiler cannot know. NaN means divergence anyway; integers are always finite.
    finite = x.ravel()[0] < jnp.inf
    nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return lax.cond(finite, lambda: x, lambda: jnp.full_like(x, nothing))


materialize.defvjp(lambda x: (materialize(x), None), lambda _, gradient: (materialize(gradient),))


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, arrays)


def conv2d(x_CHWN: jax.Array, kernel_HWIO: jax.Array, padding: int) -> jax.Array:
    """Stride-1 cross-correlation as in ``torch.nn.functional.conv2d``, by one matrix product.

    The "rows" form: width shifts of x, stacked along C, times a (kh·O, kw·I) matrix give one map
    per kernel row; these, shifted in height, add up to the result. It moves a third of the memory
    of im2col, and memory is what a convolution this small costs. Only a single input channel, the
    image itself, goes through im2col: nine maps in, instead of three times O maps out. The
    hand-written gradients use the same forms, because XLA's own gradient convolutions are slow
    inside ``lax.scan`` on CPU.

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
    kh, kw, i, o = kernel_HWIO.shape
    if i == 1:
        patches_KHWN = _patches(x_CHWN, (kh, kw), padding)
        k, *shape_HWN = patches_KHWN.shape
        y = dot(kernel_HWIO.reshape(k, o), patches_KHWN.reshape(k, -1), (0, 0))
        return y.reshape(o, *shape_HWN).astype(x_CHWN.dtype), (x_CHWN, kernel_HWIO)
    shifts_KHWN = _width_shifts(_pad_hw(x_CHWN, padding), kw)
    k, height, width, n = shifts_KHWN.shape
    maps = dot(_rows_matrix(kernel_HWIO), shifts_KHWN.reshape(k, -1), (1, 0))
    maps_ROHWN = maps.reshape(kh, o, height, width, n)
    out_height = height - kh + 1
    y_CHWN = _sum(maps_ROHWN[r, :, r : r + out_height] for r in range(kh))
    return y_CHWN.astype(x_CHWN.dtype), (x_CHWN, kernel_HWIO)


def _conv2d_backward(padding: int, residuals: tuple[jax.Array, jax.Array], dy_OHWN: jax.Array):
    x_CHWN, kernel_HWIO = residuals
    kh, kw, i, o = kernel_HWIO.shape
    if i == 1:
        patches_KHWN, unpatch = jax.vjp(lambda x: _patches(x, (kh, kw), padding), x_CHWN)
        dy = dy_OHWN.reshape(o, -1)
        dkernel = dot(patches_KHWN.reshape(kh * kw, -1), dy, (1, 1)).reshape(kernel_HWIO.shape)
        dpatches = dot(kernel_HWIO.reshape(kh * kw, o), dy, (1, 0)).astype(x_CHWN.dtype)
        (dx_CHWN,) = unpatch(dpatches.reshape(patches_KHWN.shape))
        return dx_CHWN, dkernel.astype(kernel_HWIO.dtype)
    x_CHWN = _pad_hw(x_CHWN, padding)
    dy_OHWN = jnp.pad(dy_OHWN, ((0, 0), (kh - 1, kh - 1), (0, 0), (0, 0)))
    _, height, width, n = x_CHWN.shape
    out_width = width - kw + 1
    # Not the transpose of _rows_matrix: XLA would fold it into a dot of its slower kind.
    matrix = kernel_HWIO.transpose(1, 2, 0, 3).reshape(kw * i, kh * o)

    dmatrices, dx_blocks = [], []
    for top, bottom in _row_blocks(height, out_width * n):
        shifts_KHWN = _width_shifts(x_CHWN[:, top:bottom], kw)
        dmaps = jnp.concatenate(
            [dy_OHWN[:, kh - 1 - r + top : kh - 1 - r + bottom] for r in range(kh)], axis=0
        ).reshape(kh * o, -1)
        dmatrices.append(dot(dmaps, shifts_KHWN.reshape(kw * i, -1), (1, 1)))
        dshifts_SCHWN = dot(matrix, dmaps, (1, 0)).reshape(kw, i, bottom - top, out_width, n)
        dx_blocks.append(
            _sum(
                jnp.pad(dshifts_SCHWN[j], ((0, 0), (0, 0), (j, kw - 1 - j), (0, 0)))
                for j in range(kw)
            )
        )
    dkernel_HWIO = _sum(dmatrices).reshape(kh, o, kw, i).transpose(0, 2, 3, 1)
    dx_CHWN = jnp.concatenate(dx_blocks, axis=1)
    dx_CHWN = dx_CHWN[:, padding : height - padding, padding : width - padding]
    return dx_CHWN.astype(residuals[0].dtype), dkernel_HWIO.astype(kernel_HWIO.dtype)


def _row_blocks(height: int, columns_per_row: int) -> list[tuple[int, int]]:
    """First and last row (excluded) of nearly equal blocks; on accelerators a single one.

    On CPU large matrices are walked block by block, or each product would fetch them from memory
    again. The blocks are unrolled: in a loop, XLA's slices with a variable start double the cost.
    """
    blocks = 1
    if jax.default_backend() == "cpu":
        blocks = min(height, -(-height * columns_per_row // BLOCK_COLUMNS))
    edges = [height * block // blocks for block in range(blocks + 1)]
    return list(itertools.pairwise(edges))


_conv2d = jax.custom_vjp(_conv2d_primal, nondiff_argnums=(2,))
_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


@jax.custom_vjp
def max_pool(x_CHWN: jax.Array) -> jax.Array:
    """2×2 maximum with stride 2, (C, H, W, N) to (C, H//2, W//2, N).

    Where several pixels of a patch are equal, the whole gradient goes to the first of them in
    row-major order, as in PyTorch. The gradient is hand-written: differentiated slices become
    interior pads, which XLA on CPU turns into branches, eight times slower.
    """
    return _max_pool_forward(x_CHWN)[0]


def _corners(x_CHWN: jax.Array) -> list[jax.Array]:
    """The four pixels of each patch in row-major order, each (C, H//2, W//2, N)."""
    _, h, w, _ = x_CHWN.shape
    return [x_CHWN[:, r : h // 2 * 2 : 2, j : w // 2 * 2 : 2] for r in (0, 1) for j in (0, 1)]


def _max_pool_forward(x_CHWN: jax.Array):
    y_CHWN = materialize(functools.reduce(jnp.maximum, _corners(x_CHWN)))
    return y_CHWN, (x_CHWN, y_CHWN)


def _max_pool_backward(residuals: tuple[jax.Array, jax.Array], dy_CHWN: jax.Array):
    x_CHWN, y_CHWN = residuals
    c, h, w, n = dy_CHWN.shape
    first, second, third, _ = (corner == y_CHWN for corner in _corners(x_CHWN))
    winner = jnp.where(first, 0, jnp.where(second, 1, jnp.where(third, 2, 3)))
    winner = materialize(winner.astype(jnp.uint8))
    # Spread by broadcasting: stacked, the four corners would be branches again.
    place = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    won = winner[:, :, None, :, None] == place
    dx_CHWN = jnp.where(won, dy_CHWN[:, :, None, :, None], 0).reshape(c, 2 * h, 2 * w, n)
    _, full_h, full_w, _ = x_CHWN.shape
    return (jnp.pad(dx_CHWN, ((0, 0), (0, full_h - 2 * h), (0, full_w - 2 * w), (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
