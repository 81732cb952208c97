"""Tests of jaxmnist.networks.models: architectures, parameter counts, what Network does."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import published
from jaxmnist.networks import layers, models, prng

# The architectures in the notation of the write-ups, transcribed independently of models.py:
# C3(1→8,1) is a 3×3 convolution with padding 1, a + means with bias; D acts on elements, D2 on
# channels; AvgMax is the concatenation of global average and maximum, F is Flatten.
ARCHITECTURES = {
    "compact_tiny": """
        C3(1→8,1) BN R MP D2
        C3(8→16,1) BN R MP D2
        C3(16→32,1) BN R AvgMax F L(64→10)""",
    "compact": """
        C3(1→8,1) BN R C3(8→8,1) BN R MP D2
        C3(8→16,1) BN R C3(16→16,1) BN R MP D2
        C3(16→32,1) BN R C3(32→32,1) BN R GAP F L(32→10)""",
    "lightweight": """
        C3(1→6,1)+ BN R C3(6→10,1)+ BN R MP D2
        C3(10→16,1)+ BN R C3(16→18,1)+ BN R MP D2
        C3(18→32,0)+ BN R C3(32→24,0)+ BN R C3(24→10,0)+ GAP F""",
    "model1": """
        C3(1→16,0) R BN D C3(16→32,0) R BN D C1(32→10,0) MP
        C3(10→16,0) R BN D C3(16→16,0) R BN D C3(16→16,0) R BN D C3(16→16,1) R BN D
        GAP C1(16→10,0) F""",
    "model2": """
        C3(1→16,1)+ BN R C3(16→16,1)+ BN R MP C1(16→12,0)+ D
        C3(12→20,1)+ BN R C3(20→20,1)+ BN R MP C1(20→24,0)+ D
        GAP C1(24→10,0)+ F""",
    "model3": """
        C3(1→7,0) BN R C3(7→7,0) BN R C3(7→10,0) BN R MP
        C3(10→10,0) BN R C3(10→12,0) BN R MP
        C3(12→16,1) BN R C3(16→18,1) BN R GAP F L(18→10)+""",
    "efficient": """
        C3(1→16,0) BN R C3(16→32,0) BN R D MP C1(32→16,0) BN R
        C3(16→32,0) BN R D C3(32→32,0) BN R D GAP C1(32→10,0) F""",
    "net8k": """
        C3(1→8,1) BN R C3(8→16,1) BN R MP
        C3(16→16,1) BN R C3(16→16,1) BN R MP
        C3(16→16,1) BN R D C1(16→10,0) GAP F""",
}
NAMES = list(ARCHITECTURES)

# The sums of the parameters of each convolution and what follows it up to the next, as published.
COUNTS_BY_CONV = {
    "compact": [88, 592, 1184, 2336, 4672, 9280, 320],
    "model3": [77, 455, 650, 920, 1104, 1760, 2628, 190],
    "efficient": [176, 4672, 544, 4672, 9280, 320],
    "net8k": [88, 1184, 2336, 2336, 2336, 160],
}


@functools.cache
def abstract_variables(name: str) -> Any:
    """Shapes and dtypes of the network's variables."""
    network = models.build(name, 0.1)
    images_NHW = jnp.zeros((2, 28, 28), jnp.uint8)
    return jax.eval_shape(lambda: network.init(prng.key(0), images_NHW, train=False))


def size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def layer_sizes(name: str) -> list[int]:
    params = abstract_variables(name)["params"]
    count = len(models.build(name, 0.1).layers)
    return [size(params.get(f"layers_{i}", {})) for i in range(count)]


