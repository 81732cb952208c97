"""Tests of jaxmnist.networks.layers against XLA's own operations and against formulas in numpy."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec
from scipy import stats

from jaxmnist.networks import layers, prng


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_bfloat16(a: np.ndarray) -> jax.Array:
    return jnp.asarray(a, jnp.bfloat16)


def run(layer: Any, x_HCWN: Any, train: bool = False) -> jax.Array:
    """The output of a layer without parameters."""
    return layer.apply({}, jnp.asarray(x_HCWN), train=train)


# Convolution.


def test_conv_layer_adds_its_bias_per_channel():
    x_HCWN = jnp.asarray(normal(4, 2, 5, 3))
    layer = layers.Conv(3, kernel_size=1, use_bias=True)
    variables: Any = layer.init(prng.key(0), x_HCWN, train=False)
    kernel_HWIO, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = np.einsum("hcwn,co->hown", x_HCWN, kernel_HWIO[0, 0]) + bias[None, :, None, None]
    chex.assert_trees_all_close(layer.apply(variables, x_HCWN, train=False), expected, atol=1e-6)


@pytest.mark.parametrize("layer", [layers.Conv(4, padding=1), layers.Conv(4, 3, 1, use_bias=True)])
def test_conv_layer_parameters(layer):
    params = layer.init(prng.key(0), jnp.zeros((5, 2, 5, 1)), train=False)["params"]
    shapes = {name: leaf.shape for name, leaf in params.items()}
    assert shapes == {"kernel": (3, 3, 2, 4)} | ({"bias": (4,)} if layer.use_bias else {})


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (5, 0), (1, 0)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_separable_conv(size: int, padding: int, use_bias: bool):
    """As XLA's grouped convolution with a 1×1 convolution behind it."""
    x_HCWN = jnp.asarray(normal(7, 3, 7, 4))
    layer = layers.SeparableConv(5, size, padding, use_bias)
    variables: Any = layer.init(prng.key(0), x_HCWN, train=False)
    params = variables["params"]
    shapes = {"depthwise": (size, size, 1, 3), "pointwise": (1, 1, 3, 5)}
    assert {name: leaf.shape for name, leaf in params.items()} == (
        shapes | ({"bias": (5,)} if use_bias else {})
    )
    y_HCWN = lax.conv_general_dilated(
        x_HCWN,
        params["depthwise"],
        window_strides=(1, 1),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("HCWN", "HWIO", "HCWN"),
        feature_group_count=3,
        precision="highest",
    )
    expected = jnp.einsum("hcwn,co->hown", y_HCWN, params["pointwise"][0, 0])
    expected += params["bias"][None, :, None, None] if use_bias else 0
    found = layer.apply(variables, x_HCWN, train=False)
    chex.assert_trees_all_close(found, expected, atol=2e-6)


# Vectors.


def test_flatten_orders_as_channels_rows_columns():
    x_HCWN = normal(3, 2, 4, 5)
    expected_NK = x_HCWN.transpose(3, 1, 0, 2).reshape(5, 24)
    chex.assert_trees_all_equal(run(layers.Flatten(), x_HCWN), expected_NK.T)


@pytest.mark.parametrize("use_bias", [True, False])
def test_linear(use_bias):
    x_IN = jnp.asarray(normal(6, 5))
    layer = layers.Linear(4, use_bias=use_bias)
    variables: Any = layer.init(prng.key(0), x_IN, train=False)
    params = variables["params"]
    chex.assert_shape(params["kernel"], (6, 4))
    expected_NO = x_IN.T @ params["kernel"]
    if use_bias:
        expected_NO += jnp.tile(params["bias"], (5, 1))
    y_ON: Any = layer.apply(variables, x_IN, train=False)
    chex.assert_shape(y_ON, (4, 5))
    chex.assert_trees_all_close(y_ON.T, expected_NO, atol=1e-6)
    assert ("bias" in params) == use_bias


