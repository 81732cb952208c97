"""Numbers out of photos: ink, digits, MNIST's form, and what a network says."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxmnist.classifier import Classifier
from jaxmnist.photos import digits, form, ink
from jaxmnist.photos.digits import Box

_LONGEST, _SHORTEST = 1024, 160  # pixels of the longer side to look for digits in


class ReadDigit(NamedTuple):
    """One digit of a photo."""

    digit: int
    probability: float
    box: Box
    """In pixels of the photo."""
    image_HW: np.ndarray
    """What the network was shown, uint8 (28, 28)."""


class Reading(NamedTuple):
    """What stands in a photo."""

    text: str
    """The digits from left to right; lines are separated by blanks. '' where there are none."""
    digits: list[ReadDigit]


def read(classifier: Classifier, grey_HW: np.ndarray) -> Reading:
    """Reads a photo of one or more digits, dark on light or light on dark.

    Args:
      classifier: the network.
      grey_HW: float32 (H, W), from 0 to 255.
    """
    scaled_HW = _scaled(grey_HW)
    scale = grey_HW.shape[1] / scaled_HW.shape[1], grey_HW.shape[0] / scaled_HW.shape[0]
    ink_HW = ink.find_ink(scaled_HW)
    lines = [] if ink_HW is None else digits.find_digits(ink_HW)
    found = [digit for line in lines for digit in line]
    if not found:
        return Reading("", [])
    images_NHW = np.stack([form.to_mnist(form.as_with_a_pen(digit.ink_HW)) for digit in found])
    digits_N, probabilities_NK = classifier.predict(images_NHW)
    read = [
        ReadDigit(int(digit), float(probabilities_K[digit]), _in_photo(one.box, scale), image_HW)
        for one, digit, probabilities_K, image_HW in zip(
            found, digits_N, probabilities_NK, images_NHW, strict=True
        )
    ]
    text, rest = [], iter(read)
    for line in lines:
        text.append("".join(str(next(rest).digit) for _ in line))
    return Reading(" ".join(text), read)


def _scaled(grey_HW: np.ndarray) -> np.ndarray:
    """At a size at which the strokes of a pen have some pixels, and few suffice."""
    longest = max(grey_HW.shape)
    goal = min(max(longest, _SHORTEST), _LONGEST)
    if goal == longest:
        return grey_HW
    height, width = (max(1, round(length * goal / longest)) for length in grey_HW.shape)
    how = Image.Resampling.BOX if goal < longest else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(grey_HW).resize((width, height), how))


def _in_photo(box: Box, scale: tuple[float, float]) -> Box:
    x, y = scale
    return Box(round(box.x0 * x), round(box.y0 * y), round(box.x1 * x), round(box.y1 * y))
