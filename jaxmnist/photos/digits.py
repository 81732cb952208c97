"""Where the digits of a photo are: which strokes belong together, in the order of reading."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

# As shares of the height of the digits:
_MOST = 300  # strokes; what has more is no photo of digits
_SPECK = 0.12  # what is smaller is dirt, or noise
_PIECE = 0.5  # what is less high may be a piece of a digit
_LOW, _WIDE = 0.25, 0.45  # what is apart, this high and this large is a digit all the same
_JOINT = 0.04  # strokes with no more between them are one
_BESIDE = 0.12  # a piece is part of the digit beside it up to here,
_ABOVE = 0.2  # of one below or above it up to here


class Box(NamedTuple):
    """A rectangle of pixels; column x1 and row y1 are outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    def overlap(self, other: "Box") -> tuple[int, int]:
        """In x and in y; negative where there is a gap instead."""
        return (
            min(self.x1, other.x1) - max(self.x0, other.x0),
            min(self.y1, other.y1) - max(self.y0, other.y0),
        )


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return Box(min(x0), min(y0), max(x1), max(y1))


class Digit(NamedTuple):
    """A digit of a photo."""

    box: Box
    ink_HW: np.ndarray
    """Its own ink, float32 from 0 to 1, in its box."""


def find_digits(ink_HW: np.ndarray) -> list[list[Digit]]:
    """The digits of a photo line by line, each from left to right.

    Args:
      ink_HW: float32 (H, W), see ``ink.find_ink``.
    """
    strokes, boxes = _components(ink_HW > 0.5)
    kept = [n for n, box in enumerate(boxes) if not _is_edge(strokes, n + 1, box)]
    if not kept:
        return []
    highest = max(boxes[n].height for n in kept)
    height = float(np.median([h for n in kept if (h := boxes[n].height) >= _PIECE * highest]))
    kept = [n for n in kept if max(boxes[n].width, boxes[n].height) > _SPECK * height]
    if len(kept) > _MOST:
        return []

    # With soft edges, and with what reaches over small gaps.
    reach = max(1, round(_JOINT * height / 2))
    wanted_HW = np.isin(strokes, np.array(kept) + 1)
    regions, _ = _components(ndimage.maximum_filter(wanted_HW, 2 * reach + 1))
    parts: dict[int, list[Box]] = {}
    for n in kept:
        row, column = np.argwhere(strokes[_slices(boxes[n])] == n + 1)[0]
        region = int(regions[boxes[n].y0 + row, boxes[n].x0 + column])
        parts.setdefault(region, []).append(boxes[n])
    groups = [([region], _around(inside)) for region, inside in parts.items()]
    digits = [
        Digit(box, np.where(np.isin(regions[_slices(box)], own), ink_HW[_slices(box)], 0))
        for own, box in _joined(groups, height)
    ]
    return _lines(digits)


def _components(mask_HW: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """The numbers of what hangs together, from 1, 0 elsewhere; and the box of each."""
    numbers: Any = np.zeros(mask_HW.shape, np.int32)
    ndimage.label(mask_HW, np.ones((3, 3)), numbers)
    slices = ndimage.find_objects(numbers)
    return numbers, [Box(x.start, y.start, x.stop, y.stop) for y, x in slices]


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box.y0, box.y1), slice(box.x0, box.x1)


def _is_edge(strokes: np.ndarray, number: int, box: Box) -> bool:
    """Whether something belongs to the picture's edge: a table, a shadow, a ruled line."""
    height, width = strokes.shape
    if box.width == width and box.height < 0.1 * height:
        return True
    if 0 not in box and box.x1 < width and box.y1 < height:
        return False
    borders = (strokes[0], strokes[-1], strokes[:, 0], strokes[:, -1])
    along = sum(int((border == number).sum()) for border in borders)
    return along > 0.25 * 2 * (height + width)


_Group = tuple[list[int], Box]  # numbers of regions, and the box around them


def _joined(groups: list[_Group], height: float) -> list[_Group]:
    """The digits: strokes that cover each other, with their small pieces."""
    pieces = [group for group in groups if group[1].height < _PIECE * height]
    bodies = _merged(
        [group for group in groups if group not in pieces],
        lambda box, other: _cover(box, other) or _halves(box, other, height),
    )
    # A digit may consist of pieces alone, as some people's 5 does.
    pieces = _merged(pieces, lambda box, other: _gap(box, other) < _ABOVE * height)
    while True:
        apart: list[_Group] = []
        for own, box in pieces:
            nearest = min(range(len(bodies)), key=lambda n: _gap(box, bodies[n][1]), default=None)
            if nearest is not None and _belongs(box, bodies[nearest][1], height):
                others, other = bodies[nearest]
                bodies[nearest] = others + own, _around([box, other])
            else:
                apart.append((own, box))
        if len(apart) == len(pieces):  # otherwise a body that has grown may have come near
            return bodies + [group for group in apart if _is_digit(group[1], height)]
        pieces = apart


def _is_digit(piece: Box, height: float) -> bool:
    """Whether a piece that is apart is one all the same."""
    return piece.height >= _LOW * height and max(piece.width, piece.height) >= _WIDE * height


def _merged(groups: list[_Group], one: Callable[[Box, Box], bool]) -> list[_Group]:
    """Groups of which no two are ``one``."""
    merged: list[_Group] = []
    for own, box in groups:
        # Anew after each: the box has grown.
        while near := next((group for group in merged if one(box, group[1])), None):
            merged.remove(near)
            own, box = near[0] + own, _around([box, near[1]])
        merged.append((own, box))
    return merged


def _cover(box: Box, other: Box) -> bool:
    x, y = box.overlap(other)
    return x > 0.7 * min(box.width, other.width) and y > 0.5 * min(box.height, other.height)


def _halves(box: Box, other: Box, height: float) -> bool:
    """Whether one lies close above the other, as the bar of a 5 does; lines are further apart."""
    x, y = box.overlap(other)
    above = x > 0.3 * min(box.width, other.width) and y < 0.6 * min(box.height, other.height)
    return above and _gap(box, other) < _ABOVE * height


def _belongs(piece: Box, body: Box, height: float) -> bool:
    """Whether a piece is part of a digit: close to it, or not far above or below."""
    beside = piece.overlap(body)[0] < 0.3 * piece.width
    return _gap(piece, body) < (_BESIDE if beside else 2 * _ABOVE) * height


def _gap(box: Box, other: Box) -> float:
    x, y = box.overlap(other)
    return math.hypot(max(0, -x), max(0, -y))


def _lines(digits: list[Digit]) -> list[list[Digit]]:
    """Lines from top to bottom: neighbours whose heights overlap are in one."""
    lines: list[list[Digit]] = []
    for digit in sorted(digits, key=lambda digit: digit.box.x0):
        for line in lines:
            last = line[-1].box
            if digit.box.overlap(last)[1] > 0.3 * min(digit.box.height, last.height):
                line.append(digit)
                break
        else:
            lines.append([digit])
    return sorted(lines, key=lambda line: float(np.mean([d.box.y0 + d.box.y1 for d in line])))
