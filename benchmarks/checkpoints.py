"""What checkpoints cost: seconds a save, and their share of a whole run with default settings.

    python benchmarks/checkpoints.py [--recipe model3]

Runs `train.run` as the command does, with a stopwatch around each save and one around all epochs.
The peer is the rest of these: training, evaluation and the compilation of what comes last.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2: 15 saves of model3, median 0.042 s
(0.035 to 0.062), together 0.64 s of 49.3 s: 1.3 %.
"""

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import peers

from jaxmnist import published, recipes
from jaxmnist.runs import fit, train
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.training import parallel


def timed(function: Callable, seconds: list[float]) -> Callable:
    """Adds the seconds of each call."""

    def call(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **options)
        seconds.append(time.perf_counter() - started)
        return result

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a save and share of a run.")
    parser.add_argument("--recipe", default="model3", choices=list(published.load_all()))
    arguments = parser.parse_args()
    parallel.use_every_core()
    seconds: list[float] = []
    whole: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Checkpoints, "save", timed(Checkpoints.save, seconds)),
        mock.patch.object(fit, "fit", timed(fit.fit, whole)),
    ):
        train.run(recipes.load(arguments.recipe), Path(folder) / "run")
    today = datetime.date.today().isoformat()
    print(f"\n{arguments.recipe}, {today}, {peers.hardware()}, jax {jax.__version__}")
    print(
        f"{len(seconds)} saves: median {statistics.median(seconds):.3f} s ({min(seconds):.3f} to "
        f"{max(seconds):.3f}), together {sum(seconds):.2f} s of {sum(whole):.1f} s: "
        f"{100 * sum(seconds) / sum(whole):.1f} %"
    )


if __name__ == "__main__":
    main()
