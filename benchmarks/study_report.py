"""The study's table and figure, out of its file alone."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from machine import on_cpu
from matplotlib.figure import Figure
from scipy import special

from jaxmnist import published, recipes
from jaxmnist.config import what_is_trained
from jaxmnist.errors import OneLineError, UserError
from jaxmnist.runs import scores

FIGURE = Path(__file__).parent / "figures" / "study.png"
BAR = 99.40  # percent, that these exercises ask for
ENOUGH = 10  # runs, for a figure to be quoted elsewhere
_BLUE, _VERMILION = "#0072B2", "#D55E00"

Line = dict[str, Any]


def tell_in_one_line(main: Callable[[], None]) -> None:
    """Runs a command; what its user can mend is told without a traceback."""
    try:
        main()
    except OneLineError as error:
        sys.exit(str(error))


def read(file: Path) -> list[Line]:
    """Every line of the study; [] before the first.

    Raises:
      UserError: where one was not written to its end.
    """
    lines = []
    for number, text in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise UserError(f"{file}: line {number} is no JSON: delete it") from error
    return lines


def fields(recipe: str) -> Line:
    """What a recipe sets, but for the number of epochs."""
    set_fields = what_is_trained(recipes.load(recipe))
    return {name: value for name, value in set_fields.items() if name != "num_epochs"}


def runs(lines: Sequence[Line], recipe: str, peer: str = "jaxmnist") -> list[Line]:
    """Those of a recipe as it is today, of the newest version of the package that there is.

    Args:
      peer: what trained them, jaxmnist or torch.

    Raises:
      UserError: where a seed is there twice.
    """
    kind = recipe, peer, recipes.load(recipe).num_epochs, fields(recipe)
    found = [
        one for one in lines if (one["recipe"], one["peer"], one["epochs"], one["fields"]) == kind
    ]

    def number(line: Line) -> tuple[int, ...]:
        return tuple(map(int, line["version"].split(".")))

    newest = [one for one in found if number(one) == max(map(number, found))]
    seeds = [one["seed"] for one in newest]
    if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
        raise UserError(
            f"{recipe}, {peer}: seeds {twice} are there twice: delete their second lines"
        )
    return newest


def interval(values: Sequence[float]) -> float:
    """Half-width of the mean's 95 % t-interval, of two values or more."""
    half: Any = scores.summary(values)["ci95"]
    return half


class Sample(NamedTuple):
    """What is left of some values."""

    mean: float
    sd: float
    size: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f} (n = {self.size})"


def welch(sample: Sample, other: Sample) -> tuple[float, float]:
    """The difference of two means, and the half-width of its 95 % interval (Welch, 1947)."""
    parts = [each.sd**2 / each.size for each in (sample, other)]
    squares = [part**2 / (s.size - 1) for part, s in zip(parts, (sample, other), strict=True)]
    freedom = sum(parts) ** 2 / sum(squares)
    half = float(special.stdtrit(freedom, 0.975)) * sum(parts) ** 0.5
    return sample.mean - other.mean, half


