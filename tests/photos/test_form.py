"""MNIST's form: size, place, edges and ink of a digit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos_of_digits import strokes

from jaxmnist.photos.form import as_with_a_pen, to_mnist


def centre_of_mass(image_HW: np.ndarray) -> tuple[float, float]:
    weights = image_HW / image_HW.sum()
    return float(weights.sum(1) @ np.arange(28)), float(weights.sum(0) @ np.arange(28))


def cut(digit_HW: np.ndarray) -> np.ndarray:
    """Its large strokes."""
    ink_HW = strokes(digit_HW, 200)
    rows, columns = (np.flatnonzero((ink_HW > 0.5).any(axis)) for axis in (1, 0))
    return ink_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_mnist_comes_back(mnist):
    """Large strokes of a test digit give nearly the image that they were made of."""
    alike = []
    for digit_HW in mnist[1].images_NHW[:100]:
        found_HW = to_mnist(cut(digit_HW)).astype(float)
        alike.append(np.corrcoef(found_HW.ravel(), digit_HW.ravel())[0, 1])
    assert np.median(alike) > 0.95
    assert np.quantile(alike, 0.05) > 0.75  # some a pixel off, where the centre is between two


def test_mnist_itself_has_this_form(mnist):
    """What the numbers are taken from: 20 pixels, fullest ink, the centre of mass at pixel 14."""
    for digit_HW in mnist[0].images_NHW[:200]:
        rows, columns = (np.flatnonzero(digit_HW.any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert digit_HW.max() >= 254
        for centre in centre_of_mass(digit_HW):
            assert 13.4 < centre < 14.6


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_any_ink(height: int, width: int, seed: int):
    rng = np.random.default_rng(seed)
    image_HW = to_mnist(rng.uniform(0, 1, (height, width)).astype(np.float32))
    assert image_HW.dtype == np.uint8
    assert image_HW.shape == (28, 28)
    assert image_HW.max() == 255
    rows, columns = (np.flatnonzero(image_HW.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 20


def test_no_ink():
    assert not to_mnist(np.zeros((5, 9), np.float32)).any()


def test_aspect_edges_and_place():
    image_HW = to_mnist(np.ones((100, 30), np.float32))
    rows, columns = (np.flatnonzero(image_HW.any(axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (5, 24)
    assert (columns[0], columns[-1]) == (12, 17)
    # All ink on the left: the centre of mass goes to the middle, not that of the box.
    left_HW = np.full((100, 100), 0.2, np.float32)
    left_HW[:, :30] = 1
    assert centre_of_mass(to_mnist(left_HW))[1] == pytest.approx(14, abs=0.5)
    # Half a pixel of ink is half the grey.
    half_HW = np.ones((40, 40), np.float32)
    half_HW[:, 20] = half_HW[:, 39] = 0
    assert 60 < to_mnist(half_HW)[14, 14] < 250


def test_thin_strokes_are_drawn_with_a_thicker_pen(mnist):
    line_HW = np.zeros((200, 200), np.float32)
    line_HW[:, 100:102] = line_HW[0:2] = line_HW[198:] = line_HW[:, 0:2] = line_HW[:, 198:] = 1
    thick_HW = as_with_a_pen(line_HW)
    width = int((thick_HW[150] > 0.5).sum()) / 3
    assert 14 < width < 22  # 9 % of 200
    assert max(thick_HW.shape) < 225
    # Strokes as MNIST has them stay as they are.
    assert sum(as_with_a_pen(ink) is ink for ink in map(cut, mnist[1].images_NHW[:50])) >= 45
