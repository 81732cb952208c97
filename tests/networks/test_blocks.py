"""Tests of jaxmnist.networks.blocks: what the text means, what is refused, the same in PyTorch."""

import re
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch_reference import SeparableConv2d

from jaxmnist.errors import UserError
from jaxmnist.export import torch_weights
from jaxmnist.networks import analyze, blocks, layers, models, prng
from jaxmnist.networks.blocks import Blocks, Unit


def described(text: str, padding: str = "1", head: str = "linear", **fields: Any) -> Blocks:
    defaults = {
        "head_bias": True,
        "activation": "relu",
        "batch_norm_scale": True,
        "pool_first": False,
    }
    return blocks.parse(text, padding, head, **(defaults | fields))


# What the text means.


def test_units():
    found = described("4-6k5/8d-8k7d/=-=", "0/1/1", batch_norm_scale=False)
    assert found.units == (
        (Unit(4), Unit(6, 5)),
        (Unit(8, separable=True), Unit(8, 7, separable=True)),
        (None, None),
    )
    assert found[1:] == ((0, 1, 1), "linear", True, "relu", False, False)
    assert described("4/6/8").padding == (1, 1, 1)


def test_the_lines_that_the_docstring_names_are_networks():
    lines = re.findall(r"^ {4}(\S+)  ", blocks.__doc__ or "", re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert described(line, padding="0/0/1" if line.count("/") == 2 else "0").units


@pytest.mark.parametrize("text", ["8", "8k1d-=/=", "999k7", "8-=/16d", "8k5o-8do"])
def test_texts_that_can_be_read(text: str):
    assert blocks.PATTERN.fullmatch(text)


@pytest.mark.parametrize(
    "text", ["=", "=-8", "8=", "8k2", "8k9", "8k", "8dk5", "8-/8", "d", "8D", "8od", "8oo"]
)
def test_texts_that_mean_nothing(text: str):
    assert not blocks.PATTERN.fullmatch(text)


@pytest.mark.parametrize(
    ("text", "padding", "head", "words"),
    [
        ("8/8", "0/1/0", "linear", "network.padding is '0/1/0': network.blocks has 2 blocks"),
        ("8/8/8/8/8/8", "1", "linear", "nothing is left of the image in block 6"),
        ("8-8-8-8/8-8-8-8-8", "0", "linear", "nothing is left of the image in block 2"),
        ("8k7-8k7/8k7-8k3", "0", "linear", "nothing is left of the image in block 2"),
        ("8-=", "1", "linear", "= repeats in block 1 makes 8 maps of 1"),
        ("4-8/8-4-=", "1", "linear", "= repeats in block 2 makes 4 maps of 8"),
        ("8-8/=", "1/0", "linear", "= in block 2 repeats a convolution with another padding"),
        ("8-12", "1", "maps", "with the head 'maps' the last convolution must be"),
        ("10-10-=", "1", "maps", "with the head 'maps' the last convolution must be"),
        ("8o/12o", "1", "linear", "block 2 has a convolution with o and 12 maps, it must be a mul"),
        ("8-8do", "1", "linear", "block 1 has a convolution with d and o, which needs one with o"),
        ("8-8o-=", "1", "linear", "= repeats in block 1 is the first or last of the oriented ones"),
        ("8o-8d-=", "1", "linear", "= repeats in block 1 is the first or last of the oriented one"),
    ],
)
def test_networks_that_cannot_be(text: str, padding: str, head: str, words: str):
    with pytest.raises(UserError) as caught:
        described(text, padding, head)
    assert str(caught.value).startswith("config.network.")
    assert words in str(caught.value)


# What it makes.


def of_layers(network_layers: Sequence[layers.Layer]) -> list[tuple]:
    """Kind and shape of the layers, without dropout."""
    kept = [layer for layer in network_layers if not isinstance(layer, layers.Dropout)]
    return [
        (type(layer), *(getattr(layer, name, None) for name in ("features", "padding", "use_bias")))
        for layer in kept
    ]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("model3", described("7-7-10/10-12/16-18", "0/0/1")),
        ("compact_tiny", described("8/16/32", head="avgmax", head_bias=False)),
        ("compact", described("8-8/16-16/32-32", head_bias=False)),
    ],
)
def test_described_networks_are_the_published_ones(name: str, given: Blocks):
    """Layer by layer, but for the dropout, which a described network has after each pooling."""
    found, expected = models.build(given, 0.1), models.build(name, 0.1)
    assert of_layers(found.layers) == of_layers(expected.layers)
    places = [type(layer) for layer in found.layers]
    for place, kind in enumerate(places):
        assert (kind is layers.Dropout) == (place > 0 and places[place - 1] is layers.MaxPool)


