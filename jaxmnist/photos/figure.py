"""A figure of what was read: each photo with boxes, and the digits as the network saw them."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxmnist.errors import UserError
from jaxmnist.photos.reading import Reading

_COLUMNS = 10
_VERMILION = "#D55E00"


def draw(file: Path, photos: Sequence[tuple[str, np.ndarray, Reading]]) -> None:
    """Writes a PNG with a part for each photo.

    Args:
      file: where to; nothing is there yet.
      photos: name, grey levels (H, W) and what was read.

    Raises:
      UserError: where the file cannot be written.
    """
    heights = [(3.4, 1.25 * max(1, -(-len(r.digits) // _COLUMNS))) for _, _, r in photos]
    totals = [above + below + 0.3 for above, below in heights]
    figure = Figure(figsize=(10, sum(totals)), layout="constrained")
    parts = figure.subfigures(len(photos), 1, height_ratios=totals, squeeze=False)
    for part, (name, grey_HW, reading), (above, below) in zip(
        parts[:, 0], photos, heights, strict=True
    ):
        photo, crops = part.subfigures(2, 1, height_ratios=(above, below))
        name = name.encode(errors="replace").decode()  # file names may be no text
        part.suptitle(f"{name}: {reading.text or 'no digit found'}", parse_math=False)
        axes = photo.subplots()
        axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        rows = max(1, -(-len(reading.digits) // _COLUMNS))
        grid = crops.add_gridspec(rows, _COLUMNS)
        for place, digit in enumerate(reading.digits):
            x0, y0, x1, y1 = digit.box
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=_VERMILION, lw=1.5))
            axes.text(x0, y0, str(digit.digit), color=_VERMILION, va="bottom", fontsize=12)
            tile = crops.add_subplot(grid[divmod(place, _COLUMNS)])
            tile.imshow(digit.image_HW, cmap="gray_r", vmin=0, vmax=255)
            tile.set_title(f"{digit.digit}: {100 * digit.probability:.1f} %", fontsize=9, pad=3)
            tile.set(xticks=[], yticks=[])
            tile.spines[:].set_color("#cccccc")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in other scripts
        figure.savefig(stream, dpi=110, format="png")
    try:
        file.write_bytes(stream.getvalue())
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink()
        reason = error.strerror or error
        raise UserError(f"--plot {file}: {reason}: choose another place") from error
