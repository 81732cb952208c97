"""The kind of device that programs are written for; here and nowhere else it is asked.

The same functions take three forms. On a CPU what counts is a core's own cache: rows, batches and
seeds go one after the other, and what is dear is written down. An accelerator wants few and large
operations: everything at once. In float32 these two run on any backend and compute the same but for
rounding, so a CPU can test either:

    with target.form(target.ACCELERATOR):
        programs = Programs(…)

The third, ``GPU``, is the second with kernels as convolutions, which a CPU can only interpret.
"""

import enum
import importlib.util
from typing import NamedTuple

import jax


class Kernels(enum.Enum):
    """What becomes of the kernels of our own, see ``kernels``."""

    NONE = enum.auto()
    COMPILED = enum.auto()
    INTERPRETED = enum.auto()
    """As on a GPU, on any backend and slowly."""


class Target(NamedTuple):
    """What a kind of device is like."""

    one_by_one: bool
    """Rows, batches and seeds go in loops; otherwise all of them are mapped at once."""
    materializes: bool
    """Whether dear results have to be kept from being computed anew by each of their readers."""
    tile_rows: int
    """Matrix products take as long for fewer rows as for the next multiple of this."""
    bfloat16_products: bool
    """Whether the backend multiplies bfloat16 matrices with sums in float32, of every shape."""
    kernels: Kernels
    """Whether convolutions are kernels of our own, and how these run."""
    chunk_steps: int
    """Training steps in one program: a fraction of a second, and batches that fit into memory."""
    members: int
    """Networks side by side that keep a device busy."""
    min_part: int | None
    """Images of a batch that keep a device busy longer than the others wait for it; None where a
    step is too short to be worth splitting."""
    cores_are_devices: bool
    """Whether each core is a device, so that an operation finds no further core idle."""

    def steps_of(self, seeds: int) -> int:
        """The steps of each of ``seeds`` networks in one program."""
        return max(1, self.chunk_steps // seeds) if self.one_by_one else self.chunk_steps


CPU = Target(
    one_by_one=True,
    materializes=True,
    tile_rows=16,
    bfloat16_products=False,
    kernels=Kernels.NONE,
    chunk_steps=32,
    members=1,
    min_part=32,
    cores_are_devices=True,
)
ACCELERATOR = Target(
    one_by_one=False,
    materializes=False,
    tile_rows=1,
    bfloat16_products=True,
    kernels=Kernels.NONE,
    chunk_steps=128,
    members=64,
    min_part=None,
    cores_are_devices=False,
)
GPU = ACCELERATOR._replace(kernels=Kernels.COMPILED)

form = jax.make_user_context(default_value=None)
"""Within ``with form(target):`` programs are written for that target, whatever the backend."""


def current() -> Target:
    """What programs are written for: the ``form`` that was asked for, or that of the backend."""
    if form.value is not None:
        return form.value
    match jax.default_backend():
        case "cpu":
            return CPU
        case "gpu" if _takes_kernels():
            return GPU
    return ACCELERATOR


def _takes_kernels() -> bool:
    """Whether the kernels can be compiled: XLA takes Triton's from NVIDIA's Ampere on.

    JAX is going to drop the part of Pallas that they are written in.
    """
    try:
        capable = float(jax.devices()[0].compute_capability) >= 8
    except (AttributeError, ValueError):  # AMD's have names
        return False
    return capable and importlib.util.find_spec("jax.experimental.pallas.triton") is not None
