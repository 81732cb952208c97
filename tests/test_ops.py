"""Tests of jaxmnist.ops against XLA's own operations and against loops in numpy."""

import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from jaxmnist import ops
from jaxmnist.ops import conv2d


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_bfloat16(a: np.ndarray) -> jax.Array:
    return jnp.asarray(a, jnp.bfloat16)


# Convolution.


def xla_conv(x_CHWN: jax.Array, kernel_HWIO: jax.Array, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x_CHWN,
        kernel_HWIO,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        precision="highest",
    )


def assert_conv_as_xla(kernel_size: tuple[int, int], padding: int, shape: tuple[int, ...]) -> None:
    """Compares output and both gradients; shape is (I, O, H, W, N)."""
    inputs, outputs, height, width, batch = shape
    x_CHWN = normal(inputs, height, width, batch, seed=sum(shape))
    kernel_HWIO = normal(*kernel_size, inputs, outputs, seed=1)

    @jax.jit
    def both(x_CHWN, kernel_HWIO):
        def pull(convolve):
            y_CHWN, vjp = jax.vjp(lambda *args: convolve(*args, padding), x_CHWN, kernel_HWIO)
            # An uneven cotangent, so that no transposition of it goes unnoticed.
            dy_CHWN = jnp.sin(jnp.arange(y_CHWN.size, dtype=jnp.float32)).reshape(y_CHWN.shape)
            return y_CHWN, vjp(dy_CHWN)

        return pull(conv2d), pull(xla_conv)

    found, expected = both(x_CHWN, kernel_HWIO)
    out_height, out_width = (
        side + 2 * padding - k + 1 for side, k in zip((height, width), kernel_size, strict=True)
    )
    chex.assert_shape(found[0], (outputs, out_height, out_width, batch))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-5)


@hypothesis.given(
    kernel_size=st.sampled_from([1, 3]),
    padding=st.sampled_from([0, 1]),
    shape=st.tuples(
        *(st.integers(1, top) for top in (6, 6)), *(st.integers(3, 7),) * 2, st.integers(1, 5)
    ),
)
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
def test_conv_and_its_gradients_as_xla(kernel_size, padding, shape):
    assert_conv_as_xla((kernel_size, kernel_size), padding, shape)


@pytest.mark.parametrize("kernel_size", [(1, 3), (3, 2)])
def test_oblong_conv_as_xla(kernel_size):
    assert_conv_as_xla(kernel_size, 1, (3, 4, 5, 6, 2))


@pytest.mark.parametrize("columns", [1, 60, 100, 150])
@pytest.mark.parametrize(("kernel_size", "padding"), [((3, 3), 1), ((3, 2), 0), ((1, 1), 0)])
def test_conv_gradient_in_blocks_as_xla(monkeypatch, columns, kernel_size, padding):
    """In blocks of one row, of several and of unequal numbers, and in one block."""
    monkeypatch.setattr(ops, "BLOCK_COLUMNS", columns)
    assert_conv_as_xla(kernel_size, padding, (2, 3, 7, 6, 3))


@hypothesis.given(
    height=st.integers(1, 40), columns=st.integers(1, 10**5), limit=st.integers(1, 10**5)
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_row_blocks_cover_all_rows_evenly(height, columns, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "BLOCK_COLUMNS", limit)
        blocks = ops._row_blocks(height, columns)
    rows = [row for top, bottom in blocks for row in range(top, bottom)]
    assert rows == list(range(height))
    sizes = [bottom - top for top, bottom in blocks]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    if jax.default_backend() == "cpu":
        assert len(blocks) == min(height, math.ceil(height * columns / limit))
    else:
        assert len(blocks) == 1


def test_conv_is_a_cross_correlation_with_zero_padding():
    x_CHWN = np.arange(1.0, 10, dtype=np.float32).reshape(1, 3, 3, 1)
    kernel_HWIO = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 10]], np.float32)[..., None, None]
    y_CHWN = conv2d(jnp.asarray(x_CHWN), jnp.asarray(kernel_HWIO), 1)
    # The pixel up left plus ten times the pixel down right.
    expected = np.array([[50, 60, 0], [80, 91, 2], [0, 4, 5]], np.float32)
    chex.assert_trees_all_equal(y_CHWN[0, :, :, 0], expected)


