"""sweep.png: what each field does to the accuracy."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmnist.runs.plots import BLUE, VERMILION, accuracy_axis, save, tidy
from jaxmnist.sweeps.board import went_through
from jaxmnist.sweeps.space import Choices, Range, Space

_COLUMNS = 3
_GREY = "#9a9a9a"
_BESIDE = 0.12  # equal choices lie beside each other by up to this
_MOST_CHARACTERS = 36  # of labels below a panel that do not touch
_LINE_LENGTH = 20  # of a label, in characters
Result = Mapping[str, Any]


def draw(path: Path, records: Sequence[Result], space: Space, num_epochs: int, title: str) -> None:
    """One panel a field: a dot a trial with the 95 % interval of its mean; for two, a map too.

    Args:
      path: of the PNG.
      records: at least one, as in trials.jsonl; those that were stopped early are grey.
      space: what was swept.
      num_epochs: those of the recipe.
      title: above all.
    """
    fields = list(space.asked)
    whole = [record for record in records if went_through(record, num_epochs)] or records
    best = max(whole, key=lambda record: record["final_accuracy"]["mean"])
    panels = len(fields) + (len(fields) == 2)
    columns = 2 if panels == 4 else min(panels, _COLUMNS)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(6, 4.6 * columns), 0.6 + 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, field in zip(grid, fields, strict=False):
        _panel(axes, records, space, field, best, whole)
    if len(fields) == 2:
        _map(figure, grid[2], whole, space)
    for axes in grid[panels:]:
        axes.set_visible(False)
    mean = best["final_accuracy"]["mean"]
    headline = f"{len(records)} trials, best {mean:.2f} % (trial {best['trial']})"
    if len(whole) < len(records):
        headline += ", grey: stopped before the end"
    save(figure, path, title, headline)


def _panel(
    axes: Axes,
    records: Sequence[Result],
    space: Space,
    field: str,
    best: Result,
    whole: Sequence[Result],
) -> None:
    place = _axis(axes, "x", records, space, field)
    for record in sorted(records, key=lambda record: record["epochs"]):
        colour = BLUE if record in whole else _GREY
        colour = VERMILION if record is best else colour
        x, found = place(record), record["final_accuracy"]
        reach = found["ci95"] or 0
        axes.plot([x, x], [found["mean"] - reach, found["mean"] + reach], c=colour, lw=1, alpha=0.4)
        axes.plot(x, found["mean"], "o", c=colour, ms=5, zorder=3)
    bounds = [record["final_accuracy"][end] for record in records for end in ("min", "max")]
    errors = 100 - np.array(bounds)
    accuracy_axis(axes, 100 - errors, close=bool(errors.max() < 4 * errors.min()))
    tidy(axes)


def _axis(
    axes: Axes, name: str, records: Sequence[Result], space: Space, field: str
) -> Callable[[Result], float]:
    """Prepares the axis ``name`` for a field; says where a record lies along it."""
    label, dimension = field, space.dimensions.get(field)
    if isinstance(dimension, Range):
        if dimension.log:
            getattr(axes, f"set_{name}scale")("log")
            getattr(axes, f"{name}axis").set_major_formatter("{x:g}")

        def place(record: Result) -> float:
            return record["settings"][field]
    elif isinstance(dimension, Choices):
        values = list(dimension.values)
        labels = [_text(value) for value in values]
        getattr(axes, f"set_{name}ticks")(range(len(values)), labels)
        longest = max(len(line) for label in labels for line in label.split("\n"))
        if name == "x" and len(labels) * longest > _MOST_CHARACTERS:
            for text in axes.get_xticklabels():
                text.set(rotation=30, rotation_mode="anchor", horizontalalignment="right")
        getattr(axes, f"set_{name}lim")(-0.5, len(values) - 0.5)
        count = max(record["trial"] for record in records) + 1

        def place(record: Result) -> float:
            beside = _BESIDE * (2 * record["trial"] / count - 1)
            return values.index(record["settings"][field]) + beside
    else:  # networks, hardly two of which are equal
        label = f"parameters ({field})"

        def place(record: Result) -> float:
            return record["params"]

    getattr(axes, f"set_{name}label")(label)
    return place


def _text(value: bool | float | str) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return textwrap.fill(str(value), _LINE_LENGTH)


def _map(figure: Figure, axes: Axes, records: Sequence[Result], space: Space) -> None:
    """Both fields at once, the accuracy as colour; the better ones lie on top."""
    ordered = sorted(records, key=lambda record: record["final_accuracy"]["mean"])
    places = (
        _axis(axes, name, records, space, field)
        for name, field in zip("xy", space.asked, strict=True)
    )
    x, y = ([place(record) for record in ordered] for place in places)
    colours = [record["final_accuracy"]["mean"] for record in ordered]
    dots = axes.scatter(x, y, c=colours, cmap="viridis", s=60)
    tidy(axes)
    figure.colorbar(dots, ax=axes, label="accuracy (%)")
