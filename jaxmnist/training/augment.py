"""Random transformations of uint8 images, affine and elastic, while a batch is gathered.

They are geometry only: the output pixel (y, x) is a copy of one input pixel or black, so a whole
batch of augmented images is one gather from the training set, straight into the batch-minor layout.

What is dear is materialized: fused, XLA on CPU would compute the sine anew for every pixel and
gather without vector instructions, at twenty times the cost.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmnist.data import SIDE
from jaxmnist.networks.ops import materialize

ELASTIC_SIGMA = 5.0  # pixels, torchvision's default


class Bounds(NamedTuple):
    """How far images are transformed; None is not at all, and the program does without."""

    rotate_degrees: ArrayLike | None = None
    """float (), rotation by up to ± this."""
    translate: ArrayLike | None = None
    """float (), shift by up to ± this share of the image's side."""
    scale: ArrayLike | None = None
    """float (), a factor of up to 1 ± this."""
    shear_degrees: ArrayLike | None = None
    """float (), shear of the rows by up to ± this."""
    elastic: ArrayLike | None = None
    """float (), elastic distortion, torchvision's alpha: 50 moves pixels by about one."""


class Transforms(NamedTuple):
    """What is done to each of N images."""

    degrees_N: jax.Array
    """float32, rotation."""
    shift_2N: jax.Array
    """int32, rows (down, right), in pixels."""
    scale_N: jax.Array | None = None
    """float32, above 1 for larger digits."""
    shear_degrees_N: jax.Array | None = None
    """float32."""
    noise_2HWN: jax.Array | None = None
    """float32, rows (down, right), in pixels: smoothed, how far away each pixel comes from."""


def random_transforms(key: jax.Array, count: int, bounds: Bounds) -> Transforms:
    """Draws the transformations of ``count`` images, as torchvision does.

    ``RandomRotation(rotate_degrees)``: an angle in [-rotate_degrees, rotate_degrees) degrees.
    ``RandomAffine(0, translate)``: a shift of up to ``translate`` times the side, in whole pixels.
    ``RandomAffine(0, scale=(1 - scale, 1 + scale), shear=shear_degrees)``: the same factor for both
    axes, and a shear along x.
    ``ElasticTransform(elastic, ELASTIC_SIGMA)``: noise, uniform for every pixel and direction. Its
    alpha is of a side of 2, which is why pixels have half of it.
    """
    angle_key, shift_key = jax.random.split(key)
    scale_key, shear_key = jax.random.split(jax.random.fold_in(key, 1))
    noise_key = jax.random.fold_in(key, 2)

    def uniform(key: jax.Array, shape: tuple[int, ...], reach: ArrayLike) -> jax.Array:
        reach = jnp.asarray(reach, jnp.float32)
        return jax.random.uniform(key, shape, jnp.float32, -reach, reach)

    degrees_N, shift_2N = jnp.zeros(count, jnp.float32), jnp.zeros((2, count), jnp.float32)
    scale_N = shear_degrees_N = noise_2HWN = None
    if bounds.rotate_degrees is not None:
        degrees_N = uniform(angle_key, (count,), bounds.rotate_degrees)
    if bounds.translate is not None:
        reach = jnp.asarray(bounds.translate, jnp.float32) * SIDE
        shift_2N = uniform(shift_key, (2, count), reach)
    if bounds.scale is not None:
        scale_N = 1 + uniform(scale_key, (count,), bounds.scale)
    if bounds.shear_degrees is not None:
        shear_degrees_N = uniform(shear_key, (count,), bounds.shear_degrees)
    if bounds.elastic is not None:
        reach = jnp.asarray(bounds.elastic, jnp.float32) / 2
        noise_2HWN = uniform(noise_key, (2, SIDE, SIDE, count), reach)
    shift_2N = jnp.round(shift_2N).astype(jnp.int32)
    return Transforms(degrees_N, shift_2N, scale_N, shear_degrees_N, noise_2HWN)