def _row(recipe: str, lines: Sequence[Line]) -> str:
    final = [line["final_accuracy"] for line in lines]
    best = [line["best_accuracy"] for line in lines]
    end = np.mean([value >= BAR for value in final])
    held = np.mean([min(line["accuracies"][-3:]) >= BAR for line in lines])
    publication = published.load_all()[recipe]["best_accuracy"]
    there = "none"
    if publication is not None:
        below = 100 * np.mean([value < publication for value in best])
        there = f"{publication:.2f} ({below:.0f} %)"
    cells = (
        f"`{recipe}`",
        str(len(lines)),
        f"{np.mean(final):.3f} ± {np.std(final, ddof=1):.3f}",
        f"± {interval(final):.3f}",
        f"{min(final):.2f} to {max(final):.2f}",
        f"{np.mean(best):.3f} (+{np.mean(best) - np.mean(final):.3f})",
        there,
        f"{100 * end:.0f} %",
        f"{100 * held:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def measured(lines: Sequence[Line], recipe: str) -> str | None:
    """What the docstring in configs/ says once there are ENOUGH runs; None before."""
    own = runs(lines, recipe)
    if len(own) < ENOUGH:
        return None
    final = [line["final_accuracy"] for line in own]
    best = [line["best_accuracy"] for line in own]
    return (
        f"measured {np.mean(final):.3f} ± {np.std(final, ddof=1):.3f} % (final epoch, "
        f"n = {len(own)}), {np.mean(best):.3f} % (best epoch, mean)."
    )


def table(lines: Sequence[Line]) -> str:
    """In Markdown, a row a recipe of which there are two runs at least."""
    header = [
        "| recipe | n | final epoch, mean ± sd | mean, 95 % | min to max | best epoch (gain) "
        "| published best (ours below it) | final ≥ 99.40 | last three ≥ 99.40 |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    of_recipe = {recipe: runs(lines, recipe) for recipe in published.load_all()}
    rows = [_row(recipe, own) for recipe, own in of_recipe.items() if len(own) > 1]
    return "\n".join([*header, *rows])


def comparison(lines: Sequence[Line]) -> list[str]:
    """A sentence for each recipe that was trained in PyTorch too, or on a CPU and on a GPU."""
    sentences = []
    for recipe in published.load_all():
        ours, theirs = (runs(lines, recipe, peer) for peer in ("jaxmnist", "torch"))
        cpu = [run for run in ours if on_cpu(run["device"])]
        gpu = [run for run in ours if not on_cpu(run["device"])]
        for pair in ({"jaxmnist": ours, "torch": theirs}, {"on a CPU": cpu, "on a GPU": gpu}):
            if min(map(len, pair.values())) > 1:
                sentences.append(f"{recipe}: {_difference(pair)}")
    return sentences


def _difference(pair: Mapping[str, Sequence[Line]]) -> str:
    samples = [Sample.of([run["final_accuracy"] for run in of_one]) for of_one in pair.values()]
    first, second = (f"{name} {sample}" for name, sample in zip(pair, samples, strict=True))
    difference, half = welch(*samples)
    difference = round(difference, 3) + 0.0  # no -0.000
    return f"{first}, {second}: difference {difference:+.3f}, 95 % interval ± {half:.3f}"


def draw(lines: Sequence[Line], file: Path) -> None:
    """A row a recipe: a dot a run, mean and interval, the published figure as a mark."""
    found = {name: runs(lines, name) for name in published.load_all()}
    names = [name for name, own in found.items() if own]
    figure = Figure(figsize=(9, 0.8 + 0.62 * len(names)), layout="constrained")
    axes = figure.subplots()
    for height, name in enumerate(names):
        final = np.array([line["final_accuracy"] for line in found[name]])
        spread = np.random.default_rng(0).uniform(-0.17, 0.17, len(final))
        axes.scatter(100 - final, height + spread, s=14, color=_BLUE, alpha=0.55, lw=0)
        half = interval(final.tolist()) if len(final) > 1 else 0.0
        axes.errorbar(100 - final.mean(), height, xerr=half, fmt="|", color="black", ms=16, lw=2)
        best = published.load_all()[name]["best_accuracy"]
        if best is not None:
            axes.plot(100 - best, height, "D", color=_VERMILION, ms=7, mfc="none", mew=1.6)
    axes.set_xscale("log")
    axes.invert_xaxis()
    ticks = [accuracy for accuracy in (95, 96, 97, 98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7)]
    low, high = axes.get_xlim()
    ticks = [tick for tick in ticks if high <= 100 - tick <= low]
    axes.set_xticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.axvline(100 - BAR, color="#999999", lw=1, ls=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy (%), error rate on a log scale")
    axes.grid(axis="x", color="#e0e0e0", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Final epochs (dots), mean and its 95 % interval (bars), published best (diamonds)",
        fontsize=11,
    )
    figure.savefig(file, dpi=130, format="png")


def report(file: Path) -> None:
    lines = read(file)
    print(table(lines))
    print("\n".join(["", *comparison(lines), ""]))
    for recipe in recipes.names():
        if sentence := measured(lines, recipe):
            print(f"configs/{recipe}.py: {sentence}")
    draw(lines, FIGURE)
    print(f"\ndrew {FIGURE}")
