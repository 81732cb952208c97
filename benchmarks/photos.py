"""How many photos, rows, printed digits and digits of other writers are read right.

    pip install scikit-learn
    python benchmarks/photos.py [--network model3]

Photos and rows are those of tests/photos/test_reading.py, made of MNIST's test digits. The other
two are digits that MNIST has nothing to do with: fonts that come with matplotlib, and the 1,797
digits of 13 other writers that scikit-learn has, 8×8 pixels, enlarged to 160. The peer is the
network on the test images that the photos are made of.

Result, 2026-11-27, model3: 995 of 1,000 test images, 993 photos of them, 195 of 200 rows, 199 of
200 printed digits, 1,592 of 1,797 digits of other writers (88.6 %). A photo takes 0.09 s on two
cores of an AMD EPYC (Zen 5), median.
"""

import argparse
import datetime
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import peers
from PIL import Image, ImageDraw, ImageFont

import jaxmnist
from jaxmnist import data
from jaxmnist.classifier import Classifier
from jaxmnist.photos.reading import read

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the photos are made there

from photos_of_digits import photo_of, row_of

_FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10", "cmss10", "cmtt10", "cmti10")


def fonts() -> list[Path]:
    """Those of matplotlib that have digits."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    found = {path for pattern in _FONTS for path in folder.glob(f"{pattern}.ttf")}
    return sorted(path for path in found if "Display" not in path.name)


def printed(classifier: Classifier) -> tuple[int, int]:
    """Digits of all fonts, one in a picture."""
    right = 0
    for path in fonts():
        font = ImageFont.truetype(str(path), 200)
        for digit in "0123456789":
            picture = Image.new("L", (320, 320), 235)
            ImageDraw.Draw(picture).text((100, 50), digit, font=font, fill=30)
            right += read(classifier, np.asarray(picture, np.float32)).text == digit
    return right, 10 * len(fonts())


def other_writers(classifier: Classifier) -> tuple[int, int]:
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()  # no dependency
    right = 0
    for image_HW, label in zip(digits.images, digits.target, strict=True):
        small = Image.fromarray((255 * image_HW / 16).astype(np.float32))
        large_HW = np.asarray(small.resize((160, 160), Image.Resampling.BICUBIC)).clip(0, 255)
        right += read(classifier, 255 - large_HW).text == str(label)
    return right, len(digits.target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy on photos and other pictures.")
    parser.add_argument("--network", default="model3")
    arguments = parser.parse_args()
    classifier = jaxmnist.load(arguments.network)
    _, test = data.load("mnist", "train/test")
    seconds = []

    def timed(grey_HW: np.ndarray) -> str:
        started = time.perf_counter()
        text = read(classifier, grey_HW).text
        seconds.append(time.perf_counter() - started)
        return text

    alone = [timed(grey_HW) == text for grey_HW, text in (photo_of(test, n) for n in range(1000))]
    rows = [timed(grey_HW) == text for grey_HW, text in (row_of(test, n) for n in range(200))]
    images = classifier.predict(test.images_NHW[:1000]).digits == test.labels_N[:1000]
    found = {
        "the test images themselves": (int(images.sum()), len(images)),
        "photos of them": (sum(alone), len(alone)),
        "rows of 3 to 6, all digits right": (sum(rows), len(rows)),
        "printed digits": printed(classifier),
        "digits of other writers": other_writers(classifier),
    }
    today = datetime.date.today().isoformat()
    print(f"{arguments.network}, {today}, {peers.hardware()}")
    for what, (right, of) in found.items():
        print(f"{what:<34}{right:>6,} of {of:>6,}{100 * right / of:>8.1f} %")
    median, most = np.median(seconds), max(seconds)
    print(f"a photo takes {median:.2f} s (median; at most {most:.2f} s), without its file")


if __name__ == "__main__":
    main()