# Initial values.


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (layers.Conv(400, 3, use_bias=True), 9 * 5),
        (layers.Conv(1000, 1, use_bias=True), 5),
        (layers.Linear(1000, use_bias=True), 5),
    ],
    ids=["3x3", "1x1", "linear"],
)
def test_initial_kernel_and_bias_fill_the_fan_in_bound(layer, fan_in):
    x = jnp.zeros((5, 1) if isinstance(layer, layers.Linear) else (3, 5, 3, 1))
    params: Any = layer.init(prng.key(1), x, train=False)["params"]
    for leaf in params.values():
        x = np.asarray(leaf).ravel() * fan_in**0.5
        assert leaf.dtype == jnp.float32
        assert np.abs(x).max() <= 1
        assert stats.kstest(x, "uniform", (-1, 2)).pvalue > 1e-3
        assert np.abs(x).max() > 0.98
    # Weights and biases are drawn apart.
    assert np.abs(np.asarray(params["kernel"]).ravel()[: layer.features] - params["bias"]).min() > 0


def test_initial_values_differ_between_seeds():
    x_HCWN = jnp.zeros((3, 1, 3, 1))
    variables: list[Any] = [layers.Conv(4).init(prng.key(i), x_HCWN, train=False) for i in (0, 1)]
    first, other = variables
    assert jnp.not_equal(first["params"]["kernel"], other["params"]["kernel"]).all()


# Batch norm.


def batch_norm_state(channels: int) -> dict[str, dict[str, np.ndarray]]:
    """Variables in which nothing is 0 or 1."""
    rng = np.random.default_rng(2)

    def positive() -> np.ndarray:
        return rng.uniform(0.5, 2, channels).astype(np.float32)

    return {
        "params": {"scale": positive(), "bias": positive()},
        "batch_stats": {"mean": positive(), "var": positive()},
    }


def update_batch_norm(state: dict[str, Any], x_HCWN: jax.Array, train: bool) -> tuple[Any, Any]:
    return layers.BatchNorm().apply(state, x_HCWN, train=train, mutable=["batch_stats"])


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    """As float64, (C,) made (C, 1, 1)."""
    return [a.astype(np.float64).reshape(a.shape if a.ndim > 1 else (-1, 1, 1)) for a in arrays]


def test_batch_norm_initial_state():
    x_HCWN = jnp.asarray(normal(4, 3, 4, 2) + 5)
    variables = layers.BatchNorm().init(prng.key(0), x_HCWN, train=True)
    ones, zeros = jnp.ones(3), jnp.zeros(3)
    # The batch that shapes the parameters leaves no trace in the statistics.
    expected = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }
    chex.assert_trees_all_equal(variables, expected)


