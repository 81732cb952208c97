"""Photos are read: single digits, rows, and every other kind of picture of a digit."""

from collections.abc import Callable

import numpy as np
import pytest
from photos_of_digits import photo_of, row_of, strokes

import jaxmnist
from jaxmnist.classifier import Classifier
from jaxmnist.data import Dataset
from jaxmnist.photos.reading import read

Made = Callable[[Dataset, int], tuple[np.ndarray, str]]


@pytest.fixture(scope="module")
def model3() -> Classifier:
    return jaxmnist.load("model3")


@pytest.mark.parametrize(
    ("made", "count", "least"),
    [
        (photo_of, 20, 0.9),
        (row_of, 10, 0.8),
        pytest.param(photo_of, 1000, 0.985, marks=pytest.mark.long),
        pytest.param(row_of, 200, 0.95, marks=pytest.mark.long),
    ],
)
def test_photos(made: Made, count: int, least: float, model3: Classifier, mnist):
    photos = (made(mnist[1], number) for number in range(count))
    right = sum(read(model3, grey_HW).text == text for grey_HW, text in photos)
    assert right >= least * count


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("cut", [False, True], ids=["as they are", "cut close"])
def test_crops_of_mnist(model3: Classifier, mnist, inverted: bool, cut: bool):
    """The 28×28 pixels themselves, either way round; cut close, 1s fill the picture."""
    right = []
    for image_HW, label in zip(mnist[1].images_NHW[:100], mnist[1].labels_N, strict=False):
        if cut:
            rows, columns = (np.flatnonzero(image_HW.any(axis)) for axis in (1, 0))
            image_HW = image_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        grey_HW = image_HW.astype(np.float32)
        right.append(read(model3, 255 - grey_HW if inverted else grey_HW).text == str(label))
    assert np.mean(right) >= (0.85 if cut else 0.97)


def test_boxes_are_those_of_the_photo(model3: Classifier, mnist):
    """Whatever size the photo is looked at in; what the network saw stands beside."""
    ink = strokes(mnist[1].images_NHW[0], 900)
    sheet_HW = np.full((2000, 3000), 220, np.float32)
    sheet_HW[700 : 700 + len(ink), 400 : 400 + ink.shape[1]] -= 190 * ink
    found = read(model3, sheet_HW)
    assert found.text == "7"
    (digit,) = found.digits
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    expected = (400 + columns[0], 700 + rows[0], 401 + columns[-1], 701 + rows[-1])
    np.testing.assert_allclose(digit.box, expected, atol=4)
    assert digit.image_HW.shape == (28, 28)
    assert digit.digit == 7
    assert digit.probability == model3.predict(digit.image_HW).probabilities[7]


def test_lines_are_apart(model3: Classifier, mnist):
    sheet_HW = np.full((500, 400), 230, np.float32)
    for y, x, index in ((40, 50, 0), (40, 200, 1), (280, 60, 2)):  # 7 2 1
        ink = strokes(mnist[1].images_NHW[index], 140)
        sheet_HW[y : y + len(ink), x : x + ink.shape[1]] -= 200 * ink
    assert read(model3, sheet_HW).text == "72 1"


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (300, 300)])
def test_no_digit(model3: Classifier, shape: tuple[int, int]):
    found = read(model3, np.full(shape, 200, np.float32))
    assert found == ("", [])
