"""Images per second over 1, 2, 4 and 8 devices, along either axis of the mesh, and how equal.

    python benchmarks/scaling.py [--recipe model3] [--devices 1 2 4 8] [--repeats 5]

Axis `data`: one seed, each batch split. Axis `seed`: eight seeds, spread. The peer is the first
count of devices, in the same process. "Weights" and "losses" are the largest difference of a weight
after 50 steps, and of a loss on the way, from the peer's, augmentation and dropout included; at a
learning rate of 0.0001, since at the recipe's own rounding grows a thousandfold whatever its cause.
On a CPU the devices are virtual and share its cores: more of them than cores only show what they
cost.
"""

import argparse
import datetime
import statistics
import time
from typing import Any

import jax
import numpy as np
import peers

from jaxmnist import data, published, recipes
from jaxmnist.config import Config
from jaxmnist.runs.cohort import Cohort
from jaxmnist.training import parallel

NUM_SEEDS = 8
EQUALITY_STEPS = 50


def configured(recipe: str, axis: str, devices: int) -> Config:
    config = recipes.load(recipe)
    config.num_seeds = NUM_SEEDS if axis == parallel.SEED else 1
    config.mesh.seed, config.mesh.data = (devices, 1) if axis == parallel.SEED else (1, devices)
    return config


def trained(config: Config, train: data.Dataset) -> tuple[Any, np.ndarray]:
    """Parameters and losses (S, steps) after a few slow steps."""
    config.steps_per_epoch, config.schedule.name = EQUALITY_STEPS, "constant"
    config.optimizer.learning_rate = 1e-4
    cohort = Cohort.of([config], len(train))
    few = data.Dataset(train.images_NHW[:1], train.labels_N[:1])  # to evaluate: not used
    programs = cohort.programs(cohort.mesh(), train, few)
    states, losses = programs.init(), []
    order_SN = programs.epoch_order(1)
    for segment in programs.segments:
        states, metrics = programs.train(states, order_SN, segment)
        losses.append(np.asarray(metrics.loss))
    return jax.device_get(states.params), np.concatenate(losses, 1)


def distance(found: Any, expected: Any) -> float:
    """Largest difference of two numbers in the same place."""
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images/s against the number of devices.")
    parser.add_argument("--recipe", default="model3", choices=list(published.load_all()))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    jax.config.update("jax_num_cpu_devices", max(arguments.devices))
    train, _ = data.load("mnist", "train/test")
    counts = [count for count in arguments.devices if count <= jax.device_count()]
    today = datetime.date.today().isoformat()
    print(f"{arguments.recipe}, {today}, {peers.hardware()}, jax {jax.__version__}")
    print(f"{jax.device_count()} devices; median of {arguments.repeats} interleaved repeats\n")
    print("| axis | devices | thousand images/s | spread | times the first | weights | losses |")
    print("| --- | --: | --: | --- | --: | --: | --: |")
    for axis in (parallel.DATA, parallel.SEED):
        runs, rates = {}, {count: [] for count in counts}
        steps = 32 if axis == parallel.DATA else 8
        first = configured(arguments.recipe, axis, counts[0])
        images = steps * first.batch_size * first.num_seeds
        for count in counts:
            config = configured(arguments.recipe, axis, count)
            runs[count] = peers.jaxmnist(config, train, steps)
            runs[count]()
        for _ in range(arguments.repeats):
            for count, run in runs.items():
                started = time.perf_counter()
                run()
                rates[count].append(images / (time.perf_counter() - started))
        ends = {
            count: trained(configured(arguments.recipe, axis, count), train) for count in counts
        }
        medians = {count: statistics.median(rates[count]) for count in counts}
        for count in counts:
            params, losses = ends[count]
            first_params, first_losses = ends[counts[0]]
            spread = f"{min(rates[count]) / 1000:.1f} to {max(rates[count]) / 1000:.1f}"
            print(
                f"| {axis} | {count} | {medians[count] / 1000:.1f} | {spread} "
                f"| {medians[count] / medians[counts[0]]:.2f} "
                f"| {distance(params, first_params):.0e} | {distance(losses, first_losses):.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
