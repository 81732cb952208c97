"""Ink is found in any light, and none where there is none."""

import numpy as np
import pytest
from photos_of_digits import as_jpeg, strokes

from jaxmnist.photos.ink import find_ink

HEIGHT, WIDTH = 300, 420


@pytest.fixture(scope="module")
def ink_HW(mnist) -> np.ndarray:
    """A 5 and an 8 on a sheet."""
    sheet_HW = np.zeros((HEIGHT, WIDTH), np.float32)
    for x, index in ((90, 8), (250, 61)):
        digit_HW = strokes(mnist[1].images_NHW[index], 110)
        sheet_HW[90 : 90 + len(digit_HW), x : x + digit_HW.shape[1]] = digit_HW
    return sheet_HW


def lit(name: str) -> np.ndarray:
    """Kinds of light: factors of the grey levels."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    across = x / WIDTH - 0.5
    return {
        "even": np.ones((HEIGHT, WIDTH)),
        "from the left": 1 - 0.5 * (across + 0.5),
        "a lamp": 1 - 1.2 * (across**2 + (y / HEIGHT - 0.5) ** 2),
        "a soft shadow": 1 - 0.45 / (1 + np.exp(-across / 0.1)),
        "dim": np.full((HEIGHT, WIDTH), 0.35),
    }[name]


@pytest.mark.parametrize("light", ["even", "from the left", "a lamp", "a soft shadow", "dim"])
@pytest.mark.parametrize("pen", [20, 150], ids=["ink", "pencil"])
@pytest.mark.parametrize("inverted", [False, True], ids=["dark on light", "light on dark"])
def test_found_in_any_light(ink_HW: np.ndarray, light: str, pen: int, inverted: bool):
    grey_HW = (225 * (1 - ink_HW) + pen * ink_HW) * lit(light)
    if inverted:
        grey_HW = 255 - grey_HW
    grey_HW = grey_HW + np.random.default_rng(0).normal(0, 2, grey_HW.shape)
    found_HW = find_ink(np.asarray(as_jpeg(grey_HW), np.float32))
    assert found_HW is not None
    assert found_HW.dtype == np.float32
    assert found_HW.min() == 0
    assert found_HW.max() == 1
    wrong = (found_HW > 0.5) != (ink_HW > 0.5)
    assert wrong.mean() < 0.004
    assert wrong.sum() < 0.08 * (ink_HW > 0.5).sum()


@pytest.mark.parametrize("noise", [0, 3, 15])
@pytest.mark.parametrize("light", ["even", "from the left", "a lamp"])
def test_none_on_blank_paper(light: str, noise: int):
    grey_HW = 200 * lit(light) + np.random.default_rng(1).normal(0, noise, (HEIGHT, WIDTH))
    assert find_ink(np.asarray(as_jpeg(grey_HW), np.float32)) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (7, 7)])
def test_pictures_of_a_few_pixels(shape: tuple[int, int]):
    assert find_ink(np.full(shape, 128, np.float32)) is None
    found_HW = find_ink(np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
    assert found_HW is None or found_HW.shape == shape
