"""Trains the packaged networks, each recipe by its own command, and writes jaxmnist/weights/.

    python benchmarks/weights.py [--workdir runs/weights] [RECIPE ...]

Seed 0 and the last epoch, whatever came out. What is trained already is not trained again. 26
minutes for the nine published ones on two cores of an AMD EPYC (Zen 4), with other work beside it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import jaxmnist
from jaxmnist import data, recipes, sources

_SETS = {"train/test": "test", "train/val": "validation"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains and packs the networks.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=recipes.names())
    parser.add_argument("--workdir", type=Path, default=Path("runs/weights"))
    args = parser.parse_args()
    sources.WEIGHTS.mkdir(exist_ok=True)
    _, test = data.load("mnist", "train/test")
    print("| network | parameters | accuracy, final epoch | of 10,000 test images right |")
    print("| --- | --: | --: | --: |")
    for name in args.recipes:
        run = args.workdir / name
        command = [sys.executable, "-m", "jaxmnist.main", "--config", name, "--workdir", str(run)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        classifier = jaxmnist.load(run)
        correct = int((classifier.predict(test.images_NHW).digits == test.labels_N).sum())
        classifier.metadata["test_correct"] = str(correct)
        jaxmnist.save(classifier, sources.WEIGHTS / f"{name}.safetensors")
        known = classifier.metadata
        accuracy = f"{float(known['final_accuracy']):.2f} % ({_SETS[classifier.config.split]})"
        print(f"| `{name}` | {int(known['params']):,} | {accuracy} | {correct:,} |", flush=True)


if __name__ == "__main__":
    main()
