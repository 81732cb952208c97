"""Tests of jaxmnist.networks.ops against XLA's own operations and against loops in numpy."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from jaxmnist.networks import ops, target
from jaxmnist.networks.ops import conv2d


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_bfloat16(a: np.ndarray) -> jax.Array:
    return jnp.asarray(a, jnp.bfloat16)


# Convolution.


def xla_conv(x_HCWN, kernel_HWIO, bias_O, padding: int) -> jax.Array:
    y_HCWN = lax.conv_general_dilated(
        x_HCWN,
        kernel_HWIO,
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("HCWN", "HWIO", "HCWN"),
        precision="highest",
    )
    return y_HCWN + bias_O[None, :, None, None]


def assert_conv_as_xla(kernel_size: tuple[int, int], padding: int, shape: tuple[int, ...]) -> None:
    """Compares output and all gradients; shape is (I, O, H, W, N)."""
    inputs, outputs, height, width, batch = shape
    x_HCWN = normal(height, inputs, width, batch, seed=sum(shape))
    kernel_HWIO = normal(*kernel_size, inputs, outputs, seed=1)
    bias_O = normal(outputs, seed=2)

    @jax.jit
    def both(*arrays):
        def pull(convolve):
            y_HCWN, vjp = jax.vjp(lambda *args: convolve(*args, padding), *arrays)
            # An uneven cotangent, so that no transposition of it goes unnoticed.
            dy_HCWN = jnp.sin(jnp.arange(y_HCWN.size, dtype=jnp.float32)).reshape(y_HCWN.shape)
            return y_HCWN, vjp(dy_HCWN)

        return pull(conv2d), pull(xla_conv)

    found, expected = both(x_HCWN, kernel_HWIO, bias_O)
    out_height, out_width = (
        side + 2 * padding - k + 1 for side, k in zip((height, width), kernel_size, strict=True)
    )
    chex.assert_shape(found[0], (out_height, outputs, out_width, batch))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=2e-5)


@hypothesis.given(
    size_and_padding=st.sampled_from([(1, 0), (3, 0), (3, 1), (3, 2)]),
    shape=st.tuples(
        *(st.integers(1, top) for top in (6, 6)), *(st.integers(3, 7),) * 2, st.integers(1, 5)
    ),
)
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
def test_conv_and_its_gradients_as_xla(size_and_padding, shape):
    size, padding = size_and_padding
    assert_conv_as_xla((size, size), padding, shape)


def assert_separable_conv_as_xla(size: tuple[int, int], padding: int, height: int, width: int):
    inputs, outputs = 3, 5
    x_HCWN, bias_O = normal(height, inputs, width, 4), normal(outputs, seed=1)
    depthwise, pointwise = normal(*size, 1, inputs, seed=2), normal(1, 1, inputs, outputs, seed=3)

    def ours(x_HCWN, depthwise, pointwise, bias_O):
        return ops.separable_conv2d(x_HCWN, depthwise, pointwise, bias_O, padding)

    def xla(x_HCWN, depthwise, pointwise, bias_O):
        return xla_conv(x_HCWN, depthwise.swapaxes(2, 3) * pointwise, bias_O, padding)

    @jax.jit
    def both(*arrays):
        def pull(convolve):
            y_HCWN, vjp = jax.vjp(convolve, *arrays)
            dy_HCWN = jnp.sin(jnp.arange(y_HCWN.size, dtype=jnp.float32)).reshape(y_HCWN.shape)
            return y_HCWN, vjp(dy_HCWN)

        return pull(ours), pull(xla)

    found, expected = both(x_HCWN, depthwise, pointwise, bias_O)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "padding"), [((3, 3), 0), ((3, 3), 1), ((5, 3), 2), ((1, 1), 0)])
@pytest.mark.parametrize("form", [target.CPU, target.ACCELERATOR])
def test_separable_conv_and_its_gradients_as_xla(
    form: target.Target, size: tuple[int, int], padding: int
):
    with target.form(form):
        assert_separable_conv_as_xla(size, padding, 7, 6)


@pytest.mark.parametrize(("height", "width"), [(14, 16), (13, 12)])
def test_separable_conv_whose_kernel_gradient_comes_in_parts_as_xla(height: int, width: int):
    """Of a result 12 or 11 rows high: the parts are 6 rows high, or 1."""
    assert_separable_conv_as_xla((3, 3), 0, height, width)


def test_conv_refuses_padding_that_is_wider_than_the_kernel():
    with pytest.raises(ValueError, match="padding 1 must be smaller than the kernel, 1"):
        conv2d(jnp.ones((3, 1, 3, 1)), jnp.ones((1, 1, 1, 1)), padding=1)


@pytest.mark.parametrize("inputs", [1, 10])
def test_conv_in_the_form_for_accelerators_as_xla(inputs):
    with target.form(target.ACCELERATOR):
        assert_conv_as_xla((3, 3), 1, (inputs, 4, 5, 6, 2))


@pytest.mark.parametrize("kernel_size", [(2, 3), (3, 2)])
def test_oblong_conv_as_xla(kernel_size):
    assert_conv_as_xla(kernel_size, 1, (3, 4, 5, 6, 2))


@pytest.mark.parametrize("inputs", [10, 18, 20])
def test_conv_as_xla_where_a_matrix_is_filled_up(inputs):
    """30, 54 and 60 rows: the weight gradient is computed of 32 and 64."""
    with target.form(target.CPU):
        assert ops._fill_tile(jnp.ones((3 * inputs, 1))).shape[0] % 16 == 0
    assert_conv_as_xla((3, 3), 1, (inputs, 4, 5, 6, 2))


def test_conv_is_a_cross_correlation_with_zero_padding():
    x_HCWN = np.arange(1.0, 10, dtype=np.float32).reshape(3, 1, 3, 1)
    kernel_HWIO = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 10]], np.float32)[..., None, None]
    y_HCWN = conv2d(jnp.asarray(x_HCWN), jnp.asarray(kernel_HWIO), padding=1)
    # The pixel up left plus ten times the pixel down right.
    expected = np.array([[50, 60, 0], [80, 91, 2], [0, 4, 5]], np.float32)
    chex.assert_trees_all_equal(y_HCWN[:, 0, :, 0], expected)


@pytest.mark.parametrize(
    "form",
    [
        target.CPU,
        target.ACCELERATOR,
        pytest.param(
            target.GPU._replace(kernels=target.Kernels.INTERPRETED), marks=pytest.mark.long
        ),
    ],
    ids=["cpu", "accelerator", "gpu"],
)
def test_conv_in_bfloat16_accumulates_in_float32(form: target.Target):
    x_HCWN, kernel_HWIO = to_bfloat16(normal(6, 32, 6, 4)), to_bfloat16(normal(3, 3, 32, 8, seed=1))

    @jax.jit
    def pull(x_HCWN, kernel_HWIO):
        y_HCWN, vjp = jax.vjp(lambda x, kernel: conv2d(x, kernel, padding=1), x_HCWN, kernel_HWIO)
        return y_HCWN, *vjp(jnp.ones_like(y_HCWN))

    with target.form(form):
        found = pull(x_HCWN, kernel_HWIO)
        exact = pull(x_HCWN.astype(jnp.float32), kernel_HWIO.astype(jnp.float32))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Two roundings to 8 bits; partial sums in bfloat16 would be off by several times that.
        error = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
        assert error < 2**-8, error


# Pooling.


@jax.jit
def pull_max_pool(x_HCWN: jax.Array, dy_HCWN: jax.Array) -> tuple[jax.Array, jax.Array]:
    y_HCWN, vjp = jax.vjp(ops.max_pool, x_HCWN)
    return y_HCWN, *vjp(dy_HCWN)


def max_pool_by_loop(x_HCWN: np.ndarray, dy_HCWN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output and gradient, patch by patch; ``argmax`` names the first of equals."""
    y_HCWN, dx_HCWN = np.zeros_like(dy_HCWN), np.zeros_like(x_HCWN)
    for row, c, column, n in np.ndindex(*dy_HCWN.shape):
        patch = x_HCWN[2 * row : 2 * row + 2, c, 2 * column : 2 * column + 2, n]
        down, right = divmod(int(patch.argmax()), 2)
        y_HCWN[row, c, column, n] = patch[down, right]
        dx_HCWN[2 * row + down, c, 2 * column + right, n] = dy_HCWN[row, c, column, n]
    return y_HCWN, dx_HCWN