def describe(layer: models.Layer, params: Any) -> str:
    """The layer in the notation of ARCHITECTURES, sizes taken from the parameters."""
    bias = "+" if "bias" in params else ""
    match layer:
        case layers.Conv():
            height, width, inputs, outputs = params["kernel"].shape
            assert height == width
            return f"C{height}({inputs}→{outputs},{layer.padding}){bias}"
        case layers.Linear():
            inputs, outputs = params["kernel"].shape
            return f"L({inputs}→{outputs}){bias}"
        case layers.Dropout():
            return "D2" if layer.whole_channels else "D"
    short = {"BatchNorm": "BN", "Relu": "R", "MaxPool": "MP", "Flatten": "F"}
    short |= {"GlobalAvgPool": "GAP", "GlobalAvgMaxPool": "AvgMax"}
    return short[type(layer).__name__]


def test_all_networks_are_covered():
    assert set(models.NETWORKS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name):
    params = abstract_variables(name)["params"]
    network = models.build(name, 0.1)
    found = [
        describe(layer, params.get(f"layers_{i}", {})) for i, layer in enumerate(network.layers)
    ]
    assert found == ARCHITECTURES[name].split()


@pytest.mark.parametrize("recipe", published.load_all())
def test_parameter_count_as_published(recipe):
    model = "compact" if recipe == "compact_sgd" else recipe
    assert sum(layer_sizes(model)) == published.load_all()[recipe]["params"]


@pytest.mark.parametrize("name", COUNTS_BY_CONV)
def test_parameter_counts_by_conv_as_published(name):
    counts: list[int] = []
    for layer, params in zip(models.build(name, 0.1).layers, layer_sizes(name), strict=True):
        if isinstance(layer, layers.Conv | layers.Linear):
            counts.append(0)
        counts[-1] += params
    assert counts == COUNTS_BY_CONV[name]