def test_conv_in_bfloat16_accumulates_in_float32():
    x_CHWN, kernel_HWIO = to_bfloat16(normal(32, 6, 6, 4)), to_bfloat16(normal(3, 3, 32, 8, seed=1))

    @jax.jit
    def pull(x_CHWN, kernel_HWIO):
        y_CHWN, vjp = jax.vjp(lambda x, kernel: conv2d(x, kernel, 1), x_CHWN, kernel_HWIO)
        return y_CHWN, *vjp(jnp.ones_like(y_CHWN))

    found = pull(x_CHWN, kernel_HWIO)
    exact = pull(x_CHWN.astype(jnp.float32), kernel_HWIO.astype(jnp.float32))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Two roundings to 8 bits; partial sums in bfloat16 would be off by several times that.
        error = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
        assert error < 2**-8, error


# Pooling.


@jax.jit
def pull_max_pool(x_CHWN: jax.Array, dy_CHWN: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_CHWN, vjp = jax.vjp(ops.max_pool, x_CHWN)
    return y_CHWN, *vjp(dy_CHWN)


def max_pool_by_loop(x_CHWN: np.ndarray, dy_CHWN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output and gradient, patch by patch; ``argmax`` names the first of equals."""
    channels, height, width, batch = x_CHWN.shape
    y_CHWN, dx_CHWN = np.zeros_like(dy_CHWN), np.zeros_like(x_CHWN)
    for c, row, column, n in np.ndindex(channels, height // 2, width // 2, batch):
        patch = x_CHWN[c, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, n]
        down, right = divmod(int(patch.argmax()), 2)
        y_CHWN[c, row, column, n] = patch[down, right]
        dx_CHWN[c, 2 * row + down, 2 * column + right, n] = dy_CHWN[c, row, column, n]
    return y_CHWN, dx_CHWN


@hypothesis.given(
    shape=st.sampled_from([(2, 4, 6, 3), (1, 5, 3, 4), (3, 2, 7, 1), (1, 7, 2, 2)]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 999),
)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
def test_max_pool_and_its_gradient_with_ties_as_by_loop(shape, levels, seed):
    """Few levels of grey: most patches have several largest pixels, odd sides a rest."""
    x_CHWN = np.random.default_rng(seed).integers(-levels, 1, shape).astype(np.float32)
    channels, height, width, batch = shape
    dy_CHWN = normal(channels, height // 2, width // 2, batch, seed=seed)
    found = pull_max_pool(jnp.asarray(x_CHWN), jnp.asarray(dy_CHWN))
    chex.assert_trees_all_equal(found, max_pool_by_loop(x_CHWN, dy_CHWN))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_passes_on_nan(place):
    """Wherever it is in its patch, and there only: divergence must not be pooled away."""
    x_HW = np.arange(16, dtype=np.float32).reshape(4, 4)
    x_HW[2 + place // 2, place % 2] = np.nan
    y_HW = ops.max_pool(jnp.asarray(x_HW[None, :, :, None]))[0, :, :, 0]
    np.testing.assert_array_equal(y_HW, [[5, 7], [np.nan, 15]])


def test_max_pool_keeps_bfloat16_gradients():
    x_CHWN = to_bfloat16(normal(2, 4, 4, 3))
    y_CHWN, vjp = jax.vjp(ops.max_pool, x_CHWN)
    (dx_CHWN,) = vjp(y_CHWN)
    assert y_CHWN.dtype == dx_CHWN.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(dx_CHWN.sum(), y_CHWN.sum())


# What is computed once.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_materialize_is_the_identity(dtype):
    x_CHWN = jnp.asarray(normal(2, 3, 4, 5), dtype).at[0, 1].set(-jnp.inf)
    dy_CHWN = jnp.asarray(normal(2, 3, 4, 5, seed=1), dtype)

    @jax.jit
    def pull(x_CHWN, dy_CHWN):
        y_CHWN, vjp = jax.vjp(ops.materialize, x_CHWN)
        return y_CHWN, *vjp(dy_CHWN)

    chex.assert_trees_all_equal(pull(x_CHWN, dy_CHWN), (x_CHWN, dy_CHWN))
    each = jax.vmap(pull)(x_CHWN, dy_CHWN)
    chex.assert_trees_all_equal(each, (x_CHWN, dy_CHWN))


def test_materialize_does_not_hide_nan():
    x = jnp.asarray([jnp.nan, 1.0, jnp.nan])
    assert jnp.isnan(ops.materialize(x)[jnp.asarray([0, 2])]).all()
    x = jnp.asarray([1.0, jnp.nan, jnp.inf, -2.0])
    np.testing.assert_array_equal(ops.materialize(x), x)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_materialize_leaves_integers_alone(dtype):
    """The largest of their type, too; no integer stands for a number gone wrong."""
    largest = jnp.iinfo(dtype).max
    for first in (0, largest):
        x = jnp.asarray([first, 1, largest], dtype)
        chex.assert_trees_all_equal(jax.jit(ops.materialize)(x), x)
