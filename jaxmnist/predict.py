"""The command that reads the digits of photos."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import json
import os
import sys
from pathlib import Path

import numpy as np
from absl import flags

from jaxmnist import cli, sources
from jaxmnist.errors import UserError
from jaxmnist.photos import pictures, reading
from jaxmnist.photos.reading import Reading

_USAGE = """Reads the digits in photos, from left to right.

  python -m jaxmnist.predict photo.jpg
  python -m jaxmnist.predict *.png --from runs/mine --json

  IMAGE          PNG, JPEG or another common format; '-' for standard input. Dark on
                 light or light on dark; one or more digits that do not touch each other.
  --from SOURCE  a run's folder, a .safetensors file that jaxmnist.convert wrote, or a network that
                 comes with the package; default: the packaged model3. The others are
                 {packaged}
  --json         print one list of objects (file, text, digits: digit, probability, box) and
                 nothing else; a box is [x0, y0, x1, y1] in pixels of the upright picture
  --plot FILE    draw the boxes, and the digits as the network sees them, into a PNG file
"""

_FLAGS = flags.FlagValues()
_FROM = flags.DEFINE_string("from", None, "A trained network.", flag_values=_FLAGS)
_JSON = flags.DEFINE_bool("json", False, "Print JSON and nothing else.", flag_values=_FLAGS)
_PLOT = flags.DEFINE_string("plot", None, "A PNG file to draw into.", flag_values=_FLAGS)
_FLAGS.set_gnu_getopt(True)

_DEFAULT = "model3.safetensors"
_MOST_DRAWN = 50  # images in a figure
_images: list[str] = []


def line(file: str, found: Reading) -> str:
    """One image in words: ``photo.jpg: 407   99.8 % 97.1 % 99.9 %``."""
    if not found.digits:
        return f"{file}: no digit found"
    return f"{file}: {found.text}   " + " ".join(
        f"{100 * digit.probability:.1f} %" for digit in found.digits
    )


def as_json(file: str, found: Reading) -> dict[str, object]:
    """One image as --json prints it."""
    digits = [
        {"digit": one.digit, "probability": one.probability, "box": list(one.box)}
        for one in found.digits
    ]
    return {"file": file, "text": found.text, "digits": digits}


def _parse(argv: list[str]) -> None:
    _images[:] = cli.parse_flags(argv, _FLAGS, others=True)
    if not _images:
        raise UserError("no image is given: name one, or - for standard input")
    if _images.count(pictures.STDIN) > 1:
        raise UserError("- is given twice: standard input is one picture")
    if _PLOT.value is None:
        return
    file = _plot()
    if file.suffix != ".png":
        raise UserError(f"--plot {file} must end in .png")
    if os.path.lexists(file):
        raise UserError(f"--plot {file} exists: choose another name")
    if len(_images) > _MOST_DRAWN:
        raise UserError(
            f"--plot takes {_MOST_DRAWN} images, not {len(_images)}: draw some at a time"
        )


def _plot() -> Path:
    return Path(os.path.expanduser(_PLOT.value or ""))


def _predict() -> None:
    source = _FROM.value
    classifier = sources.load(sources.WEIGHTS / _DEFAULT if source is None else source)
    read: list[tuple[str, Reading]] = []
    drawn: list[tuple[str, np.ndarray, Reading]] = []
    errors: list[UserError] = []
    for file in _images:
        try:
            grey_HW = pictures.read(file)
        except UserError as error:  # which does not keep the others from being read
            errors.append(error)
            continue
        found = reading.read(classifier, grey_HW)
        read.append((file, found))
        if _PLOT.value:
            drawn.append((file, grey_HW.astype(np.uint8), found))
        if not _JSON.value:
            print(line(file, found), flush=True)
    if _JSON.value:
        print(json.dumps([as_json(file, found) for file, found in read]), flush=True)
    if drawn:
        from jaxmnist.photos import figure

        try:
            figure.draw(_plot(), drawn)
        except UserError as error:
            errors.append(error)
    for error in errors[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[-1]


if __name__ == "__main__":
    others = cli.listed((name for name in sources.packaged() if name != "model3"), 17)
    cli.run(_predict, _parse, _USAGE.format(packaged=others))