def test_a_described_network_ends_in_its_head():
    *_, last, pool, flatten = models.build(described("4", "0", "conv")).layers
    assert isinstance(last, layers.Conv)
    assert (last.features, last.kernel_size, last.use_bias) == (10, 1, True)
    assert isinstance(pool, layers.GlobalAvgPool)
    assert isinstance(flatten, layers.Flatten)


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("last", ["10", "10k5d"])
def test_maps_as_logits(last: str, head_bias: bool):
    network = models.build(described(f"4/{last}", "0", "maps", head_bias=head_bias))
    before, conv, pool, _ = network.layers[-4:]
    assert isinstance(before, layers.Dropout)
    assert isinstance(conv, layers.SeparableConv if last.endswith("d") else layers.Conv)
    assert (conv.features, conv.use_bias) == (10, head_bias)
    assert isinstance(pool, layers.GlobalAvgPool)


@pytest.mark.parametrize("pool_first", [False, True])
def test_where_the_pooling_is(pool_first: bool):
    network = models.build(described("4-6/8", "0", pool_first=pool_first), 0.1)
    kinds = [type(layer) for layer in network.layers[3:10]]
    rest = [layers.BatchNorm, layers.Relu]
    expected = [layers.MaxPool, *rest] if pool_first else [*rest, layers.MaxPool]
    assert kinds == [layers.Conv, *expected, layers.Dropout, layers.Conv, layers.BatchNorm]


def test_padding_keeps_the_size_whatever_the_kernel():
    summaries = analyze.summarize(models.build(described("4k1-4-4k5d-4k7")))
    assert {layer.output_shape[1:] for layer in summaries[:-3]} == {(28, 28)}
    assert summaries[-4].receptive_field == 1 + 2 + 4 + 6


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # First convolution, separable one, batch norms, head.
        (described("6-8d", "0"), 9 * 6 + (9 * 6 + 6 * 8) + 2 * (6 + 8) + (8 * 10 + 10)),
        (described("6k5-8k5d"), 25 * 6 + (25 * 6 + 6 * 8) + 2 * (6 + 8) + (8 * 10 + 10)),
        (
            described("9/9d-=-=/10d", "0", "maps", head_bias=False, batch_norm_scale=False),
            9 * 9 + (9 * 9 + 9 * 9) + 4 * 9 + (9 * 9 + 9 * 10),
        ),
        (described("6-6-=/=", head_bias=False), 9 * 6 + 9 * 36 + 2 * 4 * 6 + 60),
        # Oriented: an eighth of the kernels and of the numbers of batch norms.
        (
            described("16k5o/24do-24do-16o/10d", "0", "maps", batch_norm_scale=False),
            (25 * 2 + 2)
            + (9 * 2 + 16 * 3 + 3)
            + (9 * 3 + 24 * 3 + 3)
            + (9 * 24 * 2 + 2)
            + (9 * 2 + 16 * 10 + 10),
        ),
    ],
)
def test_parameters(given: Blocks, expected: int):
    network = models.build(given)
    assert sum(layer.params for layer in analyze.summarize(network)) == expected
    images_NHW = jnp.zeros((1, 28, 28), jnp.uint8)
    variables: Any = jax.eval_shape(lambda x: network.init(prng.key(0), x, train=False), images_NHW)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected


def test_a_repeated_convolution_is_the_same_layer():
    network = models.build(described("4-4d-=/=-6"), 0.1, axis_name="parts")
    convs = [place for place, layer in enumerate(network.layers) if layer.window(9).size == 3]
    assert convs == [0, 3, 6, 11, 14]
    owners = models.owners(network.layers)
    assert [owners[place] for place in convs] == [0, 3, 3, 3, 14]
    others = set(range(len(owners))) - set(convs)
    assert all(owners[place] == place for place in others)
    names = [layer.name for layer in analyze.summarize(network)]
    assert names[6] == "6: SeparableConv = 3"
    variables: Any = network.init(prng.key(0), jnp.zeros((1, 28, 28), jnp.uint8), train=False)
    with_params = {"layers_0", "layers_3", "layers_14", "layers_19"}
    assert {name for name, of in variables["params"].items() if "scale" not in of} == with_params