@pytest.mark.parametrize(("height", "batch"), [(5, 3), (1, 2)])
def test_batch_norm_in_training(height, batch):
    x_HCWN = normal(height, 4, 2, batch) * 3 + 2
    state = batch_norm_state(4)
    y_HCWN, updates = update_batch_norm(state, jnp.asarray(x_HCWN), train=True)
    x, scale, bias = wide(x_HCWN, state["params"]["scale"], state["params"]["bias"])
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    chex.assert_trees_all_close(
        np.asarray(y_HCWN, np.float64), (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=3e-6
    )
    old = state["batch_stats"]
    expected = {
        "mean": 0.9 * old["mean"] + 0.1 * x.mean((0, 2, 3)),
        "var": 0.9 * old["var"] + 0.1 * x.var((0, 2, 3), ddof=1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(updates["batch_stats"][name], value, rtol=1e-6)


def test_batch_norm_in_evaluation():
    x_HCWN = normal(3, 4, 3, 2)
    state = batch_norm_state(4)
    y_HCWN, updates = update_batch_norm(state, jnp.asarray(x_HCWN), train=False)
    scale, bias, mean, var = wide(*state["params"].values(), *state["batch_stats"].values())
    expected = (x_HCWN - mean) / np.sqrt(var + 1e-5) * scale + bias
    chex.assert_trees_all_close(np.asarray(y_HCWN, np.float64), expected, atol=2e-6)
    chex.assert_trees_all_equal(updates["batch_stats"], state["batch_stats"])


def test_batch_norm_without_a_scale():
    """Its scale is 1 and is nothing to be trained."""
    x_HCWN = jnp.asarray(normal(4, 3, 4, 2) + 5)
    layer = layers.BatchNorm(use_scale=False)
    variables: Any = layer.init(prng.key(0), x_HCWN, train=True)
    assert list(variables["params"]) == ["bias"]
    chex.assert_trees_all_equal(variables["batch_stats"]["scale"], jnp.ones(3))
    found = layer.apply(variables, x_HCWN, train=True, mutable=["batch_stats"])
    with_scale: Any = layers.BatchNorm()
    expected = with_scale.apply(
        with_scale.init(prng.key(0), x_HCWN, train=True),
        x_HCWN,
        train=True,
        mutable=["batch_stats"],
    )
    chex.assert_trees_all_equal(found[0], expected[0])
    updated = found[1]["batch_stats"]
    chex.assert_trees_all_equal(updated.pop("scale"), jnp.ones(3))
    chex.assert_trees_all_equal(updated, expected[1]["batch_stats"])


def test_batch_norm_epsilon_counts_where_variance_is_small():
    x_HCWN = jnp.asarray([-0.002, 0.002], jnp.float32).reshape(1, 1, 1, 2)
    layer = layers.BatchNorm()
    y_HCWN, _ = layer.init_with_output(prng.key(0), x_HCWN, train=True)
    expected = 0.002 / (0.002**2 + 1e-5) ** 0.5
    np.testing.assert_allclose(y_HCWN.ravel(), [-expected, expected], rtol=1e-5)


def test_batch_norm_keeps_float32_statistics_of_bfloat16():
    x_HCWN = to_bfloat16(normal(8, 3, 8, 16) + 20)
    state = batch_norm_state(3)
    y_HCWN, narrow = update_batch_norm(state, x_HCWN, train=True)
    exact_HCWN, exact = update_batch_norm(state, x_HCWN.astype(jnp.float32), train=True)
    assert y_HCWN.dtype == jnp.bfloat16
    assert narrow["batch_stats"]["mean"].dtype == narrow["batch_stats"]["var"].dtype == jnp.float32
    chex.assert_trees_all_close(narrow, exact, rtol=1e-6)
    chex.assert_trees_all_close(y_HCWN.astype(jnp.float32), exact_HCWN, rtol=2**-8, atol=1e-6)


# Activation and pooling.


def test_relu_and_its_gradient_at_zero():
    x_HCWN = jnp.asarray([-2.0, -0.0, 0.0, 3.0]).reshape(1, 1, 4, 1)
    y_HCWN, vjp = jax.vjp(lambda x: run(layers.Relu(), x), x_HCWN)
    chex.assert_trees_all_equal(y_HCWN.ravel(), jnp.asarray([0.0, 0.0, 0.0, 3.0]))
    (dx_HCWN,) = vjp(jnp.ones_like(x_HCWN))
    chex.assert_trees_all_equal(dx_HCWN.ravel(), jnp.asarray([0.0, 0.0, 0.0, 1.0]))


def test_silu():
    x_HCWN = normal(3, 2, 4, 5) * 5
    expected = x_HCWN / (1 + np.exp(-x_HCWN.astype(np.float64)))
    np.testing.assert_allclose(run(layers.Silu(), x_HCWN), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (2, 3)])
def test_max_pool_and_its_gradient_without_ties(height, width):
    x_HCWN = normal(height, 3, width, 2)
    rows, columns = height // 2, width // 2
    cropped = x_HCWN[: 2 * rows, :, : 2 * columns]
    expected = cropped.reshape(rows, 2, 3, columns, 2, 2).max((1, 4))

    def reduce_window(x_HCWN):
        return lax.reduce_window(x_HCWN, -jnp.inf, lax.max, (2, 1, 2, 1), (2, 1, 2, 1), "VALID")

    y_HCWN, vjp = jax.vjp(lambda x: run(layers.MaxPool(), x), jnp.asarray(x_HCWN))
    chex.assert_trees_all_equal(y_HCWN, expected)
    dy_HCWN = jnp.asarray(normal(rows, 3, columns, 2, seed=1))
    reference = jax.vjp(reduce_window, jnp.asarray(x_HCWN))[1](dy_HCWN)
    chex.assert_trees_all_equal(vjp(dy_HCWN), reference)


def test_max_pool_gives_ties_to_the_first_pixel():
    # Every way to place the maximum on the four pixels of a patch: the bits of 1…15.
    patterns = np.array([[m >> bit & 1 for bit in range(4)] for m in range(1, 16)], np.float32)
    x_HCWN = jnp.asarray(patterns.T.reshape(2, 1, 2, 15))
    dx_HCWN = jax.grad(lambda x: run(layers.MaxPool(), x).sum())(x_HCWN)
    expected = np.zeros_like(patterns)
    expected[np.arange(15), patterns.argmax(1)] = 1
    chex.assert_trees_all_equal(dx_HCWN.reshape(4, 15).T, expected)


def test_global_pools():
    x_HCWN = normal(4, 3, 5, 2)
    mean, largest = x_HCWN.mean((0, 2), keepdims=True), x_HCWN.max((0, 2), keepdims=True)
    average = run(layers.GlobalAvgPool(), x_HCWN)
    chex.assert_trees_all_close(average, mean, atol=1e-6)
    both = run(layers.GlobalAvgMaxPool(), x_HCWN)
    chex.assert_trees_all_close(both, np.concatenate([mean, largest], axis=1), atol=1e-6)


def test_global_max_shares_the_gradient_of_ties():
    x_HCWN = jnp.asarray([5.0, 1.0, 5.0, 2.0]).reshape(2, 1, 2, 1)
    dx_HCWN = jax.grad(lambda x: run(layers.GlobalAvgMaxPool(), x)[:, 1].sum())(x_HCWN)
    chex.assert_trees_all_equal(dx_HCWN.ravel(), jnp.asarray([0.5, 0.0, 0.5, 0.0]))


# Dropout.


def drop(rate: float, x_HCWN: jax.Array, seed: int = 0, whole_channels: bool = False) -> np.ndarray:
    layer = layers.Dropout(rate, whole_channels)
    return np.asarray(layer.apply({}, x_HCWN, train=True, rngs={"dropout": prng.key(seed)}))


@pytest.mark.parametrize("rate", [0.05, 0.25])
@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_rate_and_scale(rate, whole_channels):
    x_HCWN = jnp.asarray(normal(3, 64, 3, 128) + 10)
    y_HCWN = drop(rate, x_HCWN, whole_channels=whole_channels)
    kept = y_HCWN != 0
    chex.assert_trees_all_close(y_HCWN[kept], np.asarray(x_HCWN)[kept] / (1 - rate), rtol=1e-6)
    decisions = kept[:1, :, :1] if whole_channels else kept
    dropped = int((~decisions).sum())
    assert stats.binomtest(dropped, decisions.size, rate).pvalue > 1e-3
    if whole_channels:
        chex.assert_trees_all_equal(kept, np.broadcast_to(decisions, kept.shape))


@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_decides_anew_along_every_axis(whole_channels):
    side = 1 if whole_channels else 8
    kept = drop(0.5, jnp.ones((side, 32, side, 32)), whole_channels=whole_channels) != 0
    for axis in range(4):
        if kept.shape[axis] > 1:
            first, second = np.take(kept, 0, axis), np.take(kept, 1, axis)
            agreeing = int((first == second).sum())
            assert stats.binomtest(agreeing, first.size, 0.5).pvalue > 1e-3, axis


def test_dropout_masks_depend_on_the_key_alone():
    x_HCWN = jnp.ones((5, 4, 5, 16))
    chex.assert_trees_all_equal(drop(0.5, x_HCWN), drop(0.5, x_HCWN))
    assert (drop(0.5, x_HCWN) != drop(0.5, x_HCWN, seed=1)).mean() > 0.4


def test_dropout_layers_of_one_network_differ():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x_HCWN):
            return [layers.Dropout(0.5)(x_HCWN, train=True) for _ in range(2)]

    first, second = Two().apply({}, jnp.ones((5, 4, 5, 16)), rngs={"dropout": prng.key(0)})
    assert (first != second).mean() > 0.4


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_dropout_with_a_traced_rate_is_the_same(rate):
    x_HCWN = jnp.asarray(normal(5, 4, 5, 16))

    def apply(rate: float) -> Any:
        rngs = {"dropout": prng.key(0)}
        return layers.Dropout(rate).apply({}, x_HCWN, train=True, rngs=rngs)

    chex.assert_trees_all_equal(jax.jit(apply)(rate), apply(rate))
    assert (apply(rate) == 0).any()


def test_dropout_passes_gradients_where_it_kept():
    x_HCWN = jnp.ones((4, 3, 4, 5))
    layer = layers.Dropout(0.25)
    rngs = {"dropout": prng.key(3)}
    y_HCWN, vjp = jax.vjp(lambda x: layer.apply({}, x, train=True, rngs=rngs), x_HCWN)
    chex.assert_trees_all_equal(vjp(x_HCWN)[0], y_HCWN)


@pytest.mark.parametrize(("rate", "train"), [(0.5, False), (None, True)])
def test_dropout_does_nothing_and_needs_no_key(rate, train):
    x_HCWN = jnp.asarray(normal(3, 2, 3, 4))
    chex.assert_trees_all_equal(layers.Dropout(rate).apply({}, x_HCWN, train=train), x_HCWN)


# Batches that are split.

PARTS = 4


def split_batch(x_HCWN: jax.Array) -> jax.Array:
    return jnp.stack(jnp.split(x_HCWN, PARTS, axis=-1))


def join_batch(x_PHCWN: jax.Array) -> jax.Array:
    return jnp.concatenate(list(x_PHCWN), axis=-1)


def on_devices(function: Any) -> Any:
    """``function(shared, part, …)`` on a device each part; results are stacked."""

    def one(shared, *parts):
        results = function(shared, *(part[0] for part in parts))
        return jax.tree.map(lambda leaf: leaf[None], results)

    def all_of_them(shared, *parts):
        over, same = PartitionSpec("data"), PartitionSpec()
        mesh = jax.make_mesh((PARTS,), ("data",), (jax.sharding.AxisType.Auto,))
        specs = (same, *(over for _ in parts))
        return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)(
            shared, *parts
        )

    return all_of_them


