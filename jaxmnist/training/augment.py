"""Random rotation and translation of uint8 images, on the device, while a batch is gathered.

Both are geometry only: the output pixel (y, x) is a copy of one input pixel or black, so a whole
batch of augmented images is one gather from the training set, straight into the batch-minor layout.

What is dear is materialized: fused, XLA on CPU would compute the sine anew for every pixel and
gather without vector instructions, at twenty times the cost.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmnist.data import SIDE
from jaxmnist.networks.ops import materialize


def random_parameters(
    key: jax.Array, count: int, rotate_degrees: ArrayLike | None, translate: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Draws the transformation of each image, as torchvision does.

    ``RandomRotation(rotate_degrees)``: an angle in [-rotate_degrees, rotate_degrees) degrees.
    ``RandomAffine(0, translate)``: a shift of up to ``translate`` times the side, in whole pixels.
    None is none.

    Returns:
      degrees_N float32; shift_2N int32, rows (down, right).
    """
    angle_key, shift_key = jax.random.split(key)
    degrees_N, shift_2N = jnp.zeros(count, jnp.float32), jnp.zeros((2, count), jnp.float32)
    if rotate_degrees is not None:
        reach = jnp.asarray(rotate_degrees, jnp.float32)
        degrees_N = jax.random.uniform(angle_key, (count,), jnp.float32, -reach, reach)
    if translate is not None:
        reach = jnp.asarray(translate, jnp.float32) * SIDE
        shift_2N = jax.random.uniform(shift_key, (2, count), jnp.float32, -reach, reach)
    return degrees_N, jnp.round(shift_2N).astype(jnp.int32)


def source_pixels(degrees_N: jax.Array, shift_2N: jax.Array) -> jax.Array:
    """Where each pixel of the images, rotated and then shifted, comes from.

    Rotation is counter-clockwise about the centre (13.5, 13.5), nearest neighbour, as torchvision's
    ``rotate`` and torch's ``affine_grid`` + ``grid_sample`` (zeros, align_corners=False).

    Args:
      degrees_N: float32, rotation angles.
      shift_2N: int32, rows (down, right), in pixels.

    Returns:
      pixel_HWN: int32, the row-major index of the source pixel; -1 for those that come from outside
      the image and are black.
    """
    radians_N = degrees_N * (math.pi / 180)
    # All in float32, to the last: converting each coordinate to int32 by itself, with XLA's care
    # for what does not fit, takes ten times longer than the whole rest.
    down_N, right_N = shift_2N.astype(jnp.float32)
    of_image_4N = jnp.stack([jnp.cos(radians_N), jnp.sin(radians_N), down_N, right_N])
    cos, sin, down, right = materialize(of_image_4N)[:, None, None, :]

    centre = (SIDE - 1) / 2
    grid = jnp.arange(SIDE, dtype=jnp.float32)
    y, x = grid[:, None, None] - down, grid[None, :, None] - right  # (H, 1, N) and (1, W, N)
    # The shift moves the rotated image as it was cropped to the frame: hence two range checks.
    inside_HWN = _in_frame(y) & _in_frame(x)
    dy, dx = y - centre, x - centre
    source_y_HWN = jnp.round(sin * dx + cos * dy + centre)
    source_x_HWN = jnp.round(cos * dx - sin * dy + centre)
    inside_HWN &= _in_frame(source_y_HWN) & _in_frame(source_x_HWN)
    pixel_HWN = jnp.where(inside_HWN, source_y_HWN * SIDE + source_x_HWN, -1)
    return materialize(pixel_HWN.astype(jnp.int32))


def _in_frame(coordinate: jax.Array) -> jax.Array:
    return (coordinate >= 0) & (coordinate < SIDE)


def gather(
    images_NHW: jax.Array, index_B: jax.Array, pixel_HWB: jax.Array | None = None
) -> jax.Array:
    """The images ``index_B``, batch-minor, with the pixels ``pixel_HWB``: uint8 (H, W, B).

    The pixels are those of ``source_pixels``; None for the images as they are.
    """
    if pixel_HWB is None:
        return images_NHW[index_B].transpose(1, 2, 0)
    flat = images_NHW.reshape(-1)
    source_HWB = index_B[None, None, :] * SIDE**2 + jnp.maximum(pixel_HWB, 0)
    found_HWB = flat.at[source_HWB].get(mode="promise_in_bounds")
    return jnp.where(pixel_HWB < 0, jnp.uint8(0), found_HWB)
