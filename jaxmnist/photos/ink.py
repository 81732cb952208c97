"""Ink on paper: how much of it each pixel of a photo shows, whatever the light and the colours."""

import numpy as np
from numpy.polynomial import chebyshev
from PIL import Image
from scipy import ndimage

_LEAST_CONTRAST = 14  # grey levels, of 255, that ink has to stand out by
_NOISE = 6  # standard deviations that it has to stand out by
_COARSE = 48  # pixels of the longer side that are enough to see the light by
_DEGREE = 2  # of the surface that even light makes of the paper
_MOST_INK = 0.75  # of a picture, where it is cut close to a digit
_WIDEST = 0.2  # stroke in uneven light, of the picture's side
_VAGUE = 0.8  # of what stands out is not quite ink: then none of it is
_CLEAR, _CLEARER = 0.5, 0.7  # uneven light is assumed where it leaves less, and so much less, vague


def find_ink(grey_HW: np.ndarray) -> np.ndarray | None:
    """The share of ink in each pixel, float32 (H, W) from 0 to 1; None where there is none.

    Paper changes slowly from side to side; ink is what stands out from it, either dark or light.
    Where a picture can be seen either way, ink is what there is less of.

    Args:
      grey_HW: float32 (H, W), from 0 to 255.
    """
    dark_HW, light_HW = _lighter(-grey_HW), _lighter(grey_HW)
    if dark_HW is None or light_HW is None:
        return light_HW if dark_HW is None else dark_HW
    centred = grey_HW.astype(np.float64) - grey_HW.mean()
    return light_HW if (centred**3).sum() > 0 else dark_HW


def _lighter(grey_HW: np.ndarray) -> np.ndarray | None:
    """As ``find_ink``, of what is lighter than the paper."""
    even_HW = _share(grey_HW - _evenly_lit(grey_HW))
    contrast_HW = grey_HW - _unevenly_lit(grey_HW)
    uneven_HW = _share(contrast_HW - np.median(contrast_HW))
    even, uneven = _vagueness(even_HW), _vagueness(uneven_HW)
    share_HW = uneven_HW if uneven < min(_CLEAR, _CLEARER * even) else even_HW
    if share_HW is None or _vagueness(share_HW) > _VAGUE:
        return None
    # A stroke ends where half of a pixel is ink; what is blurred is made sharp again.
    return np.clip((share_HW - 0.25) / 0.5, 0, 1)


def _share(contrast_HW: np.ndarray) -> np.ndarray | None:
    """Of ink in each pixel, by how far it stands out from paper, 0; None where nothing does."""
    below = contrast_HW[contrast_HW <= 0]
    noise = 1.48 * float(-np.median(below)) if below.size else 0.0
    strong = contrast_HW[contrast_HW > max(_NOISE * noise, _LEAST_CONTRAST)]
    if strong.size < 10:
        return None
    full = float(np.median(strong))
    for _ in range(3):  # of what is ink by half: towards the middle of the strokes
        full = float(np.median(strong[strong > full / 2]))
    return np.clip(contrast_HW / full, 0, 1)


def _vagueness(share_HW: np.ndarray | None) -> float:
    """How much of what is not paper is not quite ink either."""
    if share_HW is None:
        return 1.0
    return float((share_HW[share_HW > 0.25] < 0.75).mean())


def _unevenly_lit(grey_HW: np.ndarray) -> np.ndarray:
    """The paper under lighter strokes: what is wider than they are, edges of shadows too, stays."""
    side = float(np.sqrt(grey_HW.size))
    smooth_HW = ndimage.gaussian_filter(grey_HW, side / 400)
    return ndimage.grey_opening(smooth_HW, max(3, round(_WIDEST * side)))


def _evenly_lit(grey_HW: np.ndarray) -> np.ndarray:
    """The paper under lighter ink: a smooth surface, float32 (H, W).

    It has most of the paper below it and all of the ink above: a quantile regression (Koenker and
    Bassett, 1978) by reweighted least squares.
    """
    coarse_HW = _coarse(grey_HW)
    terms = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    rows, columns = (_basis(length) for length in coarse_HW.shape)
    design = np.stack([np.outer(rows[:, i], columns[:, j]).ravel() for i, j in terms], axis=1)
    values = coarse_HW.ravel()
    surface = np.full_like(values, np.quantile(values, 1 - _MOST_INK))
    coefficients = np.zeros(len(terms))
    for _ in range(30):
        residuals = values - surface
        weights = np.where(residuals > 0, 1 - _MOST_INK, _MOST_INK)
        weights /= np.maximum(np.abs(residuals), 2)
        scaled = design * weights[:, None]
        # A little ridge: a picture of a few pixels does not determine all terms.
        gram = scaled.T @ design + 1e-6 * weights.sum() * np.eye(len(terms))
        coefficients = np.linalg.solve(gram, scaled.T @ values)
        surface = design @ coefficients
    matrix = np.zeros((_DEGREE + 1, _DEGREE + 1))
    matrix[tuple(np.transpose(terms))] = coefficients
    height, width = grey_HW.shape
    return (_basis(height) @ matrix @ _basis(width).T).astype(np.float32)


def _coarse(grey_HW: np.ndarray) -> np.ndarray:
    """A picture small enough to fit a surface to, float64."""
    shrink = max(grey_HW.shape) / _COARSE
    height, width = (max(1, round(length / shrink)) for length in grey_HW.shape)
    small = Image.fromarray(grey_HW).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


def _basis(length: int) -> np.ndarray:
    """Chebyshev's polynomials over ``length`` pixels, (length, degree + 1)."""
    return chebyshev.chebvander((np.arange(length) + 0.5) / length * 2 - 1, _DEGREE)