def by_vmap(function: Any) -> Any:
    def all_of_them(shared, *parts):
        axes = (None, *(0 for _ in parts))
        return jax.vmap(function, axes, axis_name="data")(shared, *parts)

    return all_of_them


ways_to_split = pytest.mark.parametrize(
    "mapped",
    [
        by_vmap,
        pytest.param(
            on_devices,
            marks=pytest.mark.skipif(jax.device_count() < PARTS, reason="needs four devices"),
        ),
    ],
)


@ways_to_split
@pytest.mark.parametrize(("mean", "oriented"), [(0, False), (10, False), (0, True)])
def test_batch_norm_of_a_split_batch(mapped, mean, oriented):
    """Values, running statistics and gradients are those of the whole.

    The parts are unlike each other, so that the mean of their variances is not that of the whole.
    """
    shift = np.repeat(np.arange(8), 2).astype(np.float32)
    channels = 24 if oriented else 3
    x_HCWN = jnp.asarray(normal(4, channels, 5, 16) + shift[None, None, None] + mean)
    dy_HCWN = jnp.asarray(normal(4, channels, 5, 16, seed=1))

    def pull(axis_name: str | None) -> Any:
        layer = layers.BatchNorm(oriented=oriented, axis_name=axis_name)

        def run(state, x_HCWN, dy_HCWN):
            def forward(params, x_HCWN):
                variables = {"params": params, "batch_stats": state["batch_stats"]}
                return layer.apply(variables, x_HCWN, train=True, mutable=["batch_stats"])

            y_HCWN, vjp, updates = jax.vjp(forward, state["params"], x_HCWN, has_aux=True)
            return y_HCWN, updates["batch_stats"], *vjp(dy_HCWN)

        return run

    state = batch_norm_state(3)
    expected = jax.jit(pull(None))(state, x_HCWN, dy_HCWN)
    y, stats_P, dparams_P, dx = jax.jit(mapped(pull("data")))(
        state, split_batch(x_HCWN), split_batch(dy_HCWN)
    )
    for part in range(PARTS):
        of_part = jax.tree.map(lambda leaf, part=part: leaf[part], stats_P)
        chex.assert_trees_all_close(of_part, expected[1], rtol=1e-6)
    # Each device has the gradient of its own copy of the parameters.
    dparams = jax.tree.map(lambda leaf: leaf.sum(0), dparams_P)
    found = join_batch(y), expected[1], dparams, join_batch(dx)
    # Around 10, x itself is rounded to 1e-6 and its distance from the mean by as much.
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=4e-6 if mean == 0 else 2e-5)