# The same in PyTorch.


class InTorch(nn.Module):
    """4-4k5d-=/10d with padding 1/0 and the head 'maps'."""

    def __init__(self) -> None:
        super().__init__()
        repeated = SeparableConv2d(4, 4, 5, 2, bias=False)
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(repeated, nn.BatchNorm2d(4), nn.ReLU()),
            *(repeated, nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Dropout2d(0.0)),
            *(SeparableConv2d(4, 10, 3, 0, bias=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_it_is_the_same_network_in_torch():
    """Logits and gradients in training mode, in float64, and the tensors' names and order."""
    given = described("4-4k5d-=/10d", "1/0", "maps", batch_norm_scale=False)
    network = models.build(given, dtype=jnp.float64)
    theirs = InTorch().double()
    state_dict = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    random = np.random.default_rng(0)
    images_NHW = random.integers(0, 256, (8, 28, 28), np.uint8)
    weights_NK = random.normal(size=(8, 10))
    with jax.enable_x64(True):
        slots = torch_weights.slots(network)
        params, batch_stats, _ = torch_weights.from_state_dict(network, state_dict, in_order=False)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits_NK: Any = network.apply(
                variables, images_NHW, train=True, mutable=["batch_stats"]
            )[0]
            return (logits_NK * weights_NK).sum(), logits_NK

        grads, logits_NK = jax.grad(loss, has_aux=True)(params)
        found = torch_weights.to_state_dict(network, grads, batch_stats, step=0)
    x = (torch.from_numpy(images_NHW)[:, None].double() / 255 - models.MEAN) / models.STD
    expected_NK = theirs.train()(x)
    (expected_NK * torch.from_numpy(weights_NK)).sum().backward()
    np.testing.assert_allclose(logits_NK, expected_NK.detach(), rtol=1e-9, atol=1e-11)
    counted = [key for key in state_dict if not key.endswith("num_batches_tracked")]
    assert [slot.key for slot in slots] == counted
    trained = {slot.key for slot in slots if slot.collection == "params"}
    for key, parameter in theirs.named_parameters():
        if key in trained:  # torch has scales, which are not trained here
            assert parameter.grad is not None
            np.testing.assert_allclose(found[key], parameter.grad, rtol=1e-9, atol=1e-10)
    assert len(trained) == 11


def test_shared_weights_must_agree():
    network = models.build(described("4-4d-="))
    theirs = {
        slot.key: np.full(slot.shape, 0.5, np.float32) for slot in torch_weights.slots(network)
    }
    torch_weights.from_state_dict(network, theirs, in_order=False)
    theirs["layers.6.pointwise.weight"] = theirs["layers.6.pointwise.weight"] + 1
    with pytest.raises(UserError) as caught:
        torch_weights.from_state_dict(network, theirs, in_order=False)
    assert str(caught.value) == (
        "layers.6.pointwise.weight differs from layers.3.pointwise.weight, which are the same "
        "weights"
    )


def test_oriented_weights_must_agree():
    network = models.build(described("8o-8do-16d"))
    blank_NHW = jnp.zeros((1, 28, 28), jnp.uint8)
    variables: Any = network.init(prng.key(0), blank_NHW, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    theirs = dict(torch_weights.to_state_dict(network, params, batch_stats, step=0))
    assert theirs["layers.3.depthwise.weight"].shape == (8, 1, 3, 3)
    assert theirs["layers.6.pointwise.weight"].shape == (16, 8, 1, 1)
    found = torch_weights.from_state_dict(network, theirs, in_order=False)
    chex.assert_trees_all_equal(found[:2], (params, batch_stats))
    for key in ("layers.0.weight", "layers.1.running_mean", "layers.6.depthwise.weight"):
        changed = theirs[key].copy()
        changed[-1] += 1
        with pytest.raises(UserError) as caught:
            torch_weights.from_state_dict(network, theirs | {key: changed}, in_order=False)
        assert str(caught.value) == f"{key} is not the same in all eight orientations"