def test_parameter_counts_of_lightweight_by_block_as_published():
    blocks = [0]
    network = models.build("lightweight", 0.1)
    for layer, params in zip(network.layers, layer_sizes("lightweight"), strict=True):
        if isinstance(layer, layers.MaxPool):
            blocks.append(0)
        blocks[-1] += params
    assert blocks == [642, 4134, 14434]


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_named_by_position_and_float32(name):
    variables = abstract_variables(name)
    parts = ARCHITECTURES[name].split()
    trained = {f"layers_{i}" for i, part in enumerate(parts) if "→" in part or part == "BN"}
    normalised = {f"layers_{i}" for i, part in enumerate(parts) if part == "BN"}
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]) == trained
    assert set(variables["batch_stats"]) == normalised
    for layer in variables["batch_stats"].values():
        assert set(layer) == {"mean", "var"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("name", NAMES)
def test_build_sets_the_dropout_rate(name):
    rates = [
        layer.rate for layer in models.build(name, 0.3).layers if isinstance(layer, layers.Dropout)
    ]
    assert rates == [0.3] * len(rates)
    assert bool(rates) == (name != "model3")


# Running the networks. One compilation a network serves all of these tests.


def initial_variables(network: models.Network, images_NHW: jax.Array) -> dict[str, Any]:
    """Initial parameters beside statistics that keep activations from fading out."""
    variables = network.init(prng.key(0), images_NHW, train=False)
    stats = jax.tree.map(lambda leaf: 0.02 + 0.13 * leaf, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


@functools.cache
def compiled(name: str):
    """A function of (images_NHW, dropout_seed) to everything there is to see of the network."""
    network = models.build(name, 0.25)

    @jax.jit
    def run(images_NHW: jax.Array, dropout_seed: int) -> dict[str, Any]:
        variables = initial_variables(network, images_NHW)
        rngs = {"dropout": prng.key(dropout_seed)}
        logits_in_training, updates = network.apply(
            variables, images_NHW, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return {
            "variables": variables,
            "eval": network.apply(variables, images_NHW, train=False),
            "batch_minor": network.apply(
                variables,
                images_NHW.transpose(1, 2, 0),
                train=False,
                method=network.from_batch_minor,
            ),
            "train": logits_in_training,
            "updates": updates,
        }

    return run


@pytest.fixture(scope="module")
def images_NHW(mnist) -> np.ndarray:
    return mnist[1].images_NHW[:8]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name, images_NHW):
    found = compiled(name)(images_NHW[:4], 0)
    logits = found["eval"]
    chex.assert_shape(logits, (4, 10))
    assert logits.dtype == jnp.float32
    chex.assert_tree_all_finite(logits)
    assert (jnp.ptp(logits, axis=0) > 1e-2).all()  # every logit depends on the image
    chex.assert_trees_all_equal(found["batch_minor"], logits)
    # The logits of image 2 are the same in another place among other images.
    others = compiled(name)(images_NHW[[2, 5, 6, 7]], 1)
    chex.assert_trees_all_close(others["eval"][0], logits[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training(name, images_NHW):
    found = compiled(name)(images_NHW[:4], 0)
    logits = found["train"]
    chex.assert_shape(logits, (4, 10))
    assert logits.dtype == jnp.float32
    chex.assert_tree_all_finite(logits)
    assert (jnp.abs(logits - found["eval"]) > 1e-3).any()
    before, after = found["variables"]["batch_stats"], found["updates"]["batch_stats"]
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old != new).all()
    # Only dropout depends on the key.
    again = compiled(name)(images_NHW[:4], 1)
    chex.assert_trees_all_equal(again["eval"], found["eval"])
    assert (again["train"] != logits).any() == ("D" in ARCHITECTURES[name])


@pytest.mark.parametrize("name", ["compact_tiny", "model1", "model3"])
def test_bfloat16_logits_are_near_those_of_float32(name, images_NHW):
    full = compiled(name)(images_NHW[:4], 0)
    network = models.build(name, 0.25, jnp.bfloat16)

    @jax.jit
    def run(images_NHW):
        variables = initial_variables(network, images_NHW)
        return network.apply(variables, images_NHW, train=False), variables

    logits, variables = run(images_NHW[:4])
    chex.assert_trees_all_equal(variables, full["variables"])
    assert logits.dtype == jnp.bfloat16
    error = jnp.abs(logits.astype(jnp.float32) - full["eval"]).max()
    assert 0 < error < 0.03 * jnp.abs(full["eval"]).max()


# Normalisation of the images.


def test_normalisation_of_black_and_white():
    """A 28×28 convolution adds up its kernel times the one value of the image."""
    network = models.Network((layers.Conv(10, kernel_size=28), layers.Flatten()))
    levels = np.array([0, 255, 51], np.uint8)
    images_NHW = np.broadcast_to(levels[:, None, None], (3, 28, 28))
    totals = np.arange(1, 11, dtype=np.float32)
    kernel_HWIO = np.broadcast_to(totals / 784, (28, 28, 1, 10))
    variables = {"params": {"layers_0": {"kernel": jnp.asarray(kernel_HWIO)}}}
    logits = network.apply(variables, jnp.asarray(images_NHW), train=False)
    # (0 - 0.1307)/0.3081, (1 - 0.1307)/0.3081 and (0.2 - 0.1307)/0.3081.
    pixels = [-0.42421292, 2.82148653, 0.22492697]
    chex.assert_trees_all_close(np.asarray(logits), np.outer(pixels, totals), rtol=2e-5)


def test_images_keep_their_orientation():
    network = models.Network((layers.Conv(10, kernel_size=28), layers.Flatten()))
    rng = np.random.default_rng(0)
    images_NHW = rng.integers(0, 256, (3, 28, 28), np.uint8)
    kernel_HWIO = rng.normal(size=(28, 28, 1, 10)).astype(np.float32)
    variables = {"params": {"layers_0": {"kernel": jnp.asarray(kernel_HWIO)}}}
    logits: Any = network.apply(variables, jnp.asarray(images_NHW), train=False)
    pixels_NHW = (images_NHW / 255 - 0.1307) / 0.3081
    expected = np.einsum("nhw,hwo->no", pixels_NHW, kernel_HWIO[:, :, 0])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
