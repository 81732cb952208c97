"""The four figures of a run: each function writes one PNG to `path`, with `title` above it.

No pyplot: they need no display and touch no global state.
"""

import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

File = str | os.PathLike[str]
Rows = Sequence[Mapping[str, float]]

# Okabe and Ito's blue and vermilion stay apart in every common colour blindness.
BLUE, VERMILION = "#0072B2", "#D55E00"
CLASSES = 10
GRID_COLUMNS = 10
# 100 % has no place on an axis logarithmic in the errors; one in 10,000 is as far as it resolves.
ERROR_FLOOR = 0.01
ACCURACY_TICKS = (0, 50, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.7, 99.8, 99.9, 99.95, 99.98, 100)


def learning_curves(path: File, rows: Rows, published: Rows | None = None, title: str = "") -> None:
    """Accuracy and loss against the epoch; several seeds give the mean and the min–max band.

    The accuracy axis is logarithmic in the error rate, so 99.2 % and 99.5 % stay apart although
    epoch 1 may be at 40 %; from 99.99 % on it reads 100.

    Args:
        rows: at least one, one per seed and epoch: seed, epoch (from 1), train_loss, eval_loss
            (nats), train_accuracy, eval_accuracy (percent).
        published: epoch and any of those losses and accuracies; epochs may be missing.
    """
    every = (*rows, *(published or ()))
    legend = {}
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = ("accuracy", accuracy_axis), ("loss", _loss_axis)
    for axes, (quantity, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        keys = f"train_{quantity}", f"eval_{quantity}"
        for key, colour in zip(keys, (BLUE, VERMILION), strict=True):
            _curve(axes, rows, key, colour)
            _published_curve(axes, published or (), key, colour)
        scale(axes, np.array([row[key] for row in every for key in keys if key in row]))
        axes.set_xlim(0.5, max(row["epoch"] for row in every) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        tidy(axes)
        legend |= {line.get_label(): line for line in axes.lines}
    # Below the panels, since inside them no corner is free of every run's curves.
    figure.legend(handles=legend.values(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, path, title)


def schedule(
    path: File,
    learning_rate_T: ArrayLike,
    momentum_T: ArrayLike,
    steps_per_epoch: int,
    title: str = "",
) -> None:
    """Learning rate and momentum of every optimizer step, with the epochs along the top.

    Args:
        learning_rate_T, momentum_T: [T] float, what step t uses; drawn from t to t + 1.
        steps_per_epoch: optimizer steps in one epoch.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.stairs(np.asarray(learning_rate_T), baseline=None, color=BLUE, linewidth=1.8)
    top.set_ylabel("learning rate")
    bottom.stairs(np.asarray(momentum_T), baseline=None, color=VERMILION, linewidth=1.8)
    bottom.set(ylabel="momentum", xlabel="optimizer step", xlim=(0, np.size(momentum_T)))
    tidy(top)
    tidy(bottom)
    scale = lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch
    epochs = top.secondary_xaxis("top", functions=scale)
    epochs.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    epochs.set_xlabel("epochs completed")
    save(figure, path, title)


def confusion_matrix(
    path: File, labels_N: ArrayLike, predictions_N: ArrayLike, title: str = ""
) -> None:
    """Counts per true and predicted class, with every class's accuracy and error rate beside.

    Args:
        labels_N, predictions_N: [N] integer, true and predicted classes 0..9; N is at least 1.
    """
    counts_CC = np.zeros((CLASSES, CLASSES), dtype=int)
    np.add.at(counts_CC, (np.asarray(labels_N), np.asarray(predictions_N)), 1)
    total_C, correct_C = counts_CC.sum(axis=1), counts_CC.diagonal()
    digits, errors = total_C.sum(), total_C.sum() - correct_C.sum()
    # The diagonal is a hundred times any error: coloured alike, the errors would all look empty.
    errors_CC = np.ma.masked_array(counts_CC, mask=np.eye(CLASSES, dtype=bool))
    most = max(1, int(errors_CC.max()))

    figure = Figure(figsize=(8.6, 6.6), layout="constrained")
    matrix, per_class = figure.subplots(1, 2, width_ratios=(5, 1))
    matrix.set_facecolor("#e4e4e4")  # shows through the masked diagonal
    matrix.imshow(errors_CC, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    for (true, predicted), count in np.ndenumerate(counts_CC):
        dark = true != predicted and count > 0.55 * most
        colour = "white" if dark else "black" if count else "#8c8c8c"
        matrix.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=9)
    matrix.set(xticks=range(CLASSES), xlabel="predicted digit (colour: errors only)")
    matrix.set(yticks=range(CLASSES), ylabel="true digit")

    error_rate_C = 100 * (total_C - correct_C) / np.maximum(total_C, 1)
    accuracies = np.where(total_C > 0, [f"{100 - e:.2f} %" for e in error_rate_C], "no digit")
    per_class.barh(range(CLASSES), error_rate_C, height=0.6, color=BLUE)
    per_class.set(xlabel="error rate (%)", xlim=(0, 1.1 * max(error_rate_C.max(), 0.1)))
    per_class.set(yticks=range(CLASSES), yticklabels=accuracies, ylim=matrix.get_ylim())
    per_class.tick_params(axis="y", length=0, labelleft=False, labelright=True)
    per_class.set_title("accuracy", loc="right", fontsize=10)
    per_class.spines[["top", "right"]].set_visible(False)
    summary = f"{100 - 100 * errors / digits:.2f} % correct, {errors:,} errors in {digits:,} digits"
    save(figure, path, title, summary)


def misclassified(
    path: File,
    images_NHW: ArrayLike,
    labels_N: ArrayLike,
    predictions_N: ArrayLike,
    title: str = "",
    limit: int = 60,
) -> None:
    """The wrong digits in the order of the data, "true → predicted" above each.

    Args:
        images_NHW: [N, H, W] uint8 or float, ink high; every image, the right ones too.
        labels_N, predictions_N: [N] integer, the true and the predicted classes.
        limit: at most this many tiles.
    """
    images_NHW = np.asarray(images_NHW)
    labels_N, predictions_N = np.asarray(labels_N), np.asarray(predictions_N)
    wrong_E = np.flatnonzero(labels_N != predictions_N)
    shown = wrong_E[:limit]
    grid_rows = max(1, -(-len(shown) // GRID_COLUMNS))
    figure = Figure(figsize=(8.5, 0.6 + 1.05 * grid_rows), layout="constrained")
    grid = figure.add_gridspec(grid_rows, GRID_COLUMNS)
    for tile, index in enumerate(shown):
        axes = figure.add_subplot(grid[divmod(tile, GRID_COLUMNS)])
        axes.imshow(images_NHW[index], cmap="gray_r", interpolation="nearest")
        axes.set_title(f"{labels_N[index]} → {predictions_N[index]}", fontsize=10, pad=3)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")
    key = "above each digit: true → predicted" if len(wrong_E) else "no digit is misclassified"
    figure.supxlabel(key, fontsize=10)
    part = f", the first {len(shown)} shown" if len(shown) < len(wrong_E) else ""
    save(figure, path, title, f"{len(wrong_E):,} errors in {len(labels_N):,} digits{part}")


def _curve(axes: Axes, rows: Rows, key: str, colour: str) -> None:
    epochs = sorted({row["epoch"] for row in rows})
    values = [[row[key] for row in rows if row["epoch"] == epoch] for epoch in epochs]
    seeds = len({row["seed"] for row in rows})
    label = f"{key.split('_')[0]} (n = {seeds}{': mean, min–max' if seeds > 1 else ''})"
    means = [np.mean(at_epoch) for at_epoch in values]
    axes.plot(epochs, means, ".-", c=colour, lw=1.8, label=label, clip_on=False)
    if seeds > 1:
        bounds = np.array([(min(at_epoch), max(at_epoch)) for at_epoch in values])
        if len(epochs) == 1:  # a band over one epoch has no width and would vanish
            epochs, bounds = [epochs[0] - 0.03, epochs[0] + 0.03], bounds.repeat(2, axis=0)
        axes.fill_between(epochs, *bounds.T, color=colour, alpha=0.2, linewidth=0)


def _published_curve(axes: Axes, published: Rows, key: str, colour: str) -> None:
    points = {int(row["epoch"]): row[key] for row in published if key in row}
    if points:
        # NaN interrupts the line: across epochs that nobody published it would be invented.
        epochs = range(min(points), max(points) + 1)
        values = [points.get(epoch, np.nan) for epoch in epochs]
        (line,) = axes.plot(epochs, values, "o--", c=colour, mfc="white", ms=4.5, lw=1)
        line.set(label=f"{key.split('_')[0]}, published", clip_on=False)


def accuracy_axis(axes: Axes, drawn: np.ndarray, *, close: bool = False) -> None:
    """Makes the vertical axis logarithmic in the error rate, around the accuracies ``drawn``.

    ``close``: with little room around them, and several ticks.
    """

    def height(accuracy: np.ndarray) -> np.ndarray:
        return -np.log10(np.maximum(100 - accuracy, ERROR_FLOOR))

    axes.set_yscale("function", functions=(height, lambda height: 100 - 10.0**-height))
    axes.yaxis.set_major_locator(FixedLocator(ACCURACY_TICKS))
    axes.yaxis.set_major_formatter("{x:g}")
    minor = [100 - n * decade for decade in (10, 1, 0.1) for n in range(1, 10)]
    axes.yaxis.set_minor_locator(FixedLocator(minor))
    error = np.maximum(100 - drawn, ERROR_FLOOR)
    # The margins together span the widest gap between ticks: even a single point has one near.
    room = 1.6
    if close:
        room = 1.15
        axes.yaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(100 - room * error.max(), 100 - error.min() / room)
    axes.set_ylabel("accuracy (%), error rate on a log scale")


def _loss_axis(axes: Axes, drawn: np.ndarray) -> None:
    axes.set_yscale("log")
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]  # a diverged run has NaN
    if len(drawn):
        axes.set_ylim(drawn.min() / 1.25, drawn.max() * 1.25)
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("loss (log scale)")


def tidy(axes: Axes) -> None:
    """A pale grid, and no frame but the two axes."""
    axes.grid(color="#e0e0e0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: File, *headline: str) -> None:
    """Writes the PNG with a headline above all, whatever characters are in it."""
    text = ": ".join(filter(None, headline))  # in which folders' names may be no text
    figure.suptitle(text.encode(errors="replace").decode(), parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in other scripts
        figure.savefig(path, dpi=130, format="png")