@hypothesis.given(
    shape=st.sampled_from([(4, 2, 6, 3), (5, 1, 3, 4), (2, 3, 7, 1), (7, 1, 2, 2)]),
    levels=st.integers(1, 4),
    seed=st.integers(0, 999),
)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
def test_max_pool_and_its_gradient_with_ties_as_by_loop(shape, levels, seed):
    """Few levels of grey: most patches have several largest pixels, odd sides a rest."""
    x_HCWN = np.random.default_rng(seed).integers(-levels, 1, shape).astype(np.float32)
    height, channels, width, batch = shape
    dy_HCWN = normal(height // 2, channels, width // 2, batch, seed=seed)
    found = pull_max_pool(jnp.asarray(x_HCWN), jnp.asarray(dy_HCWN))
    chex.assert_trees_all_equal(found, max_pool_by_loop(x_HCWN, dy_HCWN))


@pytest.mark.parametrize("place", range(4))
def test_max_pool_passes_on_nan(place):
    """Wherever it is in its patch, and there only: divergence must not be pooled away."""
    x_HW = np.arange(16, dtype=np.float32).reshape(4, 4)
    x_HW[2 + place // 2, place % 2] = np.nan
    y_HW = ops.max_pool(jnp.asarray(x_HW[:, None, :, None]))[:, 0, :, 0]
    np.testing.assert_array_equal(y_HW, [[5, 7], [np.nan, 15]])


def test_max_pool_keeps_bfloat16_gradients():
    x_HCWN = to_bfloat16(normal(4, 2, 4, 3))
    y_HCWN, vjp = jax.vjp(ops.max_pool, x_HCWN)
    (dx_HCWN,) = vjp(y_HCWN)
    assert y_HCWN.dtype == dx_HCWN.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(dx_HCWN.sum(), y_HCWN.sum())


# What is computed once.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_materialize_is_the_identity(dtype):
    x = jnp.asarray(normal(3, 2, 4, 5), dtype).at[0, 1].set(-jnp.inf)
    chex.assert_trees_all_equal(jax.jit(ops.materialize)(x), x)
    chex.assert_trees_all_equal(jax.vmap(ops.materialize)(x), x)


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


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("form", [target.CPU, target.ACCELERATOR])
def test_the_gradient_of_a_bias_is_summed_in_float32(form: target.Target, separable: bool):
    """Over 25,088 pixels; of so many, sums in bfloat16 stop to grow."""
    x_HCWN, dy_HOWN = to_bfloat16(normal(14, 2, 14, 128)), to_bfloat16(np.ones((14, 3, 14, 128)))
    depthwise, pointwise = to_bfloat16(normal(3, 3, 1, 2)), to_bfloat16(normal(1, 1, 2, 3))
    kernel = to_bfloat16(normal(3, 3, 2, 3))

    def conv(bias_O: jax.Array) -> jax.Array:
        if separable:
            return ops.separable_conv2d(x_HCWN, depthwise, pointwise, bias_O, 1)
        return ops.conv2d(x_HCWN, kernel, bias_O, 1)

    with target.form(form):
        (dbias_O,) = jax.vjp(conv, jnp.zeros(3, jnp.bfloat16))[1](dy_HOWN)
    np.testing.assert_allclose(dbias_O.astype(jnp.float32), 14 * 14 * 128, rtol=0.01)
