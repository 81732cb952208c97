"""Images per second of training: jaxmnist beside PyTorch and stock Flax, in one run.

    python benchmarks/throughput.py [--recipes model3 …] [--repeats 7] [--json FILE]

The peers: jaxmnist's own programs; PyTorch eager, eager in channels-last and torch.compile, each in
one process and, on a CPU, in one process of one thread a core that average their gradients (see
torch_peers.py), on a GPU also with CUDA graphs; flax.linen with its own Conv. Each repeat runs all
of them, 32 steps each, so that what else the machine does hits all alike; and each runs once more
just before, untimed, because the caches hold what the peer before it left. The first run, which
holds the compilation, is shown apart. The ratio is jaxmnist's median over the best PyTorch
median. GFLOP/s are those of jaxmnist's matrix products, beside what bare float32 products of
1024×1024 reach on the same cores in the same repeats.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2, torch 2.13.0, 5 repeats: ratio
2.56 for model3, 2.50 for compact_tiny, 2.07 for lightweight, 1.92 for model1, 1.84 for efficient,
1.75 for compact, 1.69 for compact_sgd, 1.62 for net8k, 1.47 for model2; 22 to 36 % of bare
products. The table is in the README. Two processes of one thread are PyTorch's best form for six.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import arithmetic
import flax as flax_library
import jax
import peers
import torch

from jaxmnist import data, published, recipes
from jaxmnist.training import parallel

TORCH = {**peers.ALONE, **peers.ONE_NETWORK}
PEERS = {"jaxmnist": peers.jaxmnist, **TORCH, "flax": peers.flax}


def _spread(found: list[float]) -> dict[str, float]:
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def measure(
    recipe: str, train: data.Dataset, bare: arithmetic.BareProducts, repeats: int, steps: int
) -> dict[str, Any]:
    """Median, smallest and largest images/s and the seconds of the first repeat, of every peer."""
    runs, first = {}, {}
    for name, prepare in PEERS.items():
        started = time.perf_counter()
        runs[name] = prepare(recipes.load(recipe), train, steps)
        runs[name]()
        first[name] = time.perf_counter() - started
    config = recipes.load(recipe)
    images = steps * config.batch_size
    rates: dict[str, list[float]] = {name: [] for name in runs}
    bare_gflops = []
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            rates[name].append(images / (time.perf_counter() - started))
        bare_gflops.append(bare.gflops())
    figures = {
        name: {**_spread(found), "first_seconds": first[name]} for name, found in rates.items()
    }
    best_torch = max(TORCH, key=lambda name: figures[name]["median"])
    median = figures["jaxmnist"]["median"]
    return {
        "recipe": recipe,
        "peers": figures,
        "best_torch": best_torch,
        "ratio": median / figures[best_torch]["median"],
        "gflops": median * arithmetic.flops_per_image(config.model) / 1e9,
        "bare_gflops": _spread(bare_gflops),
    }


def _row(result: dict[str, Any]) -> str:
    figures = result["peers"]

    def cell(*names: str) -> str:
        if not names:
            return "–"
        best = max(names, key=lambda name: figures[name]["median"])
        f = figures[best]
        called = f" {best.removeprefix('DDP, ')}" if len(names) > 1 else ""
        return f"{f['median'] / 1000:.1f} ({f['min'] / 1000:.1f} to {f['max'] / 1000:.1f}){called}"

    share = 100 * result["gflops"] / result["bare_gflops"]["median"]
    cells = [
        f"`{result['recipe']}`",
        cell("jaxmnist"),
        cell(*peers.ALONE),
        cell(*peers.ONE_NETWORK),
        cell("flax"),
        f"{result['ratio']:.2f}",
        f"{result['gflops']:.0f}, {share:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


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
    bare = arithmetic.BareProducts()
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
    columns = ["recipe", "jaxmnist", "PyTorch, one process", "PyTorch, a process a core", "flax"]
    print(f"| {' | '.join(columns)} | ratio | GFLOP/s, of bare products |")
    print(f"| --- {'| --: ' * (len(columns) + 1)}|")
    results = []
    for recipe in arguments.recipes:
        results.append(measure(recipe, train, bare, arguments.repeats, arguments.steps))
        print(_row(results[-1]), flush=True)
    bare_gflops = [result["bare_gflops"]["median"] for result in results]
    print(f"\nbare products: {min(bare_gflops):.0f} to {max(bare_gflops):.0f} GFLOP/s")
    print("\nthousand images/s of every variant, and seconds until its first repeat was done:")
    for result in results:
        seconds = (
            f"{name} {f['median'] / 1000:.1f} ({f['first_seconds']:.1f} s)"
            for name, f in result["peers"].items()
        )
        print(f"  {result['recipe']:<13} {'; '.join(seconds)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
