"""The devices of a run: a mesh with the axes ``seed`` and ``data``.

Along ``seed`` lie the members of a population, which never speak to each other. Along ``data`` lie
the parts of each batch; batch statistics and gradients are gathered over them. On a CPU every core
is a device of its own: for networks this small two cores that each train on half of the batch, and
meet twice a layer, are faster than two threads that share every operation.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxmnist.errors import UserError
from jaxmnist.networks import target

SEED, DATA = "seed", "data"


def use_every_core() -> None:
    """Makes each core of a CPU a device, unless the user has set their number (see ``XLA_FLAGS``).

    To be called before anything asks JAX for its devices.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not asked and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(members: int, batch_size: int, *, seed: int = 0, data: int = 0) -> Mesh:
    """The devices for ``members`` networks that each train on batches of ``batch_size`` images.

    ``seed`` and ``data`` devices lie along the axes of that name. Where one is 0: as many along
    ``seed`` as share the members evenly; then as many along ``data`` as share the batch evenly,
    each with the target's ``min_part`` images or more. A run of several processes takes all their
    devices.

    Raises:
      UserError: where the devices are too few, or cannot share members or batch evenly.
    """
    available, several = jax.device_count(), jax.process_count() > 1
    if seed and members % seed:
        raise UserError(f"config.mesh.seed is {seed}: it must divide config.num_seeds ({members})")
    if data and batch_size % data:
        raise UserError(
            f"config.mesh.data is {data}: it must divide config.batch_size ({batch_size})"
        )
    asked_data = data
    seed = seed or _largest_divisor(members, available // max(data, 1))
    if not data:
        min_part = target.current().min_part
        parts = batch_size // min_part if min_part else 1
        parts = available if several else parts
        data = _largest_divisor(batch_size, min(available // seed, parts))
    if seed * data > available:
        field, value = ("data", data) if asked_data else ("seed", seed)
        raise UserError(
            f"config.mesh.{field} is {value}: a mesh of {seed} (seed) × {data} (data) devices "
            f"needs more than the {available} there {'is' if available == 1 else 'are'}"
        )
    if several and seed * data < available:
        raise UserError(
            f"a mesh of {seed} (seed) × {data} (data) devices leaves some of the {available} of "
            f"{jax.process_count()} processes idle: choose config.mesh, config.num_seeds (now "
            f"{members}) or config.batch_size (now {batch_size}) to use all"
        )
    return jax.make_mesh(
        (seed, data),
        (SEED, DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[: seed * data],
    )


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit``, at least 1."""
    return max((d for d in range(1, min(number, limit) + 1) if number % d == 0), default=1)


def per_member(mesh: Mesh) -> NamedSharding:
    """Of arrays whose leading axis is that of the members."""
    return NamedSharding(mesh, PartitionSpec(SEED))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Of arrays that each device has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def spread(function: Callable, mesh: Mesh, mapped: int = 1) -> Callable:
    """Runs ``function`` on every device of the mesh, on its share of the members.

    The first ``mapped`` arguments and the results are split along their leading axis; the other
    arguments are the same everywhere.
    """
    members, same = PartitionSpec(SEED), PartitionSpec()

    def spread_out(*args):
        specs = tuple(members if place < mapped else same for place in range(len(args)))
        # Without the check gradients mean what they mean under pmap: each device's own.
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=members, check_vma=False
        )(*args)

    return spread_out


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Where each core is a device, an operation has no further core to use."""
    alone = target.current().cores_are_devices and mesh.size > 1
    return {"xla_cpu_multi_thread_eigen": False} if alone else {}
