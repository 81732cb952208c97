"""MNIST's form of a digit: what its authors did with the scans of NIST.

The digit is scaled into a box of 20×20 pixels with its aspect kept, anti-aliased, and laid with its
centre of mass on the centre of 28×28 pixels (LeCun et al., 1998). The page that export/page.py
writes does the same in JavaScript; a test compares the two.
"""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxmnist.data import SIDE

BOX = 20
_THIN = 0.09  # of the longer side: thinner strokes are rare in MNIST


def as_with_a_pen(ink_HW: np.ndarray) -> np.ndarray:
    """The same digit with strokes of MNIST's width, where those of a fine pen are thinner."""
    longest = max(ink_HW.shape)
    margin = round(_THIN * longest)
    padded_HW = np.pad(ink_HW, margin)
    inside_HW: Any = ndimage.distance_transform_edt(padded_HW > 0.5)
    # In a stroke of width w the distance to its edge is w/4 on average.
    width = 4 * float(inside_HW[inside_HW > 0].mean())
    missing = _THIN * longest - width
    if missing <= 0:
        return ink_HW
    outside_HW: Any = ndimage.distance_transform_edt(padded_HW <= 0.5)
    grown_HW = np.clip(missing / 2 + 1 - outside_HW, 0, 1).astype(np.float32)
    rows, columns = (np.flatnonzero((grown_HW > 0.5).any(axis)) for axis in (1, 0))
    return grown_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def to_mnist(ink_HW: np.ndarray) -> np.ndarray:
    """A digit in MNIST's form, uint8 (28, 28), 255 where the ink is fullest.

    Args:
      ink_HW: float (H, W) from 0 for paper to 1 for ink, cut to the digit.
    """
    height, width = ink_HW.shape
    scale = BOX / max(height, width)
    rows, columns = (max(1, int(length * scale + 0.5)) for length in (height, width))
    whole = Image.fromarray(ink_HW.astype(np.float32))
    digit_HW = np.asarray(whole.resize((columns, rows), Image.Resampling.BILINEAR))
    top, left = _start(digit_HW.sum(1)), _start(digit_HW.sum(0))
    image_HW = np.zeros((SIDE, SIDE), np.float32)
    image_HW[top : top + rows, left : left + columns] = digit_HW / max(digit_HW.max(), 1e-6)
    return np.floor(image_HW * 255 + 0.5).astype(np.uint8)


def _start(profile: np.ndarray) -> int:
    """Where a digit begins along an axis, so that its centre of mass is in the central pixel."""
    centre = float((profile * np.arange(len(profile))).sum() / max(profile.sum(), 1e-6))
    return int(np.clip(np.floor(SIDE / 2 - centre + 0.5), 0, SIDE - len(profile)))
