"""What it changes to hold out other images: recipes evaluated on 10,000 of the training set's.

    python benchmarks/held_out.py [--recipes compact_sgd compact] [--draws 12]

The study holds out the same 10,000 images in every run. These runs hold out others each, drawn at
random, as a script does that calls torch's random_split without a seed; each draw is the same for
all recipes. Adds a line a run to results/held_out.jsonl, where "seed" is that of the draw and of
the run; goes on with the next run after an interruption, and prints what the file says.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import study
import study_report
from scipy import stats

from jaxmnist import data, published, recipes
from jaxmnist.runs import train
from jaxmnist.training import parallel

RESULTS = Path(__file__).parent / "results" / "held_out.jsonl"
_SIZE = 10_000


def drawn(images: data.Dataset, draw: int) -> tuple[data.Dataset, data.Dataset]:
    """What is left of the images, and those that the draw holds out."""
    order_N = np.random.default_rng(draw).permutation(len(images))
    kept, held_out = (
        data.Dataset(images.images_NHW[part], images.labels_N[part])
        for part in np.split(order_N, [-_SIZE])
    )
    return kept, held_out


def sentences(lines: Sequence[study_report.Line]) -> list[str]:
    """What the runs of each recipe say, beside what was published."""
    found = []
    for recipe, publication in published.load_all().items():
        own = study_report.runs(lines, recipe)
        if len(own) > 1:
            final, best = (
                study_report.Sample.of([line[name] for line in own])
                for name in ("final_accuracy", "best_accuracy")
            )
            text = f"{recipe}: final epoch {final}, best epoch {best.mean:.3f} ± {best.sd:.3f}"
            if (highest := publication["best_accuracy"]) is not None:
                below = sum(line["best_accuracy"] < highest for line in own)
                text += f", {below} of {best.size} below the published {highest:.2f}"
            found.append(text)
    return found


def correlations(
    lines: Sequence[study_report.Line], fixed: Sequence[study_report.Line]
) -> list[str]:
    """How far a draw moves two recipes alike, beside how far a seed alone does.

    Args:
      lines: of runs whose seed drew their images, too.
      fixed: of runs that hold out the same images.
    """
    found = []
    for pair in itertools.combinations(published.load_all(), 2):
        by_draw, by_seed = (_finals(own, pair) for own in (lines, fixed))
        if min(len(by_draw), len(by_seed)) > 3:  # an interval needs four
            found.append(
                f"{pair[0]} and {pair[1]}, correlation of final epochs: by draw "
                f"{_correlation(by_draw)}, by seed on the study's images {_correlation(by_seed)}"
            )
    return found


def _finals(lines: Sequence[study_report.Line], pair: Sequence[str]) -> np.ndarray:
    """The final epochs of two recipes, (N, 2), of the seeds that both have."""
    first, second = (
        {line["seed"]: line["final_accuracy"] for line in study_report.runs(lines, name)}
        for name in pair
    )
    both = sorted(first.keys() & second.keys())
    return np.array([(first[seed], second[seed]) for seed in both]).reshape(-1, 2)


def _correlation(finals_N2: np.ndarray) -> str:
    """With Fisher's 95 % interval."""
    result: Any = stats.pearsonr(*finals_N2.T)
    low, high = result.confidence_interval(0.95)
    return f"{result.statistic:.2f} ({low:.2f} to {high:.2f}, n = {len(finals_N2)})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Recipes with other images held out.")
    held_out = [name for name in published.load_all() if recipes.load(name).split == "train/val"]
    parser.add_argument(
        "--recipes", nargs="+", choices=held_out, default=["compact_sgd", "compact"]
    )
    parser.add_argument("--draws", type=study.at_least_one, default=12)
    arguments = parser.parse_args()
    parallel.use_every_core()
    images, _ = data.load("mnist", "train/test")
    lock = study.alone(RESULTS)
    for recipe in dict.fromkeys(arguments.recipes):
        fields = study_report.fields(recipe)
        for draw in study.missing(recipe, arguments.draws, "jaxmnist", RESULTS):
            config = recipes.load(recipe)
            config.seed = draw
            parts = drawn(images, draw)
            with (
                tempfile.TemporaryDirectory() as folder,
                mock.patch.object(data, "load", return_value=parts),
            ):
                train.run(config, Path(folder) / "run")
                for line in study.lines_of(recipe, fields, Path(folder) / "run"):
                    study.add(line, RESULTS)
    lock.release()
    lines = study_report.read(RESULTS)
    print("\n".join(sentences(lines) + correlations(lines, study_report.read(study.RESULTS))))


if __name__ == "__main__":
    study_report.tell_in_one_line(main)
