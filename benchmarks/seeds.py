"""Images per second in total against the number of networks that train in one program.

    python benchmarks/seeds.py [--recipe model3] [--seeds 1 4 16 64 256] [--settings 16]
                               [--repeats 5]

``--seeds`` differ in their seeds alone, ``--settings`` in all numbers of the recipe.

Beside them the fastest of PyTorch's variants (see torch_peers.py): one seed in one process, and on
a CPU a seed in each of as many processes as there are cores, of one thread each.

Results, 2026-11-27, thousand images/s. With --repeats 3, two cores of an AMD EPYC (Zen 5), jax
0.10.2, torch 2.13.0: PyTorch 8.4 with one seed, 10.1 with two in two processes; jaxmnist 22.0 with
one seed, 24.5 with 4, 25.1 with 16, 24.1 with 64, 23.6 with 256, 25.1 with 16 settings. With
--repeats 4, NVIDIA H200, jax 0.11.2, torch 2.11.0: PyTorch 33.4; jaxmnist 301 with one seed, 1,475
with 16, 1,915 with 64.
"""

import argparse
import datetime
import statistics
import time

import jax
import peers
import torch

from jaxmnist import data, published, recipes
from jaxmnist.networks import target
from jaxmnist.runs import assemble
from jaxmnist.training import parallel


def rates(run: peers.Run, images: int, repeats: int) -> list[float]:
    """Images/s of each repeat, after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        found.append(images / (time.perf_counter() - started))
    return found[1:]


def _cells(found: list[float]) -> str:
    median = statistics.median(found)
    return f"{median / 1000:,.1f} | {min(found) / 1000:,.1f} to {max(found) / 1000:,.1f}"


def _peak_memory() -> str:
    """The most that was ever taken on the first device, in MB; a CPU does not count it."""
    counted = jax.devices()[0].memory_stats()
    return f"{counted['peak_bytes_in_use'] / 1e6:,.0f}" if counted else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description="Images/s against the number of seeds.")
    parser.add_argument("--recipe", default="model3", choices=list(published.load_all()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--settings", type=int, nargs="*", default=[16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()

    parallel.use_every_core()
    train, _ = data.load("mnist", "train/test")
    config = recipes.load(arguments.recipe)
    today = datetime.date.today().isoformat()
    print(f"{arguments.recipe}, {arguments.precision}, {today}, {peers.hardware()}")
    print(f"jax {jax.__version__}, torch {torch.__version__}; {arguments.repeats} repeats")
    print("thousand images/s of all seeds together\n")
    print(
        "| networks | devices, seed × data | median | spread | times PyTorch | device memory, MB |"
    )
    print("| --: | --- | --: | --- | --: | --: |")
    steps = 32
    images, cores = steps * config.batch_size, torch.get_num_threads()
    best_rate = 0.0
    for seeds, variants in ((1, peers.ALONE), (cores, peers.A_SEED_EACH)):
        torch_rates = {
            name: rates(
                prepare(recipes.load(arguments.recipe), train, steps),
                seeds * images,
                arguments.repeats,
            )
            for name, prepare in variants.items()
        }
        if torch_rates:
            best = max(torch_rates, key=lambda name: statistics.median(torch_rates[name]))
            best_rate = max(best_rate, statistics.median(torch_rates[best]))
            print(
                f"| {seeds} seeds | PyTorch, {best} | {_cells(torch_rates[best])} | | |", flush=True
            )
    counts = [(count, "seeds") for count in arguments.seeds]
    for count, differing in [*counts, *((n, "settings") for n in arguments.settings)]:
        config = recipes.load(arguments.recipe)
        config.num_seeds, config.precision = count, arguments.precision
        mesh = assemble.mesh(config).shape
        # On a CPU a step of hundreds of seeds takes seconds, and fewer will do.
        steps = max(2, 2 * target.current().steps_of(count))
        images = steps * config.batch_size * count
        run = config if differing == "seeds" else peers.other_settings(config, count)
        found = rates(peers.jaxmnist(run, train, steps), images, arguments.repeats)
        ratio = statistics.median(found) / best_rate
        devices = f"{mesh[parallel.SEED]} × {mesh[parallel.DATA]}"
        cells = f"{devices} | {_cells(found)} | {ratio:.1f} | {_peak_memory()}"
        print(f"| {count} {differing} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
