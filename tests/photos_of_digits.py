"""Photo-like pictures out of MNIST's digits: large strokes of ink on paper, light, noise, JPEG."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxmnist.data import Dataset


def strokes(digit_HW: np.ndarray, height: int) -> np.ndarray:
    """A digit as ink, float32 from 0 to 1 with sharp edges, its longer side ``height`` pixels.

    Args:
      digit_HW: uint8 (28, 28).
    """
    rows, columns = (np.flatnonzero((digit_HW > 0).any(axis)) for axis in (1, 0))
    cut_HW = digit_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    blurred = Image.fromarray(np.pad(cut_HW, 2).astype(np.float32) / 255)
    zoom = height / max(cut_HW.shape)
    size = round(blurred.width * zoom), round(blurred.height * zoom)
    large_HW = np.asarray(blurred.resize(size, Image.Resampling.BICUBIC))
    softness = max(0.08, 1.2 / zoom)  # at least an edge of a pixel or two
    return np.clip((large_HW - 0.5) / softness + 0.5, 0, 1)


def row(inks: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Ink of several digits side by side, not quite on a line."""
    highest = max(len(ink) for ink in inks)
    gaps = (rng.uniform(0.12, 0.5, len(inks)) * highest).astype(int)
    drops = (rng.uniform(0, 0.15, len(inks)) * highest).astype(int)
    width = sum(ink.shape[1] for ink in inks) + int(gaps[:-1].sum())
    together = np.zeros((highest + int(drops.max()), width), np.float32)
    x = 0
    for ink, gap, drop in zip(inks, gaps, drops, strict=True):
        y = drop + (highest - len(ink)) // 2
        place = together[y : y + len(ink), x : x + ink.shape[1]]
        np.maximum(place, ink, out=place)
        x += ink.shape[1] + gap
    return together


def photo(ink: np.ndarray, rng: np.random.Generator, *, inverted: bool = False) -> Image.Image:
    """A photo of it off-centre, dark on paper (or light on dark): gradient, noise, JPEG 70."""
    margins = (rng.uniform(0.1, 0.8, (2, 2)) * min(ink.shape)).astype(int) + 4
    ink = np.pad(ink, margins)
    height, width = ink.shape
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * np.pi)
    light = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)
    paper = rng.uniform(170, 235) + rng.uniform(0, 70) * light
    pen = rng.uniform(15, 85) + rng.uniform(0, 30) * light
    grey = paper * (1 - ink) + pen * ink + rng.normal(0, rng.uniform(2, 12), ink.shape)
    if inverted:
        grey = 255 - grey
    return as_jpeg(grey)


def as_jpeg(grey: np.ndarray, quality: int = 70) -> Image.Image:
    """Through a JPEG file and back."""
    file = io.BytesIO()
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return Image.open(file)


def photo_of(dataset: Dataset, number: int) -> tuple[np.ndarray, str]:
    """A photo of a digit of the data set, 80 to 800 pixels large, and what it shows.

    Every tenth is light on dark. The grey levels are float32 (H, W).
    """
    rng = np.random.default_rng([1, number])
    ink = strokes(dataset.images_NHW[number], int(rng.integers(80, 801)))
    taken = photo(ink, rng, inverted=number % 10 == 0)
    return np.asarray(taken, np.float32), str(dataset.labels_N[number])


def row_of(dataset: Dataset, number: int) -> tuple[np.ndarray, str]:
    """As ``photo_of``, of three to six random digits in a row."""
    rng = np.random.default_rng([2, number])
    chosen = rng.integers(0, len(dataset), int(rng.integers(3, 7)))
    height = int(rng.integers(80, 401))
    ink = row([strokes(dataset.images_NHW[n], height) for n in chosen], rng)
    taken = photo(ink, rng, inverted=number % 10 == 0)
    return np.asarray(taken, np.float32), "".join(str(dataset.labels_N[n]) for n in chosen)
