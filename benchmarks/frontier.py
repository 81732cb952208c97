"""The best network for each budget of parameters: what was tried, and what came out.

    python benchmarks/frontier.py --keep runs/sweep …
    python benchmarks/frontier.py --report

--keep adds the trials of sweeps (python -m jaxmnist.sweep) to results/frontier.jsonl, a line each:
settings are chosen there, on images held out of the training set. What the chosen recipes under_…
reach on the test set is trained by study.py; those whose name ends in _long may take 40 epochs:

    python benchmarks/study.py --recipes under_500 --seeds 20

--report prints the tables of the README and draws figures/frontier.png, out of these files alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import study_report
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study_report import Sample

import jaxmnist
from jaxmnist import published, recipes
from jaxmnist.config import FIELDS
from jaxmnist.errors import UserError
from jaxmnist.runs.workdir import write_atomically

RESULTS = Path(__file__).parent / "results"
TRIALS, STUDY = RESULTS / "frontier.jsonl", RESULTS / "study.jsonl"
FIGURE = Path(__file__).parent / "figures" / "frontier.png"
LONG = "_long"  # the end of a recipe's name
ABLATION = "ablation"
_BLUE, _SKY, _GREY, _VERMILION = "#0072B2", "#56B4E9", "#555555", "#D55E00"

Line = dict[str, Any]

CLAIMS = (
    (575, 98.00),  # hexhowells.com/posts/neural-golfing.html, pruned
    (697, 99.03),  # github.com/JoshWarn/Parameter-Efficient-MNIST, the best of about 700 runs
    (4_862, 99.07),  # github.com/ruslangrimov/mnist-minimal-model
    (7_070, 99.40),  # github.com/nitin-vig/ERAv4S6
    (7_918, 99.52),  # github.com/snehanshu-raj/ERA, assignment_6
    (8_932, 99.50),  # github.com/The-School-of-AI/era-s6-ram
    (15_794, 99.59),  # github.com/divya-r-kamat/EfficientMnist-Under20K
    (18_594, 99.60),  # github.com/piygr/s5erav1
)
"""Parameters and test accuracy of other networks as their authors give them: mostly the best epoch
of one run. Those of the nine recipes are in jaxmnist.published."""


def budgets() -> list[str]:
    """The recipes of the frontier, the smallest first, the long ones after the short ones."""
    names = [name for name in recipes.names() if name.startswith("under_")]
    return sorted(names, key=lambda name: (budget(name), name))


def budget(recipe: str) -> int:
    """The parameters that it stays below: 2000 for under_2k."""
    return int(recipe.removeprefix("under_").removesuffix(LONG).replace("k", "000"))


def kept(workdir: Path) -> list[Line]:
    """The trials of a sweep: what differs from the defaults, how many seeds, what came out."""
    if not (workdir / "trials.jsonl").is_file():
        raise UserError(
            f"{workdir} holds no results of a sweep: name a --workdir of jaxmnist.sweep"
        )
    sweep = json.loads((workdir / "sweep.json").read_text())["sweep"]
    fixed = {k.removeprefix("config."): v for k, v in sweep.items() if k.startswith("config.")}
    lines = []
    for text in (workdir / "trials.jsonl").read_text().splitlines():
        trial = json.loads(text)
        fields, sd = fixed | trial["settings"], trial["final_accuracy"]["sd"]
        lines.append(
            {
                "sweep": workdir.name,
                "params": trial["params"],
                "epochs": trial["epochs"],
                "seeds": fields.pop("num_seeds"),
                "accuracy": round(trial["final_accuracy"]["mean"], 6),
                "sd": None if sd is None else round(sd, 6),
                "version": jaxmnist.__version__,
                "fields": {k: v for k, v in sorted(fields.items()) if v != FIELDS[k].default},
            }
        )
    return lines


def keep(workdirs: Sequence[Path]) -> None:
    """Each sweep by its folder's name, instead of what was kept of it before."""
    names = {workdir.name for workdir in workdirs}
    lines = [line for line in study_report.read(TRIALS) if line["sweep"] not in names]
    for workdir in workdirs:
        lines += kept(workdir)
    write_atomically(TRIALS, "".join(json.dumps(line) + "\n" for line in lines))


class Point(NamedTuple):
    """The final epochs of a recipe."""

    params: int
    accuracies: list[float]

    def __str__(self) -> str:
        return str(Sample.of(self.accuracies))


def point(lines: Sequence[Line], recipe: str) -> Point | None:
    """None where there are not two runs."""
    runs = study_report.runs(lines, recipe)
    if len(runs) < 2:
        return None
    return Point(runs[0]["params"], [run["final_accuracy"] for run in runs])


def table(lines: Sequence[Line]) -> str:
    """In Markdown, a row a recipe of which there are two runs at least."""
    rows = [
        "| recipe | parameters | epochs | test, final epoch, mean ± sd |",
        "| --- | --: | --: | --: |",
    ]
    for name in budgets():
        if found := point(lines, name):
            epochs = recipes.load(name).num_epochs
            rows.append(f"| `{name}` | {found.params:,} | {epochs} | {found} |")
    return "\n".join(rows)


