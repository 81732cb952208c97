"""The kernels for GPUs: interpreted on whatever backend there is, and lowered for CUDA."""

import collections
import contextlib
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxmnist.errors import UserError
from jaxmnist.networks import gpu_conv, kernels, ops, target

INTERPRETED = target.GPU._replace(kernels=target.Kernels.INTERPRETED)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pull(x_SHCWN: jax.Array, kernel_SHWIO: jax.Array, bias_SO: jax.Array, form: target.Target):
    """Results and gradients of a convolution of each network, padded by one pixel."""

    def one(x_HCWN, kernel_HWIO, bias_O):
        y_HCWN, vjp = jax.vjp(lambda *a: ops.conv2d(*a, padding=1), x_HCWN, kernel_HWIO, bias_O)
        return y_HCWN, *vjp(jnp.cos(y_HCWN))

    with target.form(form):
        return jax.jit(jax.vmap(one))(x_SHCWN, kernel_SHWIO, bias_SO)


def arrays(
    networks: int, inputs: int, outputs: int, images: int, kernel: tuple[int, int], width: int = 5
):
    return (
        normal(networks, 4, inputs, width, images),
        normal(networks, *kernel, inputs, outputs, seed=1),
        normal(networks, outputs, seed=2),
    )


@pytest.mark.parametrize(
    ("networks", "inputs", "outputs", "images", "kernel"),
    [
        (2, 3, 4, 5, (3, 2)),
        pytest.param(2, 1, 10, 130, (3, 3), marks=pytest.mark.long),
        pytest.param(1, 1, 4, 33, (3, 3), marks=pytest.mark.long),
        pytest.param(2, 11, 9, 33, (3, 3), marks=pytest.mark.long),
        pytest.param(1, 10, 17, 3, (2, 2), marks=pytest.mark.long),
        pytest.param(3, 2, 1, 7, (3, 4), marks=pytest.mark.long),
    ],
)
def test_convolutions_and_their_gradients_as_on_a_cpu(networks, inputs, outputs, images, kernel):
    """Images that fill no program, and channels that fill no group of them, in and out."""
    given = arrays(networks, inputs, outputs, images, kernel)
    found, expected = (pull(*given, form) for form in (INTERPRETED, target.CPU))
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        scale = jnp.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("mapped", [(0, None), (None, 0)])
def test_what_is_not_mapped_is_the_same_for_all_networks(mapped: tuple[int | None, int | None]):
    """Kernels of 1×1, and a result narrower than the pixels that a program takes."""
    given = [
        a if axis == 0 else a[0]
        for a, axis in zip(arrays(2, 3, 2, 2, (1, 1)), mapped, strict=False)
    ]

    def conv(x_HCWN, kernel_HWIO):
        return ops.conv2d(x_HCWN[:, :, :2], kernel_HWIO)

    with target.form(INTERPRETED):
        found = jax.vmap(conv, mapped)(*given)
    np.testing.assert_allclose(found, jax.vmap(conv, mapped)(*given), atol=1e-6)


def test_one_network_beyond_int32_is_refused(monkeypatch: pytest.MonkeyPatch):
    x, kernel, _ = arrays(2, 2, 3, 2, (2, 2))
    monkeypatch.setattr(gpu_conv, "_INDEX_LIMIT", 179)
    with target.form(INTERPRETED), pytest.raises(UserError, match="180 elements"):
        gpu_conv.conv2d(x[0], kernel[0], None, 1)
    with target.form(INTERPRETED), pytest.raises(UserError, match="180 elements"):
        jax.vmap(lambda *a: gpu_conv.conv2d(*a, None, 1))(x, kernel)


def test_more_than_int32_can_count_is_done_in_parts(monkeypatch: pytest.MonkeyPatch):
    """Three networks whose results have 180 elements each, and room for 400."""
    x, kernel, _ = arrays(3, 2, 3, 2, (2, 2))
    calls = collections.defaultdict(list)
    run = kernels._run
    monkeypatch.setattr(kernels, "_run", lambda *a: calls[a[1]].append(a[3][0]) or run(*a))

    def conv(x_HCWN, kernel_HWIO):
        return gpu_conv.conv2d(x_HCWN, kernel_HWIO, None, 1)

    def pulled(x_HCWN: jax.Array, kernel_HWIO: jax.Array) -> Any:
        y_HOWN, back = jax.vjp(conv, x_HCWN, kernel_HWIO)
        return y_HOWN, *back(y_HOWN)

    with target.form(INTERPRETED):
        whole = jax.vmap(pulled)(x, kernel)
        assert whole[0][0].size == 180
        monkeypatch.setattr(gpu_conv, "_INDEX_LIMIT", 400)
        parts = jax.vmap(pulled)(x, kernel)
    assert [networks[-2:] for networks in calls.values()] == [[2, 1]] * 3
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), parts, whole)


def a_gpu() -> contextlib.AbstractContextManager:
    """From jax 0.11 on, lowering for Triton asks what GPU it is for."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice  # pyright: ignore[reportAttributeAccessIssue]

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_is_a_kernel_on_cuda(dtype: str):
    """Of one network, and of several; the convolution, and both of its gradients."""

    def forward_and_back(x_HCWN, kernel_HWIO):
        y_HCWN, vjp = jax.vjp(lambda *a: ops.conv2d(*a, padding=1), x_HCWN, kernel_HWIO)
        return vjp(y_HCWN)

    x, kernel, _ = (a.astype(dtype) for a in arrays(3, 2, 3, 2, (3, 3)))
    with target.form(target.GPU), a_gpu():
        alone = jax.jit(forward_and_back).trace(x[0], kernel[0])
        together = jax.jit(jax.vmap(forward_and_back)).trace(x, kernel)
        for traced in (alone, together):
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
            for name in ("conv_2_3_4", "conv_3_2_4", "conv_gradient_2_3_4"):
                assert text.count(f'name = "{name}"') == 1, name
