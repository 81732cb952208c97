"""What a run says on the terminal: header, live progress bar, a line an epoch, summary."""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmnist.config import Config
from jaxmnist.networks import analyze
from jaxmnist.runs.checkpoint import Record
from jaxmnist.runs.workdir import Row
from jaxmnist.training import hosts, parallel
from jaxmnist.training.programs import Programs

_COLUMNS = ("epoch", "lr", "train loss", "train acc", "eval loss", "eval acc", "images/s", "time")
_WIDTHS = (7, 11, 11, 10, 10, 16, 10, 8)


def device_name() -> str:
    """What the run computes on, for example 'cpu, 2 cores'."""
    kind = jax.devices()[0].device_kind
    return f"{kind}, {parallel.cores()} cores" if kind == "cpu" else kind


def say(text: str = "") -> None:
    """Prints a line on stdout, above the bar if one is there; piped output sees it at once."""
    if hosts.is_first():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def run_header(
    config: Config,
    layers: list[analyze.LayerSummary],
    mesh: Mesh,
    train_size: int,
    eval_size: int,
) -> str:
    """What is about to run: the network layer by layer, data, recipe, device."""
    seeds = f"seed {config.seed}"
    if config.num_seeds > 1:
        seeds = f"{config.num_seeds} seeds from {config.seed}"
    optimizer, schedule = config.optimizer, config.schedule
    return "\n".join(
        (
            analyze.table(layers),
            f"{config.model} on {config.dataset}, {config.split}: "
            f"{train_size:,} images to train, {eval_size:,} to evaluate",
            f"{config.num_epochs} epochs, batch {config.batch_size}, {optimizer.name}, "
            f"{schedule.name} learning rate {optimizer.learning_rate:g}, "
            f"weight decay {optimizer.weight_decay:g}, {seeds}, {config.precision}",
            f"on {device_name()}, jax {jax.__version__}; devices: "
            + " × ".join(f"{count} ({axis})" for axis, count in mesh.shape.items()),
        )
    )


class Progress:
    """A live bar on stderr where that is a terminal; otherwise nothing."""

    def __init__(self, config: Config, programs: Programs, done: Record):
        epoch_images = config.num_seeds * sum(segment.images for segment in programs.segments)
        images_begun = done.partial.images if done.partial else 0
        self._num_epochs, self._steps_per_epoch = config.num_epochs, programs.steps_per_epoch
        self._bar = tqdm(
            total=config.num_epochs * epoch_images,
            initial=done.epoch * epoch_images + images_begun * config.num_seeds,
            disable=not (sys.stderr.isatty() and hosts.is_first()),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            smoothing=0.1,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {rate_fmt}, ETA {remaining}{postfix}",
        )

    def update(self, epoch: int, step: int, images: int, loss: float, accuracy: float) -> None:
        """Moves on by ``images``; loss and accuracy (percent) are those of the epoch so far."""
        width = len(str(self._steps_per_epoch))
        place = f"epoch {epoch}/{self._num_epochs}, step {step:>{width}}/{self._steps_per_epoch}"
        self._bar.set_description_str(f"{place} ", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2f} %", refresh=False)
        self._bar.update(images)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()


def epoch_header() -> str:
    return "".join(f"{name:>{width}}" for name, width in zip(_COLUMNS, _WIDTHS, strict=True))


def epoch_line(rows: Sequence[Row]) -> str:
    """One epoch, from its rows (one a seed): means, and the spread of the accuracy."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    accuracy = f"{mean('eval_accuracy'):.2f} %"
    if len(rows) > 1:
        sd = np.std([row["eval_accuracy"] for row in rows], ddof=1)
        accuracy = f"{mean('eval_accuracy'):.2f} ± {sd:.2f} %"
    cells = (
        str(rows[0]["epoch"]),
        f"{rows[0]['learning_rate']:.6f}",
        f"{mean('train_loss'):.4f}",
        f"{mean('train_accuracy'):.2f} %",
        f"{mean('eval_loss'):.4f}",
        accuracy,
        f"{rows[0]['images_per_second']:,.0f}",
        f"{rows[0]['seconds']:.1f} s",
    )
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def summary_text(summary: dict[str, Any], published: dict[str, Any] | None) -> str:
    """The end of a run in words: the final epoch first, the best one beside it."""
    final, best = summary["final_accuracy"], summary["best_accuracy"]
    seeds = summary["num_seeds"]
    lines = [
        f"{summary['model']}: {summary['params']:,} parameters, "
        f"receptive field {summary['receptive_field']}×{summary['receptive_field']}"
    ]
    if seeds == 1:
        lines.append(
            f"final accuracy {final['mean']:.2f} % (best epoch, chosen in hindsight, "
            f"{best['mean']:.2f} %)"
        )
    else:
        lines.append(
            f"final accuracy {final['mean']:.3f} ± {final['sd']:.3f} % over {seeds} seeds "
            f"({final['min']:.2f} to {final['max']:.2f}; 95 % interval of the mean "
            f"± {final['ci95']:.3f}); best epochs, chosen in hindsight, {best['mean']:.3f} %"
        )
    if published:
        figures = f"published: {published['params']:,} parameters"
        if published["best_accuracy"] is not None:
            difference = final["mean"] - published["best_accuracy"]
            figures += (
                f", best epoch {published['best_accuracy']:.2f} % "
                f"(final epoch here {difference:+.2f})"
            )
        elif "target_accuracy" in published:
            figures += f", target {published['target_accuracy']:.2f} %, nothing measured"
        lines.append(figures)
    lines.append(
        f"trained in {summary['train_seconds']:.1f} s at {summary['images_per_second']:,.0f} "
        f"images/s on {summary['device']}, compiled in {summary['compile_seconds']:.1f} s"
    )
    return "\n".join(lines)
