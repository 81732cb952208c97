"""Tests of jaxmnist.networks.analyze against the published table and against gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import published
from jaxmnist.networks import analyze, layers, models, prng

POOLS = ("GlobalAvgPool", "GlobalAvgMaxPool")
# Side length after each convolution and max pool, as published.
SIDES = {
    "compact_tiny": [28, 14, 14, 7, 7],
    "compact": [28, 28, 14, 14, 14, 7, 7, 7],
    "lightweight": [28, 28, 14, 14, 14, 7, 5, 3, 1],
    "model1": [26, 24, 24, 12, 10, 8, 6, 6, 1],
    "model2": [28, 28, 14, 14, 14, 14, 7, 7, 1],
    "model3": [26, 24, 22, 11, 9, 7, 3, 3, 3],
    "efficient": [26, 24, 12, 12, 10, 8, 1],
    "net8k": [28, 28, 14, 14, 14, 7, 7, 7],
}
# Receptive field after each convolution and max pool; those of net8k are in published.json.
FIELDS = {
    "compact_tiny": [3, 4, 8, 10, 18],
    "compact": [3, 5, 6, 10, 14, 16, 24, 32],
    "lightweight": [3, 5, 6, 10, 14, 16, 24, 32, 40],
    "model1": [3, 5, 5, 6, 10, 14, 18, 22, 32],
    "model2": [3, 5, 6, 6, 10, 14, 16, 16, 40],
    "model3": [3, 5, 7, 8, 12, 16, 18, 26, 34],
    "efficient": [3, 5, 6, 6, 10, 14, 28],
    "net8k": published.load_all()["net8k"]["receptive_fields"],
}
# With the global pool.
TOTAL_FIELDS = {
    "compact_tiny": 42,
    "compact": 56,
    "lightweight": 40,
    "model1": 32,
    "model2": 40,
    "model3": 42,
    "efficient": 28,
    "net8k": 48,
}


@functools.cache
def summaries(name: str) -> list[analyze.LayerSummary]:
    return analyze.summarize(models.build(name, 0.1))


def kind(summary: analyze.LayerSummary) -> str:
    return summary.name.split(": ")[1]


@pytest.mark.parametrize("name", models.NETWORKS)
def test_published_sides_and_receptive_fields(name):
    stages = [s for s in summaries(name) if kind(s) in ("Conv", "MaxPool")]
    assert [s.output_shape[1:] for s in stages] == [(side, side) for side in SIDES[name]]
    assert [s.receptive_field for s in stages] == FIELDS[name]


@pytest.mark.parametrize("name", models.NETWORKS)
def test_published_receptive_field_of_the_whole_network(name):
    assert summaries(name)[-1].receptive_field == TOTAL_FIELDS[name]


def test_receptive_fields_that_were_published():
    found = {
        name: publication["receptive_field"]
        for name, publication in published.load_all().items()
        if "receptive_field" in publication
    }
    assert len(found) == 3
    assert found == {name: TOTAL_FIELDS[name] for name in found}


@pytest.mark.parametrize("name", models.NETWORKS)
def test_outputs_end_in_ten_logits(name):
    assert summaries(name)[-1].output_shape == (10,)
    channels = [s.output_shape[0] for s in summaries(name)]
    for before, summary, after in zip(channels, summaries(name)[1:], channels[1:], strict=False):
        if kind(summary) == "GlobalAvgMaxPool":
            assert after == 2 * before
        elif kind(summary) not in ("Conv", "Linear"):
            assert after == before


def test_fields_after_the_blocks_of_lightweight():
    fields = [s.receptive_field for s in summaries("lightweight")]
    pools = [i for i, s in enumerate(summaries("lightweight")) if kind(s) == "MaxPool"]
    assert [fields[i - 1] for i in pools] == [5, 14]


@pytest.mark.parametrize("name", models.NETWORKS)
def test_parameters_add_up_to_the_published_count(name):
    assert sum(s.params for s in summaries(name)) == published.load_all()[name]["params"]


def test_layers_are_named_by_position():
    found = [s.name for s in summaries("model2")]
    assert found[6:10] == ["6: MaxPool", "7: Conv", "8: Dropout", "9: Conv"]
    assert [int(name.split(":")[0]) for name in found] == list(range(len(found)))


def test_table():
    network = summaries("model3")
    lines = analyze.table(network).splitlines()
    assert len(lines) == len(network) + 4  # a header, two rules and the total
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["layer", "output", "params", "receptive", "field"]
    assert lines[2].split() == ["0:", "Conv", "7×26×26", "63", "3"]
    assert lines[4].split() == ["2:", "Relu", "7×26×26", "3"]
    assert lines[-3].split() == ["25:", "Linear", "10", "190", "42"]
    assert lines[-1].split() == ["total", "7,784", "42"]
    assert set(lines[1]) == set(lines[-2]) == {"─"}


# The receptive field as gradients see it.


def seen_pixels(network_layers: models.Layers, unit: int) -> np.ndarray:
    """Which pixels of the input the unit (0, unit, unit) of the last map has a gradient to.

    Weights are made positive, so that no ReLU is dead, and the gradients of many random images
    are united, because a max pool passes on only one pixel of four.
    """
    x_HCWN = jax.random.uniform(prng.key(1), (28, 1, 28, 128))

    @jax.jit
    def pixels(x_HCWN: jax.Array) -> jax.Array:
        def activation(x_HCWN: Any) -> jax.Array:
            for layer in network_layers:
                variables = jax.tree.map(jnp.abs, layer.init(prng.key(0), x_HCWN, train=False))
                x_HCWN = layer.apply(variables, x_HCWN, train=False)
            return x_HCWN[unit, 0, unit].sum()

        return (jax.grad(activation)(x_HCWN) != 0).any((1, 3))

    return np.asarray(pixels(x_HCWN))


def first_layers(name: str, last: type, number: int) -> models.Layers:
    """The layers up to and including the one that is the ``number``-th of its type."""
    network_layers = models.build(name, 0).layers
    positions = [i for i, layer in enumerate(network_layers) if isinstance(layer, last)]
    return tuple(network_layers[: positions[number - 1] + 1])


@pytest.mark.parametrize(
    ("name", "last", "number", "unit", "start"),
    [
        ("model3", layers.MaxPool, 2, 1, 4),
        ("model1", layers.Conv, 6, 0, 0),
        ("efficient", layers.Conv, 5, 7, 14),
        # Ten pixels of padding, in input pixels, lie before the first unit; a unit is four.
        ("net8k", layers.Conv, 5, 3, 3 * 4 - 10),
    ],
)
def test_unit_sees_its_receptive_field_and_nothing_else(name, last, number, unit, start):
    network_layers = first_layers(name, last, number)
    field = analyze.summarize(models.Network(network_layers))[-1].receptive_field
    expected = np.zeros((28, 28), bool)
    expected[start : start + field, start : start + field] = True
    np.testing.assert_array_equal(seen_pixels(network_layers, unit), expected)


def test_global_pool_of_model3_sees_all_that_its_max_pools_keep():
    """The second one leaves out the last row and column of a 7×7 map: 2 pixels of the image."""
    expected = np.zeros((28, 28), bool)
    expected[:26, :26] = True
    seen_HW = seen_pixels(first_layers("model3", layers.GlobalAvgPool, 1), 0)
    np.testing.assert_array_equal(seen_HW, expected)
