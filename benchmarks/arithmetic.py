"""The arithmetic of a network and of the machine, to hold images/s against."""

import time

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxmnist.networks import analyze, layers, models
from jaxmnist.training import parallel

_SIDE, _PRODUCTS = 1024, 16


def flops_per_image(model: str) -> int:
    """Multiplications and additions of the products in a training step, for one image.

    Those of the convolutions and linear layers alone: each weight is used once forward and twice
    backward, but for the first layer, whose input needs no gradient.
    """
    total, channels = 0, 1
    network = models.build(model)
    for layer, summary in zip(network.layers, analyze.summarize(network), strict=True):
        outputs = summary.output_shape
        if isinstance(layer, (layers.Conv, layers.Linear)):
            side = layer.kernel_size if isinstance(layer, layers.Conv) else 1
            pixels = outputs[1] * outputs[2] if len(outputs) == 3 else 1
            forward = 2 * side**2 * channels * outputs[0] * pixels
            total += forward * (3 if total else 2)
        channels = outputs[0]
    return total


class BareProducts:
    """Large float32 matrix products on all devices at once, and nothing else."""

    def __init__(self):
        mesh = jax.make_mesh(
            (jax.device_count(),), ("device",), axis_types=(jax.sharding.AxisType.Auto,)
        )
        self._flops = 2 * _SIDE**3 * _PRODUCTS * mesh.size

        def multiply(a: jax.Array) -> jax.Array:
            def once(b: jax.Array, _: None) -> tuple[jax.Array, None]:
                return a[0] @ b, None

            return jax.lax.scan(once, a[0], length=_PRODUCTS)[0][None]

        spread = jax.shard_map(
            multiply, mesh=mesh, in_specs=PartitionSpec("device"), out_specs=PartitionSpec("device")
        )
        self._a = jnp.full((mesh.size, _SIDE, _SIDE), 1 / _SIDE, jnp.float32)
        options = parallel.compiler_options(mesh)
        self._program = jax.jit(spread).lower(self._a).compile(options)
        self.gflops()

    def gflops(self) -> float:
        """10⁹ multiplications and additions a second, of all devices together."""
        started = time.perf_counter()
        self._program(self._a).block_until_ready()
        return self._flops / (time.perf_counter() - started) / 1e9