@ways_to_split
@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_of_a_split_batch(mapped, whole_channels):
    """Mask, values and gradients are those of the whole, bit for bit."""
    x_HCWN = jnp.asarray(normal(4, 6, 3, 32) + 10)
    dy_HCWN = jnp.asarray(normal(4, 6, 3, 32, seed=1))

    def pull(axis_name: str | None) -> Any:
        layer = layers.Dropout(0.3, whole_channels, axis_name=axis_name)

        def run(seed, x_HCWN, dy_HCWN):
            rngs = {"dropout": prng.key(seed)}
            y_HCWN, vjp = jax.vjp(lambda x: layer.apply({}, x, train=True, rngs=rngs), x_HCWN)
            return y_HCWN, *vjp(dy_HCWN)

        return run

    expected = jax.jit(pull(None))(jnp.uint32(4), x_HCWN, dy_HCWN)
    parts = jax.jit(mapped(pull("data")))(jnp.uint32(4), split_batch(x_HCWN), split_batch(dy_HCWN))
    chex.assert_trees_all_equal(tuple(map(join_batch, parts)), expected)
    dropped = np.asarray(expected[0] == 0)
    assert 0.2 < dropped.mean() < 0.4
    first, second = np.split(dropped, PARTS, axis=-1)[:2]
    assert (first != second).mean() > 0.3, "the parts must not share a mask"


