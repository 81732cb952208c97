"""Images per second of training: jaxmnist beside PyTorch and stock Flax, in one run.

    python benchmarks/throughput.py [--recipes model3 …] [--repeats 7] [--json FILE]

The peers (see peers.py): jaxmnist's own programs; PyTorch eager, eager in channels-last,
torch.compile, and on a GPU with CUDA graphs; flax.linen with its own Conv. Each repeat runs all of
them once, 32 steps each, so that what else the machine does hits all alike. The first repeat holds
the compilation and is shown apart. The ratio is jaxmnist's median over the best PyTorch median.

Result, 2026-11-20, two cores of an AMD EPYC (Zen 5), jax 0.10.2, torch 2.13.0, three runs of 5
repeats: ratio 2.6 to 2.8 for model3, 2.7 to 2.9 for compact_tiny, 2.2 to 2.5 for lightweight, 2.1
to 2.6 for model1, 1.8 to 2.0 for efficient, compact and compact_sgd, 1.6 to 1.7 for net8k, 1.48
to 1.55 for model2; 4 to 7 times stock Flax. The table is in the README.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import flax as flax_library
import jax
import peers
import torch

from jaxmnist import data, parallel, published

PEERS = {"jaxmnist": peers.jaxmnist, **peers.TORCH, "flax": peers.flax}


def measure(recipe: str, train: data.Dataset, repeats: int, steps: int) -> dict[str, Any]:
    """Median, smallest and largest images/s and the seconds of the first repeat, of every peer."""
    runs, first = {}, {}
    for name, prepare in PEERS.items():
        started = time.perf_counter()
        runs[name] = prepare(peers.load_config(recipe), train, steps)
        runs[name]()
        first[name] = time.perf_counter() - started
    images = steps * peers.load_config(recipe).batch_size
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            rates[name].append(images / (time.perf_counter() - started))
    figures = {
        name: {
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "first_seconds": first[name],
        }
        for name, found in rates.items()
    }
    best_torch = max(peers.TORCH, key=lambda name: figures[name]["median"])
    return {
        "recipe": recipe,
        "peers": figures,
        "best_torch": best_torch,
        "ratio": figures["jaxmnist"]["median"] / figures[best_torch]["median"],
    }


def _row(result: dict[str, Any]) -> str:
    cells = [
        f"{f['median'] / 1000:.1f} ({f['min'] / 1000:.1f} to {f['max'] / 1000:.1f})"
        for f in result["peers"].values()
    ]
    return f"| {result['recipe']} | {' | '.join(cells)} | {result['ratio']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Images/s of jaxmnist, PyTorch and stock Flax.")
    recipes = list(published.load_all())
    parser.add_argument("--recipes", nargs="+", default=recipes, choices=recipes, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="steps a repeat")
    parser.add_argument("--json", type=Path, help="write every figure to this file, too")
    arguments = parser.parse_args()

    parallel.use_every_core()
    train, _ = data.load("mnist", "train/test")
    header = {
        "date": datetime.date.today().isoformat(),
        "hardware": peers.hardware(),
        "jax": jax.__version__,
        "flax": flax_library.__version__,
        "torch": torch.__version__,
        "repeats": arguments.repeats,
        "steps": arguments.steps,
    }
    print(", ".join(f"{name} {value}" for name, value in header.items()))
    print("thousand images/s: median (smallest to largest); ratio to the best PyTorch variant\n")
    print(f"| recipe | {' | '.join(PEERS)} | ratio |\n| --- {'| --: ' * (len(PEERS) + 1)}|")
    results = []
    for recipe in arguments.recipes:
        results.append(measure(recipe, train, arguments.repeats, arguments.steps))
        print(_row(results[-1]), flush=True)
    print("\nseconds until the first repeat was done, compilation included:")
    for result in results:
        seconds = (f"{name} {f['first_seconds']:.1f}" for name, f in result["peers"].items())
        print(f"  {result['recipe']:<13} {', '.join(seconds)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
