"""Which strokes make a digit, and in which order digits are read."""

import numpy as np
import pytest
from photos_of_digits import strokes

from jaxmnist.photos.digits import Box, find_digits


def sheet(*rectangles: tuple[int, int, int, int], shape: tuple[int, int] = (200, 400)):
    """Ink in rectangles (x0, y0, x1, y1)."""
    ink_HW = np.zeros(shape, np.float32)
    for x0, y0, x1, y1 in rectangles:
        ink_HW[y0:y1, x0:x1] = 1
    return ink_HW


def boxes(ink_HW: np.ndarray) -> list[list[tuple[int, ...]]]:
    return [[tuple(digit.box) for digit in line] for line in find_digits(ink_HW)]


ONE, TWO = (50, 50, 60, 150), (150, 40, 162, 150)
CASES = {
    "nothing": ((), []),
    "from left to right": ((TWO, ONE), [[ONE, TWO]]),
    "specks are dirt": ((ONE, (200, 100, 206, 106), (70, 20, 73, 23)), [[ONE]]),
    "a dash is no digit": ((ONE, (200, 100, 235, 110)), [[ONE]]),
    "a bar above is part of a 5": ((ONE, (58, 35, 100, 43)), [[(50, 35, 100, 150)]]),
    "as is one beside it": ((ONE, (66, 50, 90, 60)), [[(50, 50, 90, 150)]]),
    "a small gap": (((50, 50, 60, 98), (50, 100, 60, 150)), [[ONE]]),
    "a low digit": ((ONE, (150, 100, 210, 130)), [[ONE, (150, 100, 210, 130)]]),
    "two lines": (
        ((50, 10, 60, 80), (90, 12, 100, 82), (50, 110, 60, 180)),
        [[(50, 10, 60, 80), (90, 12, 100, 82)], [(50, 110, 60, 180)]],
    ),
    "a line that climbs": (
        ((50, 120, 60, 180), (100, 85, 110, 145), (150, 50, 160, 110), (200, 15, 210, 75)),
        [[(50, 120, 60, 180), (100, 85, 110, 145), (150, 50, 160, 110), (200, 15, 210, 75)]],
    ),
    "the table around a sheet": (
        (ONE, (0, 0, 400, 20), (0, 0, 20, 200), (380, 0, 400, 200), (0, 180, 400, 200)),
        [[ONE]],
    ),
    "a ruled line": ((ONE, (0, 170, 400, 173)), [[ONE]]),
}


@pytest.mark.parametrize("name", CASES)
def test_boxes(name: str):
    rectangles, expected = CASES[name]
    assert boxes(sheet(*rectangles)) == expected


def test_a_digit_has_its_own_ink_alone():
    """Also where the box of another reaches into its own; soft edges belong to it."""
    ink_HW = sheet((50, 50, 60, 150), (50, 140, 116, 150), (112, 30, 122, 130))
    ink_HW[148, 60:116] = 0.6
    first, second = find_digits(ink_HW)[0]
    assert first.box == Box(50, 50, 116, 150)
    assert first.ink_HW.sum() == pytest.approx(10 * 100 + 56 * 9 + 56 * 0.6, abs=0.1)
    assert second.box == Box(112, 30, 122, 130)
    assert second.ink_HW.sum() == 10 * 100


def test_cut_to_the_edge():
    """A digit that touches all four sides is one all the same."""
    y, x = np.mgrid[0:200, 0:120]
    radius = np.hypot((x - 59.5) / 60, (y - 99.5) / 100)
    ring_HW = ((radius <= 1) & (radius > 0.75)).astype(np.float32)
    assert boxes(ring_HW) == [[(0, 0, 120, 200)]]


def test_digits_of_mnist_are_whole(mnist):
    """Each of 300 is one, though some people lift the pen."""
    counts = []
    for digit_HW in mnist[1].images_NHW[:300]:
        found = find_digits(np.pad(strokes(digit_HW, 120), 30))
        counts.append([len(line) for line in found])
    assert counts.count([1]) >= 298


def test_a_page_of_print_is_no_photo_of_digits():
    page_HW = np.zeros((400, 400), np.float32)
    for y in range(5, 390, 20):
        for x in range(5, 390, 16):
            page_HW[y : y + 12, x : x + 6] = 1
    assert find_digits(page_HW) == []
    assert len(find_digits(page_HW[:, :100])[0]) == 6


def test_noise_does_no_harm():
    """It hangs together, and is one thing."""
    ink_HW = (np.random.default_rng(0).uniform(0, 1, (300, 300)) > 0.6).astype(np.float32)
    ((digit,),) = find_digits(ink_HW)
    assert digit.ink_HW.shape == (digit.box.height, digit.box.width)
    assert digit.ink_HW.sum() > 0.9 * ink_HW.sum()


@pytest.mark.parametrize("top", [48, 52])
def test_a_piece_that_only_the_whole_digit_reaches(top: int):
    """Of three pieces the first is close to neither other, but to both together."""
    ink_HW = sheet((90, 50, 105, 58), (50, top, 60, 80), (75, 80, 105, 110), (300, 50, 310, 150))
    assert boxes(ink_HW) == [[(50, min(top, 50), 105, 110), (300, 50, 310, 150)]]


@pytest.mark.parametrize("flipped", [False, True])
def test_a_piece_that_another_brings_near(flipped: bool):
    """The second is too far from the stroke, until the third belongs to it."""
    ink_HW = sheet((50, 50, 60, 150), (75, 60, 90, 73), (66, 140, 90, 150))
    ((digit,),) = find_digits(ink_HW[::-1] if flipped else ink_HW)
    assert digit.ink_HW.sum() > 0.9 * ink_HW.sum()
