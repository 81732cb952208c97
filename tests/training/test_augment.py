"""Tests of jaxmnist.training.augment: images by hand, a plain reference, distributions."""

import cmath
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from scipy import stats

from jaxmnist.networks import prng
from jaxmnist.training import augment
from jaxmnist.training.augment import Bounds, Transforms

COUNT = 20_000  # draws where distributions are compared


def letter() -> np.ndarray:
    """An F of four grey levels, off the centre: no rotation or reflection maps it onto itself."""
    image_HW = np.zeros((28, 28), np.uint8)
    image_HW[4:24, 9:12] = 255
    image_HW[4:7, 9:22] = 200
    image_HW[12:15, 9:18] = 100
    image_HW[23, 2] = 50
    return image_HW


@jax.jit
def transformed_HWN(images_NHW: jax.Array, degrees_N: jax.Array, shift_2N: jax.Array) -> jax.Array:
    index_N = jnp.arange(len(images_NHW))
    return augment.gather(
        images_NHW, index_N, augment.source_pixels(Transforms(degrees_N, shift_2N))
    )


def transform(image_HW: np.ndarray, degrees: float, down: int = 0, right: int = 0) -> np.ndarray:
    """One image, rotated and then shifted."""
    shift_2N = jnp.array([[down], [right]], jnp.int32)
    out_HWN = transformed_HWN(image_HW[None], jnp.array([degrees], jnp.float32), shift_2N)
    return np.asarray(out_HWN[..., 0])


