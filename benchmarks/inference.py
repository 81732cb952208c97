"""How fast a trained network answers: images/s of `Classifier.predict`, seconds of the command.

    python benchmarks/inference.py [--repeats 5] [NETWORK ...]

The 10,000 test images in batches of 1,000, as uint8 in memory. The peer is onnxruntime with the
exported file, in the same process, in turns. Then the command with one photo, from start to end,
with its programs in the cache.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2, onnxruntime 1.32.0, thousand
images/s: model3 57.6 (52.0 to 68.2), onnxruntime 56.0 (47.3 to 57.5); compact_tiny 96.9 (86.3 to
109.8) and 122.5 (90.8 to 130.8); efficient 21.9 (20.3 to 22.6) and 45.6 (39.9 to 48.4). The
command: 1.10 s (1.06 to 1.17).
"""

import argparse
import datetime
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import peers
from PIL import Image

import jaxmnist
from jaxmnist import data

_BATCH = 1000


def rate(predict, images_NHW: np.ndarray) -> float:
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
            classifier = jaxmnist.load(name)
            file = Path(folder, f"{name}.onnx")
            jaxmnist.save(classifier, file)
            session = onnxruntime.InferenceSession(file)

            def peer(images_NHW: np.ndarray, session=session) -> None:
                session.run(None, {"images": images_NHW})

            found: dict[str, list[float]] = {"jaxmnist": [], "onnxruntime": []}
            rate(classifier.predict, test.images_NHW)  # compiles
            for _ in range(arguments.repeats):
                found["jaxmnist"].append(rate(classifier.predict, test.images_NHW))
                found["onnxruntime"].append(rate(peer, test.images_NHW))
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
