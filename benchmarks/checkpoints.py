"""What checkpoints cost: seconds a save, and their share of a whole run with default settings.

    python benchmarks/checkpoints.py [--recipe model3]

Runs `train.run` as the command does, with a stopwatch around each save. The peer is the run itself:
everything from the first epoch to the last that is not a save.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2: 15 saves of model3, median 0.041 s
(0.035 to 0.070), together 0.64 s beside 38.2 s of training: 1.6 % of both.
"""

import argparse
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import peers

from jaxmnist import published, recipes
from jaxmnist.runs import train
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.training import parallel


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds a save and share of a run.")
    parser.add_argument("--recipe", default="model3", choices=list(published.load_all()))
    arguments = parser.parse_args()
    parallel.use_every_core()
    save, seconds = Checkpoints.save, []

    def timed_save(*args, **kwargs) -> None:
        started = time.perf_counter()
        save(*args, **kwargs)
        seconds.append(time.perf_counter() - started)

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Checkpoints, "save", timed_save),
    ):
        summary = train.run(recipes.load(arguments.recipe), Path(folder) / "run")
    rest = summary["train_seconds"]
    today = datetime.date.today().isoformat()
    print(f"\n{arguments.recipe}, {today}, {peers.hardware()}, jax {jax.__version__}")
    print(
        f"{len(seconds)} saves: median {statistics.median(seconds):.3f} s ({min(seconds):.3f} to "
        f"{max(seconds):.3f}), together {sum(seconds):.2f} s; training {rest:.1f} s: "
        f"{100 * sum(seconds) / (sum(seconds) + rest):.1f} % of both"
    )


if __name__ == "__main__":
    main()