def ablations(trials: Sequence[Line]) -> str:
    """In Markdown, a row for each change that a sweep ablation_RECIPE_… made to ablation_RECIPE."""
    rows = []
    for recipe in budgets():
        sweep = f"{ABLATION}_{recipe}"
        tried = [trial for trial in trials if f"{trial['sweep']}_".startswith(f"{sweep}_")]
        if not recipe.endswith(LONG):
            tried = [one for one in tried if not one["sweep"].startswith(f"{sweep}{LONG}")]
        base = next((trial for trial in tried if trial["sweep"] == sweep), None)
        if base:
            rows += [_ablation(recipe, trial, base) for trial in tried]
    if not rows:
        return ""
    return "\n".join(
        (
            "| shortened recipe | changed | parameters | validation, final epoch, mean ± sd "
            "| difference, 95 % |",
            "| --- | --- | --: | --: | --: |",
            *rows,
        )
    )


def _ablation(recipe: str, trial: Line, base: Line) -> str:
    sample, row = _sample(trial), f"| `{recipe}` |"
    names = [name for name in FIELDS if setting(trial, name) != setting(base, name)]
    if not names:
        return f"{row} nothing | {trial['params']:,} | {sample} |  |"
    changed = ", ".join(f"`{name}={setting(trial, name)}`" for name in names)
    by, half = study_report.welch(sample, _sample(base))
    return f"{row} {changed} | {trial['params']:,} | {sample} | {by:+.3f} ± {half:.3f} |"


def setting(trial: Line, name: str) -> Any:
    """What a field was in a trial."""
    return trial["fields"].get(name, FIELDS[name].default)


def _sample(trial: Line) -> Sample:
    return Sample(trial["accuracy"], trial["sd"], trial["seeds"])


def draw(lines: Sequence[Line], file: Path) -> None:
    """Error rate against parameters, both logarithmic."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    long = [name for name in budgets() if name.endswith(LONG)]
    short = [name for name in budgets() if name not in long]
    on_test = [name for name in published.load_all() if recipes.load(name).split == "train/test"]
    held_out = [name for name in published.load_all() if name not in on_test]
    _curve(axes, lines, long, f"ours, {_epochs(long)} epochs", _SKY, "s")
    _curve(axes, lines, short, f"ours, {_epochs(short)} epochs", _BLUE, "o")
    retrained = "published recipes, trained by us"
    _curve(axes, lines, on_test, retrained, _GREY, "o", join=False)
    _curve(axes, lines, held_out, f"{retrained}, on held-out images", _GREY, "v", join=False)
    claims = [
        *CLAIMS,
        *((p["params"], p["best_accuracy"]) for p in published.load_all().values()),
    ]
    claims = [(params, accuracy) for params, accuracy in claims if accuracy]
    params, accuracies = np.array(claims).T
    axes.errorbar(  # whose legend comes in the order of the calls
        params,
        100 - accuracies,
        fmt="D",
        color=_VERMILION,
        mfc="none",
        ms=6,
        label="as others publish it, mostly the best of one run",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_yaxis()
    low, high = sorted(axes.get_ylim())
    ticks = (96, 97, 98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8)
    ticks = [tick for tick in ticks if low <= 100 - tick <= high]
    axes.set_yticks([100 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    sizes = [300, 500, 1000, 2000, 4000, 8000, 20000]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_ylabel("accuracy (%), error rate on a log scale")
    axes.grid(color="#e0e0e0", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False,
        loc="lower left",
        alignment="left",
        title="on the test set, means of final epochs and their 95 % intervals:",
    )
    figure.savefig(file, dpi=130, format="png")


def _curve(
    axes: Axes,
    lines: Sequence[Line],
    names: Sequence[str],
    label: str,
    colour: str,
    marker: str,
    *,
    join: bool = True,
) -> None:
    """Means of the recipes' final epochs with their 95 % intervals."""
    points = [found for name in names if (found := point(lines, name))]
    if not points:
        return
    errors = [100 - np.mean(found.accuracies) for found in points]
    halves = [study_report.interval(found.accuracies) for found in points]
    style = f"-{marker}" if join else marker
    sizes = [found.params for found in points]
    axes.errorbar(sizes, errors, halves, fmt=style, color=colour, ms=5, capsize=2, label=label)


def _epochs(names: Sequence[str]) -> str:
    """15 or 20."""
    return " or ".join(map(str, sorted({recipes.load(name).num_epochs for name in names})))


def report() -> None:
    lines = study_report.read(STUDY)
    print(table(lines))
    print(ablations(study_report.read(TRIALS)))
    draw(lines, FIGURE)
    print(f"drew {FIGURE}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The best network for each budget.")
    parser.add_argument("--keep", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.keep or arguments.report):
        parser.error("give --keep, --report or both")
    if arguments.keep:
        keep(arguments.keep)
    if arguments.report:
        report()


if __name__ == "__main__":
    study_report.tell_in_one_line(main)