def source_pixels(transforms: Transforms) -> jax.Array:
    """Where each pixel of the images comes from.

    They are sheared, scaled, rotated, shifted and then distorted.

    Rotation is counter-clockwise about the centre (13.5, 13.5), nearest neighbour, as torchvision's
    ``rotate`` and torch's ``affine_grid`` + ``grid_sample`` (zeros, align_corners=False). Shear and
    scale are those of torchvision's ``affine``, distortions those of its ``elastic_transform``.

    Returns:
      pixel_HWN: int32, the row-major index of the source pixel; -1 for those that come from outside
      the image and are black.
    """
    radians_N = transforms.degrees_N * (math.pi / 180)
    cos_N, sin_N = jnp.cos(radians_N), jnp.sin(radians_N)
    # The way back of (dx, dy): the rows of a matrix.
    back_4N = jnp.stack([cos_N, -sin_N, sin_N, cos_N])
    if transforms.shear_degrees_N is not None:
        slope_N = jnp.tan(transforms.shear_degrees_N * (math.pi / 180))
        back_4N = back_4N.at[:2].add(slope_N[None] * back_4N[2:])
    if transforms.scale_N is not None:
        back_4N /= transforms.scale_N[None]
    # All in float32, to the last: converting each coordinate to int32 by itself, with XLA's care
    # for what does not fit, takes ten times longer than the whole rest.
    shift_2N = transforms.shift_2N.astype(jnp.float32)
    of_image_6N = materialize(jnp.concatenate([back_4N, shift_2N]))
    xx, xy, yx, yy, down, right = of_image_6N[:, None, None, :]

    centre = (SIDE - 1) / 2
    grid = jnp.arange(SIDE, dtype=jnp.float32)
    y, x = grid[:, None, None], grid[None, :, None]  # (H, 1, 1) and (1, W, 1)
    if transforms.noise_2HWN is not None:
        away_2HWN = _smooth(transforms.noise_2HWN)
        y, x = y + away_2HWN[0], x + away_2HWN[1]
    within = _in_frame(y) & _in_frame(x)
    y, x = y - down, x - right
    # What is moved was cropped to the frame each time: hence the checks.
    inside_HWN = within & _in_frame(y) & _in_frame(x)
    dy, dx = y - centre, x - centre
    source_y_HWN = jnp.round(yx * dx + yy * dy + centre)
    source_x_HWN = jnp.round(xx * dx + xy * dy + centre)
    inside_HWN &= _in_frame(source_y_HWN) & _in_frame(source_x_HWN)
    pixel_HWN = jnp.where(inside_HWN, source_y_HWN * SIDE + source_x_HWN, -1)
    return materialize(pixel_HWN.astype(jnp.int32))


def _smooth(noise_2HWN: jax.Array) -> jax.Array:
    """A Gaussian blur of each plane, as torchvision's: reflected at the borders, cut at 4 sigma."""
    offsets = np.arange(-int(4 * ELASTIC_SIGMA), int(4 * ELASTIC_SIGMA) + 1)
    weights = np.exp(-0.5 * (offsets / ELASTIC_SIGMA) ** 2)
    source = np.abs(np.arange(SIDE)[:, None] + offsets)
    source = np.minimum(source, 2 * (SIDE - 1) - source)
    blur = np.zeros((SIDE, SIDE), np.float32)
    np.add.at(blur, (np.arange(SIDE)[:, None], source), weights / weights.sum())
    rows_2HWN = jnp.einsum("yh,chwn->cywn", blur, noise_2HWN, precision="highest")
    return materialize(jnp.einsum("xw,cywn->cyxn", blur, rows_2HWN, precision="highest"))


def _in_frame(coordinate: jax.Array) -> jax.Array:
    """Whether the nearest pixel, of two the even one, is in the image."""
    return (coordinate >= -0.5) & (coordinate < SIDE - 0.5)


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
