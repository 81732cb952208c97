"""The eight turns and reflections of a square, and kernels tied by them.

Oriented maps come in eight orientations, one behind the other: channel g·C + c is what kernel c
finds when it is turned by g. If the image is turned, such maps are turned with it and change their
places, nothing else: p4m-equivariant convolutions (Cohen & Welling, 2016). An eighth of the numbers
makes all of them; here this eighth, that of orientation 0, is the base.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

ORIENTATIONS = 8
"""Orientation 4·m + r is mirrored left to right if m is 1, then makes r quarter turns to the left.
"""


def turn(image_HW: ArrayLike, orientation: int) -> jax.Array:
    """An array whose first two axes are H and W, in that orientation."""
    mirrored, turns = divmod(orientation, 4)
    image_HW = jnp.asarray(image_HW)
    return jnp.rot90(image_HW[:, ::-1] if mirrored else image_HW, turns)


def move(maps_GC: ArrayLike, orientation: int, axis: int) -> jax.Array:
    """Oriented maps (8·C along ``axis``) at the places that they change to when all are turned."""
    mirrored, turns = divmod(orientation, 4)
    maps_GC = jnp.asarray(maps_GC)
    shape = maps_GC.shape
    by_orientation = maps_GC.reshape(*shape[:axis], 2, 4, -1, *shape[axis + 1 :])
    if mirrored:
        by_orientation = jnp.flip(by_orientation, (axis, axis + 1))
    return jnp.roll(by_orientation, turns + mirrored, axis + 1).reshape(shape)


def whole_kernel(base_HWIO: ArrayLike, *, oriented_input: bool) -> jax.Array:
    """The kernel (H, W, I, 8·O) of a base (H, W, I, O).

    With ``oriented_input`` the I channels are oriented maps, at which each orientation looks from
    its own side.
    """
    turned = [turn(base_HWIO, g) for g in range(ORIENTATIONS)]
    if oriented_input:
        turned = [move(kernel_HWIO, g, axis=2) for g, kernel_HWIO in enumerate(turned)]
    return jnp.concatenate(turned, axis=3)


def whole_vector(base_C: ArrayLike) -> jax.Array:
    """The vector (8·C,) of a base (C,)."""
    return jnp.tile(jnp.asarray(base_C), ORIENTATIONS)