@ways_to_split
@pytest.mark.parametrize("layer", [layers.BatchNorm, lambda **kw: layers.Dropout(0.3, **kw)])
def test_evaluation_takes_no_notice_of_the_other_parts(mapped, layer):
    x_HCWN = jnp.asarray(normal(4, 3, 5, 8))
    state = batch_norm_state(3)

    def run(axis_name: str | None) -> Any:
        return lambda state, x: layer(axis_name=axis_name).apply(state, x, train=False)

    found = jax.jit(mapped(run("data")))(state, split_batch(x_HCWN))
    chex.assert_trees_all_close(join_batch(found), jax.jit(run(None))(state, x_HCWN), rtol=1e-6)


# What all layers have in common.


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv(3, use_bias=True),
        layers.SeparableConv(3, use_bias=True),
        layers.SeparableConv(200, use_bias=True),
        layers.BatchNorm(),
        layers.BatchNorm(use_scale=False),
        layers.Conv(8, use_bias=True, oriented=True),
        layers.Relu(),
        layers.Silu(),
        layers.Dropout(0.5),
        layers.Dropout(0.5, whole_channels=True),
        layers.MaxPool(),
        layers.GlobalAvgPool(),
        layers.GlobalAvgMaxPool(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_bfloat16_stays_bfloat16_beside_float32_parameters(layer, train):
    x_HCWN = to_bfloat16(normal(4, 3, 4, 2))
    rngs = {"params": prng.key(0), "dropout": prng.key(1)}
    y_HCWN, variables = layer.init_with_output(rngs, x_HCWN, train=train)
    assert y_HCWN.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_linear_in_bfloat16():
    x_IN = to_bfloat16(normal(3, 2))
    y_ON, variables = layers.Linear(4).init_with_output(prng.key(0), x_IN, train=False)
    assert y_ON.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("layer", "window"),
    [
        (layers.Conv(4, 3), (3, 1)),
        (layers.Conv(4, 1), (1, 1)),
        (layers.SeparableConv(4, 5), (5, 1)),
        (layers.Flatten(), (1, 1)),
        (layers.Linear(4), (1, 1)),
        (layers.BatchNorm(), (1, 1)),
        (layers.Relu(), (1, 1)),
        (layers.Silu(), (1, 1)),
        (layers.Dropout(0.5), (1, 1)),
        (layers.MaxPool(), (2, 2)),
        (layers.GlobalAvgPool(), (7, 1)),
        (layers.GlobalAvgMaxPool(), (7, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_windows(layer, window):
    assert layer.window(7) == window
