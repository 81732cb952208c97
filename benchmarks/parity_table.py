"""Prints the README's table: how far each recipe is from PyTorch, in one step and over 200.

    python benchmarks/parity_table.py

About three minutes on two cores. What the columns mean, and the result, is in the README.
"""

import sys
from pathlib import Path

import jax
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # torch's side is there
from torch_parity import (
    RECIPES,
    forward_error,
    parameter_counts,
    step_errors,
    stray,
    trajectories,
)

from jaxmnist import data


def main() -> None:
    torch.set_num_threads(1)  # two runtimes with two spinning threads each would starve each other
    train, test = data.load("mnist", "train/test")
    images_NHW, labels_N = test.images_NHW[:128], test.labels_N[:128]
    print(
        "| recipe | parameters | forward | gradient | weights, 20 steps "
        "| losses, 200 steps, float64 | float32 | torch's float32 |\n| --- " + "| --: " * 7 + "|"
    )
    for recipe in RECIPES:
        torch_count, count = parameter_counts(recipe)
        exact, double = trajectories(recipe, train, float64=True)
        torch_single, single = trajectories(recipe, train, float64=False)
        figures = (
            forward_error(recipe, images_NHW, train=False),
            step_errors(recipe, images_NHW, labels_N).gradient,
            stray(single, exact).early_weights,
            stray(double, exact).losses,
            stray(single, exact).losses,
            stray(torch_single, exact).losses,
        )
        cells = " | ".join(f"{figure:.0e}" for figure in figures)
        print(
            f"| {recipe} | {count:,} {'=' if count == torch_count else '≠'} | {cells} |", flush=True
        )
    print(f"\njax {jax.__version__}, torch {torch.__version__}, {jax.default_backend()}")


if __name__ == "__main__":
    main()
