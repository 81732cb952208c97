"""The command that reads the digits of photos."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import json
import os
import sys
import textwrap
from pathlib import Path

from absl import flags

from jaxmnist import cli, sources
from jaxmnist.errors import UserError
from jaxmnist.photos import pictures, reading
from jaxmnist.photos.reading import Reading

_USAGE = """Reads the digits in photos, from left to right.

  python -m jaxmnist.predict photo.jpg
  python -m jaxmnist.predict *.png --from runs/mine --json

  IMAGE          PNG, JPEG or another common format; '-' for standard input. Any size, dark on
                 light or light on dark; one or more digits that do not touch each other.
  --from SOURCE  a run's folder, a .safetensors file that jaxmnist.convert wrote, or a network that
                 comes with the package; default: model3. The others are
                 {packaged}
  --json         print one list of objects (file, text, digits: digit, probability, box) and
                 nothing else; a box is [x0, y0, x1, y1] in pixels of the upright picture
  --plot FILE    draw the boxes, and the digits as the network sees them, into a PNG file
"""

_FLAGS = flags.FlagValues()
_FROM = flags.DEFINE_string("from", "model3", "A trained network.", flag_values=_FLAGS)
_JSON = flags.DEFINE_bool("json", False, "Print JSON and nothing else.", flag_values=_FLAGS)
_PLOT = flags.DEFINE_string("plot", None, "A PNG file to draw into.", flag_values=_FLAGS)
_FLAGS.set_gnu_getopt(True)

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
    if _PLOT.value is not None:
        file = _plot()
        if file.suffix != ".png":
            raise UserError(f"--plot {file} must end in .png")
        for image in _images:
            if os.path.exists(file) and os.path.exists(image) and os.path.samefile(file, image):
                raise UserError(f"--plot {file} is one of the images: choose another name")


def _plot() -> Path:
    return Path(os.path.expanduser(_PLOT.value or ""))


def _predict() -> None:
    classifier = sources.load(_FROM.value or "")
    photos, errors = [], []
    for file in _images:
        try:
            grey_HW = pictures.read(file)
        except UserError as error:
            errors.append(error)
            continue
        photos.append((file, grey_HW, reading.read(classifier, grey_HW)))
        if not _JSON.value:
            print(line(file, photos[-1][2]), flush=True)
    if _JSON.value:
        print(json.dumps([as_json(file, found) for file, _, found in photos]))
    if _PLOT.value and photos:
        from jaxmnist.photos import figure

        figure.draw(_plot(), photos)
    for error in errors[:-1]:  # one bad picture does not keep the others from being read
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise errors[-1]


if __name__ == "__main__":
    names = textwrap.fill(", ".join(n for n in sources.packaged() if n != "model3"), 80)
    cli.run(_predict, _parse, _USAGE.format(packaged=names))