def shifted(image_HW: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved by whole pixels over a black ground."""
    ground = np.zeros((84, 84), image_HW.dtype)
    ground[28 + down : 56 + down, 28 + right : 56 + right] = image_HW
    return ground[28:56, 28:56]


def rotated_by_loop(image_HW: np.ndarray, degrees: float) -> np.ndarray:
    """Counter-clockwise nearest-neighbour rotation, pixel by pixel in float64.

    The pixel is a complex number, its imaginary part upwards, so that multiplication by
    exp(iφ) turns it counter-clockwise; each output pixel asks where it was before.
    """
    out_HW = np.zeros_like(image_HW)
    turn_back = cmath.exp(-1j * math.radians(degrees))
    for y in range(28):
        for x in range(28):
            source = complex(x - 13.5, 13.5 - y) * turn_back
            row, column = round(13.5 - source.imag), round(13.5 + source.real)
            if 0 <= row < 28 and 0 <= column < 28:
                out_HW[y, x] = image_HW[row, column]
    return out_HW


# Geometry.


def test_no_rotation_and_no_shift_is_the_identity():
    chex.assert_trees_all_equal(transform(letter(), 0), letter())


@pytest.mark.parametrize("turns", [-2, -1, 1, 2, 3, 4])
def test_quarter_turns_are_exact_and_counter_clockwise(turns):
    chex.assert_trees_all_equal(transform(letter(), 90 * turns), np.rot90(letter(), turns))


@pytest.mark.parametrize(
    ("down", "right"), [(3, 0), (-3, 0), (0, 5), (0, -5), (-6, 11), (27, 27), (0, -28), (40, 0)]
)
def test_shift_moves_down_and_right_over_black(down, right):
    white_HW = np.full((28, 28), 255, np.uint8)
    for image_HW in (letter(), white_HW):
        expected = (
            shifted(image_HW, down, right) if max(abs(down), abs(right)) <= 28 else 0 * image_HW
        )
        chex.assert_trees_all_equal(transform(image_HW, 0, down, right), expected)


def test_what_is_rotated_out_of_the_frame_does_not_come_back():
    # 45° carry the corner up left to (13.5, -5.6), six pixels left of the frame.
    corner_HW = np.zeros((28, 28), np.uint8)
    corner_HW[:3, :3] = 255
    assert not transform(corner_HW, 45).any()
    assert not transform(corner_HW, 45, right=10).any()
    white_HW = np.full((28, 28), 255, np.uint8)
    assert not transform(white_HW, 45, right=10)[:, :10].any()


@hypothesis.given(
    degrees=st.floats(-180, 180, width=32), down=st.integers(-9, 9), right=st.integers(-9, 9)
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_rotation_comes_before_the_shift_and_crops(degrees, down, right):
    image_HW = np.arange(1, 785).reshape(28, 28) % 251 + 1  # no black pixel
    image_HW = image_HW.astype(np.uint8)
    expected = shifted(transform(image_HW, degrees), down, right)
    chex.assert_trees_all_equal(transform(image_HW, degrees, down, right), expected)


def test_nearest_rotation_of_digits_as_by_loop(mnist):
    rng = np.random.default_rng(0)
    images_NHW = mnist[0].images_NHW[:48]
    degrees_N = np.append(rng.uniform(-10, 10, 36), rng.uniform(-180, 180, 12)).astype(np.float32)
    found_HWN = np.asarray(transformed_HWN(images_NHW, degrees_N, np.zeros((2, 48), np.int32)))
    expected_NHW = np.stack(
        [rotated_by_loop(*pair) for pair in zip(images_NHW, degrees_N.tolist(), strict=True)]
    )
    assert (found_HWN.transpose(2, 0, 1) != expected_NHW).mean() <= 1e-3
    # The angles are large enough for the comparison to mean something.
    assert (images_NHW != expected_NHW).mean() > 0.03


def test_source_pixels_by_hand():
    degrees_N = jnp.array([0, 90], jnp.float32)
    shift_2N = jnp.array([[1, 0], [0, 2]], jnp.int32)
    pixel_HWN = augment.source_pixels(Transforms(degrees_N, shift_2N))
    chex.assert_shape(pixel_HWN, (28, 28, 2))
    assert pixel_HWN.dtype == jnp.int32
    inside_HWN = pixel_HWN >= 0
    assert inside_HWN.dtype == jnp.bool
    # One down: row 1 comes from row 0, row 0 from outside.
    assert pixel_HWN[1, 5, 0] == 5
    assert not inside_HWN[0, :, 0].any()
    assert inside_HWN[1:, :, 0].all()
    # A quarter turn brings the top right corner to the top left, two to the right of it then.
    assert pixel_HWN[0, 2, 1] == 27
    assert not inside_HWN[:, :2, 1].any()
    assert inside_HWN[:, 2:, 1].all()


def test_scale_and_shear_by_hand():
    """Twice as large, the quarter around the centre fills the image; shear moves whole rows."""
    image_HW, still = letter(), Transforms(jnp.zeros(1), jnp.zeros((2, 1), jnp.int32))

    def transformed(**parameters: jax.Array) -> np.ndarray:
        pixel_HWN = augment.source_pixels(still._replace(**parameters))
        image_NHW, index_N = jnp.asarray(image_HW)[None], jnp.zeros(1, jnp.int32)
        return np.asarray(augment.gather(image_NHW, index_N, pixel_HWN))[..., 0]

    found_HW = transformed(scale_N=jnp.array([2.0]))
    chex.assert_trees_all_equal(found_HW, image_HW[7:21, 7:21].repeat(2, 0).repeat(2, 1))
    found_HW = transformed(shear_degrees_N=jnp.array([math.degrees(math.atan(2))]))
    for y in range(28):  # y - 13.5 pixels below the middle
        row = shifted(image_HW, 0, 27 - 2 * y)[y]
        chex.assert_trees_all_equal(found_HW[y], row)


def torchvision_affine(
    images_NHW: np.ndarray,
    degrees_N: np.ndarray,
    shift_2N: np.ndarray,
    scale_N: np.ndarray,
    shear_N: np.ndarray,
) -> np.ndarray:
    """``affine(image, -degrees, (right, down), scale, shear)``: its formula, torch's sampling.

    torchvision turns clockwise, and shears before it scales and turns.
    """
    rot, sx = np.radians(-degrees_N), np.radians(shear_N)
    a, b = np.cos(rot), -np.cos(rot) * np.tan(sx) - np.sin(rot)
    c, d = np.sin(rot), -np.sin(rot) * np.tan(sx) + np.cos(rot)
    down, right = shift_2N / 14  # torch's images are 2 wide
    rows = [
        np.stack([d, -b, -d * right + b * down], 1) / scale_N[:, None],
        np.stack([-c, a, c * right - a * down], 1) / scale_N[:, None],
    ]
    theta = torch.from_numpy(np.stack(rows, 1)).float()
    images = torch.from_numpy(images_NHW).float()[:, None]
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    found = torch.nn.functional.grid_sample(images, grid, mode="nearest", align_corners=False)
    return found[:, 0].numpy()


def test_affine_transformations_are_those_of_torchvision(mnist):
    """Of digits, which do not reach the frame: there torchvision does not crop before it shifts."""
    rng, count = np.random.default_rng(1), 200
    images_NHW = mnist[0].images_NHW[:count]
    degrees_N, shear_N = rng.uniform(-10, 10, (2, count)).astype(np.float32)
    scale_N = rng.uniform(0.8, 1.1, count).astype(np.float32)
    shift_2N = rng.integers(-1, 2, (2, count))
    drawn = degrees_N, shift_2N.astype(np.int32), scale_N, shear_N
    pixel_HWN = augment.source_pixels(Transforms(*map(jnp.asarray, drawn)))
    found_HWN = augment.gather(jnp.asarray(images_NHW), jnp.arange(count), pixel_HWN)
    expected_NHW = torchvision_affine(images_NHW, degrees_N, shift_2N, scale_N, shear_N)
    assert (np.asarray(found_HWN).transpose(2, 0, 1) != expected_NHW).mean() < 1e-3
    assert (images_NHW != expected_NHW).mean() > 0.1


def torchvision_elastic(images_NHW: np.ndarray, noise_2HWN: np.ndarray, sigma: float) -> np.ndarray:
    """``ElasticTransform(alpha, sigma)`` without interpolation, of noise in pixels; in torch."""
    noise_N2HW = torch.from_numpy(noise_2HWN).permute(3, 0, 1, 2).double()
    reach = int(8 * sigma + 1) // 2
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / sigma) ** 2)
    kernel = torch.outer(weights, weights)[None, None] / weights.sum() ** 2
    padded = torch.nn.functional.pad(noise_N2HW, [reach] * 4, mode="reflect")
    blurred = torch.nn.functional.conv2d(padded.flatten(0, 1)[:, None], kernel)
    away_N2HW = blurred.view(noise_N2HW.shape) / 14  # torch's images are 2 wide
    line = torch.linspace(-27 / 28, 27 / 28, 28).double()
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    grid = grid + away_N2HW.flip(1).permute(0, 2, 3, 1)
    images = torch.from_numpy(images_NHW).double()[:, None]
    found = torch.nn.functional.grid_sample(images, grid, mode="nearest", align_corners=False)
    return found[:, 0].numpy()


def test_elastic_distortions_are_those_of_torchvision(mnist):
    """Of white images, too, into which black comes from outside."""
    rng, count = np.random.default_rng(2), 200
    images_NHW = np.concatenate([mnist[0].images_NHW[:190], np.full((10, 28, 28), 255, np.uint8)])
    noise_2HWN = rng.uniform(-25, 25, (2, 28, 28, count)).astype(np.float32)
    still = jnp.zeros(count), jnp.zeros((2, count), jnp.int32)
    drawn = Transforms(*still, noise_2HWN=jnp.asarray(noise_2HWN))
    found_HWN = augment.gather(
        jnp.asarray(images_NHW), jnp.arange(count), augment.source_pixels(drawn)
    )
    expected_NHW = torchvision_elastic(images_NHW, noise_2HWN, augment.ELASTIC_SIGMA)
    assert (np.asarray(found_HWN).transpose(2, 0, 1) != expected_NHW).mean() < 1e-3
    assert (images_NHW != expected_NHW).mean() > 0.05
    assert (expected_NHW[190:] == 0).any()


def test_distortion_comes_after_all_else(mnist):
    """Shifted and distorted at once is what a distortion makes of the shifted image."""
    rng, count = np.random.default_rng(3), 20
    images_NHW = mnist[0].images_NHW[:count]
    shift_2N = rng.integers(-9, 10, (2, count)).astype(np.int32)
    noise_2HWN = jnp.asarray(rng.uniform(-25, 25, (2, 28, 28, count)), jnp.float32)

    def distorted(images_NHW: np.ndarray, shift_2N: np.ndarray) -> np.ndarray:
        drawn = Transforms(jnp.zeros(count), jnp.asarray(shift_2N), noise_2HWN=noise_2HWN)
        pixel_HWN = augment.source_pixels(drawn)
        return np.asarray(augment.gather(jnp.asarray(images_NHW), jnp.arange(count), pixel_HWN))

    before_NHW = np.stack([shifted(*pair) for pair in zip(images_NHW, *shift_2N, strict=True)])
    chex.assert_trees_all_equal(
        distorted(images_NHW, shift_2N), distorted(before_NHW, 0 * shift_2N)
    )


# Random parameters.


def parameters(seed: int, rotate_degrees: float, translate: float) -> tuple[np.ndarray, np.ndarray]:
    drawn = augment.random_transforms(prng.key(seed), COUNT, Bounds(rotate_degrees, translate))
    assert drawn[2:] == (None, None, None)
    return np.asarray(drawn.degrees_N), np.asarray(drawn.shift_2N)


@pytest.mark.parametrize("bound", [5.0, 10.0])
def test_angles_are_uniform_within_their_bounds(bound):
    degrees_N, _ = parameters(0, bound, 0.1)
    chex.assert_shape(degrees_N, (COUNT,))
    assert degrees_N.dtype == np.float32
    assert -bound <= degrees_N.min() < -0.999 * bound
    assert 0.999 * bound < degrees_N.max() <= bound
    assert stats.kstest(degrees_N, "uniform", (-bound, 2 * bound)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("translate", "probabilities"),
    [
        # A uniform number in ±1.12 or ±2.8 rounded: the outermost pixels get what is left.
        (0.04, [0.62 / 2.24, 1 / 2.24, 0.62 / 2.24]),
        (0.1, [0.3 / 5.6, *5 * [1 / 5.6], 0.3 / 5.6]),
    ],
)
def test_shifts_are_rounded_uniform_numbers(translate, probabilities):
    _, shift_2N = parameters(1, 5, translate)
    chex.assert_shape(shift_2N, (2, COUNT))
    assert shift_2N.dtype == np.int32
    reach = len(probabilities) // 2
    for shift_N in shift_2N:
        assert (shift_N.min(), shift_N.max()) == (-reach, reach)
        counts = np.bincount(shift_N + reach)
        assert stats.chisquare(counts, COUNT * np.array(probabilities)).pvalue > 1e-3


def test_angle_and_both_shifts_are_independent():
    degrees_N, shift_2N = parameters(2, 7, 0.1)
    correlations = np.corrcoef(np.stack([degrees_N, *shift_2N]))[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 4 / COUNT**0.5


def test_parameters_depend_on_the_key_alone():
    first, again, other = parameters(3, 7, 0.1), parameters(3, 7, 0.1), parameters(4, 7, 0.1)
    chex.assert_trees_all_equal(first, again)
    assert (first[0] != other[0]).mean() > 0.99
    # Equal by chance with probability 2·(0.3/5.6)² + 5/5.6² = 0.165.
    assert (first[1] != other[1]).mean() > 0.8


def test_zero_turns_off_each_of_the_two():
    degrees_N, shift_2N = parameters(5, 0, 0.1)
    assert not degrees_N.any()
    assert shift_2N.any()
    degrees_N, shift_2N = parameters(5, 7, 0)
    assert degrees_N.any()
    assert not shift_2N.any()


@pytest.mark.parametrize(
    ("name", "bound", "low", "high"),
    [("scale", 0.2, 0.8, 1.2), ("shear_degrees", 15.0, -15.0, 15.0)],
)
def test_scale_and_shear_are_uniform_and_independent(name, bound, low, high):
    bounds = Bounds(7, 0.1, 0.1, 5.0)._replace(**{name: bound})
    drawn = augment.random_transforms(prng.key(6), COUNT, bounds)
    values_N = np.asarray(getattr(drawn, f"{name}_N"))
    assert values_N.dtype == np.float32
    assert stats.kstest(values_N, "uniform", (low, high - low)).pvalue > 1e-3
    every = np.vstack([np.asarray(leaf) for leaf in jax.tree.leaves(drawn)])
    assert np.abs(np.corrcoef(every)[np.triu_indices(5, 1)]).max() < 4 / COUNT**0.5


def test_noise_of_distortions_is_uniform_and_independent():
    """Of images, directions and neighbours; torchvision's alpha is twice its reach in pixels."""
    count = 400
    drawn = augment.random_transforms(prng.key(8), count, Bounds(7, 0.1, 0.1, 5.0, elastic=30.0))
    assert drawn.noise_2HWN is not None
    noise_2HWN = np.asarray(drawn.noise_2HWN)
    chex.assert_shape(noise_2HWN, (2, 28, 28, count))
    assert noise_2HWN.dtype == np.float32
    assert stats.kstest(noise_2HWN.ravel()[:COUNT], "uniform", (-15, 30)).pvalue > 1e-3
    down_HWN, right_HWN = noise_2HWN
    pairs = [(down_HWN, right_HWN), (down_HWN[:, :-1], down_HWN[:, 1:])]
    pairs += [np.split(down_HWN, 2, axis) for axis in range(3)]
    for here, there in pairs:
        correlation = np.corrcoef(here.ravel(), there.ravel())[0, 1]
        assert abs(correlation) < 4 / here.size**0.5
    draws = np.vstack(jax.tree.leaves(drawn._replace(noise_2HWN=None)))
    correlations = np.corrcoef(draws, noise_2HWN[:, 13, 13])[:5, 5:]
    assert np.abs(correlations).max() < 4 / count**0.5


@pytest.mark.parametrize("more", [{"scale": 0.2, "shear_degrees": 5.0}, {"elastic": 30.0}])
def test_others_leave_the_draws_alone(more):
    key = prng.key(7)
    plain, found = (
        augment.random_transforms(key, 500, bounds)
        for bounds in (Bounds(7, 0.1), Bounds(7, 0.1, **more))
    )
    chex.assert_trees_all_equal(plain[:2], found[:2])


# Gathering.


@pytest.fixture(scope="module")
def images_NHW(mnist) -> jax.Array:
    return jnp.asarray(mnist[0].images_NHW[:50])


INDEX_B = np.array([49, 0, 7, 7, 31], np.int32)


def test_gather_picks_images_batch_minor(images_NHW):
    found_HWB = augment.gather(images_NHW, jnp.asarray(INDEX_B))
    chex.assert_shape(found_HWB, (28, 28, 5))
    assert found_HWB.dtype == jnp.uint8
    for place, index in enumerate(INDEX_B):
        chex.assert_trees_all_equal(found_HWB[..., place], images_NHW[index])
    assert (found_HWB[..., 0] != found_HWB[..., 1]).any()


def test_gather_pairs_images_with_their_pixels(images_NHW):
    degrees_B = np.array([0, 90, 180, 270, 0], np.float32)
    shift_2B = np.array([[0, 1, 0, -2, 3], [0, 0, 4, 0, -5]], np.int32)
    pixel_HWB = augment.source_pixels(Transforms(jnp.asarray(degrees_B), jnp.asarray(shift_2B)))
    found_HWB = augment.gather(images_NHW, jnp.asarray(INDEX_B), pixel_HWB)
    assert found_HWB.dtype == jnp.uint8
    for place, index in enumerate(INDEX_B):
        turned = np.rot90(images_NHW[index], int(degrees_B[place]) // 90)
        expected = shifted(turned, *shift_2B[:, place])
        chex.assert_trees_all_equal(found_HWB[..., place], expected)


def test_gather_of_every_pixel_in_its_place_is_gather(images_NHW):
    index_B = jnp.asarray(INDEX_B)
    pixel_HWB = jnp.tile(jnp.arange(784).reshape(28, 28, 1), (1, 1, 5))
    found_HWB = augment.gather(images_NHW, index_B, pixel_HWB)
    chex.assert_trees_all_equal(found_HWB, augment.gather(images_NHW, index_B))


def test_negative_pixels_are_black():
    """Of white images, the last of which ends the memory: nothing else may be read there."""
    white_NHW = jnp.full((3, 28, 28), 255, jnp.uint8)
    pixel_HWB = jnp.full((28, 28, 3), -1).at[0, 1].set(0).at[27, 27].set(783)
    found_HWB = np.asarray(augment.gather(white_NHW, jnp.arange(3), pixel_HWB))
    assert found_HWB.sum((0, 1)).tolist() == 3 * [2 * 255]
    assert (found_HWB[[0, 27], [1, 27]] == 255).all()


def test_random_transforms_change_copies_of_an_image_differently(images_NHW):
    drawn = augment.random_transforms(prng.key(8), 32, Bounds(7, 0.1))
    index_B, pixel_HWB = jnp.full(32, 7), augment.source_pixels(drawn)
    found_HWB = np.asarray(augment.gather(images_NHW, index_B, pixel_HWB))
    assert len({found_HWB[..., place].tobytes() for place in range(32)}) > 28
