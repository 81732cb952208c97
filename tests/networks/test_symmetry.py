"""Tests of jaxmnist.networks.symmetry: equivariance, and the same network written in PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from jaxmnist.networks import blocks, layers, models, prng, symmetry

BLOCKS = blocks.parse(
    "8k5o-8o/8do-16do/10d",
    "0",
    "maps",
    head_bias=True,
    activation="silu",
    batch_norm_scale=True,
    pool_first=False,
)


def test_the_eight_orientations():
    image_HW = jnp.array([[1, 2], [3, 4]])
    assert [np.ravel(symmetry.turn(image_HW, g)).tolist() for g in range(8)] == [
        [1, 2, 3, 4],
        [2, 4, 1, 3],
        [4, 3, 2, 1],
        [3, 1, 4, 2],
        [2, 1, 4, 3],
        [1, 3, 2, 4],
        [3, 4, 1, 2],
        [4, 2, 3, 1],
    ]


@pytest.mark.parametrize("g", range(8))
def test_places_change_as_orientations_follow_each_other(g: int):
    """What orientation h makes of an image is after g what the one at the place of h makes."""
    image_HW = jnp.arange(9).reshape(3, 3)
    makes = {symmetry.turn(image_HW, h).tobytes(): h for h in range(8)}
    after = [makes[symmetry.turn(symmetry.turn(image_HW, h), g).tobytes()] for h in range(8)]
    places = symmetry.move(np.arange(8), g, axis=0)
    assert [after[place] for place in np.asarray(places)] == list(range(8))


def apply(
    network_layers: Sequence[layers.Layer],
    variables: Mapping[str, Any],
    x_HCWN: jax.Array,
    *,
    train: bool,
) -> jax.Array:
    for place, layer in enumerate(network_layers):
        own = {name: of.get(f"layers_{place}", {}) for name, of in variables.items()}
        x_HCWN = layer.apply(own, x_HCWN, train=train, mutable=["batch_stats"])[0]
    return x_HCWN


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("g", range(8))
def test_maps_turn_with_the_image(g: int, train: bool):
    """Up to the first pooling, with noise for images and for parameters."""
    network = models.build(BLOCKS)
    variables: Any = network.init(prng.key(0), jnp.zeros((1, 28, 28), jnp.uint8), train=False)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.uniform(0.5, 1, leaf.shape) - 0.3, variables)
    x_HCWN = jnp.asarray(random.normal(size=(28, 1, 28, 3)), jnp.float32)

    def turned(maps_HCWN: jax.Array) -> jax.Array:
        return symmetry.turn(maps_HCWN.swapaxes(1, 2), g).swapaxes(1, 2)

    count = [type(layer) for layer in network.layers].index(layers.MaxPool)
    found = apply(network.layers[:count], variables, turned(x_HCWN), train=train)
    maps_HCWN = apply(network.layers[:count], variables, x_HCWN, train=train)
    expected = symmetry.move(turned(maps_HCWN), g, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert g == 0 or np.abs(found - maps_HCWN).max() > 0.1


# The same in PyTorch, whose kernels are turned by other means.

CORNER = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def turned(kernel: torch.Tensor, g: int) -> torch.Tensor:
    return torch.rot90(kernel.flip(-1) if g >= 4 else kernel, g % 4, (-2, -1))


def seen_from(g: int) -> list[int]:
    """For each orientation h the one that becomes h when turned by g."""

    def is_h(u: int, h: int) -> bool:
        return torch.equal(turned(turned(CORNER, u), g), turned(CORNER, h))

    return [next(u for u in range(8) if is_h(u, h)) for h in range(8)]


def whole(base: torch.Tensor, *, oriented_input: bool) -> torch.Tensor:
    """(8·O, I, H, W) of (O, I, H, W)."""
    found = []
    for g in range(8):
        kernel = turned(base, g)
        if oriented_input:
            of_h = kernel.chunk(8, dim=1)
            kernel = torch.cat([of_h[u] for u in seen_from(g)], dim=1)
        found.append(kernel)
    return torch.cat(found)


class Oriented(nn.Module):
    def __init__(self, channels: int, features: int, size: int, *, oriented_input: bool):
        super().__init__()
        self.oriented_input = oriented_input
        self.kernel = nn.Parameter(torch.zeros(features // 8, channels, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, whole(self.kernel, oriented_input=self.oriented_input))


class Separable(nn.Module):
    def __init__(self, channels: int, features: int, *, oriented: bool):
        super().__init__()
        self.oriented = oriented
        self.depthwise = nn.Parameter(torch.zeros(channels // 8, 1, 3, 3))
        own = features // 8 if oriented else features
        self.pointwise = nn.Parameter(torch.zeros(own, channels, 1, 1))
        self.bias = None if oriented else nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, whole(self.depthwise, oriented_input=False), groups=x.shape[1])
        kernel = whole(self.pointwise, oriented_input=True) if self.oriented else self.pointwise
        return nn.functional.conv2d(x, kernel, self.bias)


class Norm(nn.Module):
    """The orientations of a map as the depth of ``nn.BatchNorm3d``."""

    def __init__(self, features: int):
        super().__init__()
        self.norm = nn.BatchNorm3d(features // 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        of_map = x.reshape(n, 8, c // 8, h, w).transpose(1, 2)
        return self.norm(of_map).transpose(1, 2).reshape(n, c, h, w)


def in_torch() -> nn.Sequential:
    """BLOCKS, with the numbers of its layers."""
    return nn.Sequential(
        *(Oriented(1, 8, 5, oriented_input=False), Norm(8), nn.SiLU()),
        *(Oriented(8, 8, 3, oriented_input=True), Norm(8), nn.SiLU()),
        *(nn.MaxPool2d(2), nn.Identity()),
        *(Separable(8, 8, oriented=True), Norm(8), nn.SiLU()),
        *(Separable(8, 16, oriented=True), Norm(16), nn.SiLU()),
        *(nn.MaxPool2d(2), nn.Identity()),
        *(Separable(16, 10, oriented=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ).double()


NAMES = {"norm.weight": "scale", "norm.bias": "bias"}
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def test_it_is_the_same_network_in_torch():
    """Logits, gradients and running statistics of a training pass, in float64."""
    network, theirs = models.build(BLOCKS, dtype=jnp.float64), in_torch()
    random = np.random.default_rng(0)
    images_NHW = random.integers(0, 256, (6, 28, 28), np.uint8)
    weights_NK = random.normal(size=(6, 10))
    with jax.enable_x64(True):
        variables: Any = network.init(prng.key(0), images_NHW, train=False)
        variables = jax.tree.map(lambda leaf: random.uniform(0.3, 1, leaf.shape) - 0.5, variables)
        for name, parameter in theirs.named_parameters():
            place, leaf = name.split(".", 1)
            ours = variables["params"][f"layers_{place}"][NAMES.get(leaf, leaf)]
            with torch.no_grad():
                parameter.copy_(in_torchs_axes(ours))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits_NK, changed = network.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                images_NHW,
                train=True,
                mutable=["batch_stats"],
            )
            return (logits_NK * weights_NK).sum(), (logits_NK, changed["batch_stats"])

        grads, (logits_NK, batch_stats) = jax.grad(loss, has_aux=True)(variables["params"])
    for name, buffer in theirs.named_buffers():
        place, leaf = name.split(".norm.")
        if leaf in STATISTICS:
            buffer.copy_(
                in_torchs_axes(variables["batch_stats"][f"layers_{place}"][STATISTICS[leaf]])
            )
    x = (torch.from_numpy(images_NHW)[:, None].double() / 255 - models.MEAN) / models.STD
    expected_NK = theirs.train()(x)
    (expected_NK * torch.from_numpy(weights_NK)).sum().backward()
    np.testing.assert_allclose(logits_NK, expected_NK.detach(), rtol=1e-9, atol=1e-10)
    compared = 0
    for name, parameter in theirs.named_parameters():
        place, leaf = name.split(".", 1)
        found = in_torchs_axes(grads[f"layers_{place}"][NAMES.get(leaf, leaf)])
        assert parameter.grad is not None
        np.testing.assert_allclose(found, parameter.grad, rtol=1e-8, atol=1e-9, err_msg=name)
        compared += found.numel()
    assert compared == sum(leaf.size for leaf in jax.tree.leaves(grads))
    for name, buffer in theirs.named_buffers():
        place, leaf = name.split(".norm.")
        if leaf in STATISTICS:
            found = batch_stats[f"layers_{place}"][STATISTICS[leaf]]
            np.testing.assert_allclose(found, buffer, rtol=1e-9, err_msg=name)


def in_torchs_axes(leaf: Any) -> torch.Tensor:
    array = np.asarray(leaf)
    return torch.tensor(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)
