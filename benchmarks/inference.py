"""How fast a trained network answers: images/s of `Classifier.predict`, seconds of the command.

    python benchmarks/inference.py [--repeats 5] [NETWORK ...]

The 10,000 test images in batches of 1,000, as uint8 in memory. The peer is onnxruntime with the
exported file, in the same process, in turns, with whole batches and with as many images at once as
jaxmnist takes. Then the command with one photo, from start to end, with its programs in the cache.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2, onnxruntime 1.32.0, thousand
images/s: model3 55.2 (49.5 to 59.5), onnxruntime 52.3 (51.1 to 54.7), with 128 images at once 81.8
(79.7 to 84.2); compact_tiny 89.2 (86.1 to 91.5), 104.6 (88.9 to 114.1) and 184.2 (174.9 to 185.9);
efficient 22.1 (17.7 to 22.2), 45.0 (44.0 to 47.0) and 52.5 (48.8 to 55.2). The command: 1.11 s
(1.07 to 1.19).
"""

import argparse
import datetime
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import peers
from PIL import Image

import jaxmnist
from jaxmnist import classifier, data

_BATCH = 1000


def onnx_predictor(session: onnxruntime.InferenceSession, size: int) -> Callable:
    """Of a batch so many images at once."""

    def predict(images_NHW: np.ndarray) -> None:
        for first in range(0, len(images_NHW), size):
            session.run(None, {"images": images_NHW[first : first + size]})

    return predict


def rate(predict: Callable, images_NHW: np.ndarray) -> float:
    """Thousand images/s."""
    started = time.perf_counter()
    for first in range(0, len(images_NHW), _BATCH):
        predict(images_NHW[first : first + _BATCH])
    return len(images_NHW) / (time.perf_counter() - started) / 1000


def shown(values: list[float], digits: int = 1) -> str:
    """Median (smallest to largest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to " + (
        f"{max(values):.{digits}f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of trained networks.")
    parser.add_argument("networks", nargs="*", default=["model3", "compact_tiny", "efficient"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    _, test = data.load("mnist", "train/test")
    today = datetime.date.today().isoformat()
    print(f"{today}, {peers.hardware()}, jax {jax.__version__}", end=", ")
    print(f"onnxruntime {onnxruntime.__version__}: thousand images/s")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            network = jaxmnist.load(name)
            file = Path(folder, f"{name}.onnx")
            jaxmnist.save(network, file)
            session = onnxruntime.InferenceSession(file)
            predictors = {
                "jaxmnist": network.predict,
                "onnxruntime": onnx_predictor(session, _BATCH),
                f"onnxruntime by {classifier.BATCH}": onnx_predictor(session, classifier.BATCH),
            }
            found: dict[str, list[float]] = {who: [] for who in predictors}
            for predict in predictors.values():
                rate(predict, test.images_NHW)  # compiles
            for _ in range(arguments.repeats):
                for who, predict in predictors.items():
                    found[who].append(rate(predict, test.images_NHW))
            print(f"{name}: " + ", ".join(f"{who} {shown(r)}" for who, r in found.items()))
        photo = Path(folder, "photo.png")
        Image.fromarray(255 - test.images_NHW[0]).resize((600, 600)).save(photo)
        command = [sys.executable, "-m", "jaxmnist.predict", str(photo)]
        seconds = []
        for _ in range(arguments.repeats + 1):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
    print(f"python -m jaxmnist.predict photo.png: {shown(seconds[1:], 2)} s")


if __name__ == "__main__":
    main()
