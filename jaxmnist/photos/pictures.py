"""Pictures out of files: what can be wrong with them is told, and the rest becomes grey levels."""

import contextlib
import io
import os
import struct
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmnist.errors import UserError

STDIN = "-"
# Of those that Pillow knows; of the others some run programs to read a file, or write to stderr.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "WEBP")
_WIDE = ("I;16", "I")  # modes with up to 65,536 levels
_FULL = (1023, 4095, 16383, 65535)  # the highest: some cameras use 10, 12 or 14 of the bits

# Of a transparent picture what is opaque is a sheet that was cut out, and goes on, where it fills
# so much of the box around it and has something on it: so much that is so many grey levels away
# from the rest. Others were drawn, on white where they are dark and on black where they are light.
_SHEET, _WRITTEN, _CONTRAST = 0.5, 0.001, 28


def read(file: str | os.PathLike[str]) -> np.ndarray:
    """The grey levels of a picture the right way up, float32 (H, W) from 0 to 255.

    Args:
      file: a path, or '-' for standard input.

    Raises:
      UserError: where there is no file, it holds no single picture, is broken, or is too large.
    """
    name = "standard input" if file == STDIN else file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            Image.init()  # formats that this Pillow was built without are not there
            formats = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(_stream(file), formats=formats) as picture:
                frames = getattr(picture, "n_frames", 1)
                # Cameras add a preview to a photo, which makes an MPO file of it.
                if frames > 1 and picture.format != "MPO":
                    raise UserError(f"{name} has {frames} pictures: save the one that counts")
                return _grey(_upright(picture))
        except UserError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            most = f"{(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f}"
            raise UserError(f"{name} has more than {most} million pixels: scale it down") from error
        except UnidentifiedImageError as error:
            raise UserError(
                f"{name} is no picture that can be read here: save it as PNG or JPEG"
            ) from error
        except MemoryError as error:
            raise UserError(f"{name} does not fit into memory: scale it down") from error
        except Exception as error:  # the file can be anything
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{name} cannot be read ({reason}): choose another") from error


def _stream(file: str | os.PathLike[str]) -> str | io.BytesIO:
    if file != STDIN:
        return os.path.expanduser(file)
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("standard input has no picture: send one, as in … < photo.jpg")
    return io.BytesIO(sys.stdin.buffer.read())


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    # Damaged: what was read of it counts.
    with contextlib.suppress(SyntaxError, struct.error, TypeError, ValueError):
        picture.getexif()
    # Or they would be written anew, damaged as they are.
    for kept in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        picture.info.pop(kept, None)
    return ImageOps.exif_transpose(picture)


def _grey(picture: Image.Image) -> np.ndarray:
    if picture.mode in _WIDE:
        levels = np.asarray(picture)
        full = next((full for full in _FULL if levels.max() <= full), _FULL[-1])
        return levels.astype(np.float32) * (255 / full)
    if picture.mode == "F":  # of any range
        levels = np.nan_to_num(np.asarray(picture).astype(np.float32))
        return (levels - levels.min()) * (255 / max(float(np.ptp(levels)), 1e-6))
    if picture.has_transparency_data:
        levels = np.asarray(picture.convert("LA")).astype(np.float32)
        grey_HW, opaque_HW = levels[..., 0], levels[..., 1] / 255
        behind = _behind(grey_HW, opaque_HW)
        return grey_HW * opaque_HW + behind * (1 - opaque_HW)
    return np.asarray(picture.convert("L")).astype(np.float32)


def _behind(grey_HW: np.ndarray, opaque_HW: np.ndarray) -> float:
    """The grey level of what a picture lies on that is opaque from 0 to 1."""
    visible_HW = opaque_HW > 0.5
    if visible_HW.any():
        rows, columns = (np.flatnonzero(visible_HW.any(axis)) for axis in (1, 0))
        filled = visible_HW.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
        levels = grey_HW[visible_HW]
        paper = float(np.median(levels))
        if filled > _SHEET and (np.abs(levels - paper) > _CONTRAST).mean() > _WRITTEN:
            return paper
    dark = (grey_HW * opaque_HW).sum() < 127.5 * opaque_HW.sum()
    return 255 if dark else 0
