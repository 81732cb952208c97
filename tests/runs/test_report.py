"""What appears on the terminal, character by character where it matters."""

import io
import re
from collections.abc import Sequence
from typing import Any, cast

import jax
import pytest

from jaxmnist.config import default_config
from jaxmnist.networks import analyze, models
from jaxmnist.runs import assemble, report, scores
from jaxmnist.runs.checkpoint import PartialEpoch, Record
from jaxmnist.training import parallel
from jaxmnist.training.programs import Programs, Segment

COLUMNS = ["epoch", "lr", "train loss", "train acc", "eval loss", "eval acc", "images/s", "time"]


def row(**values: float) -> dict[str, float]:
    return {
        "seed": 0,
        "epoch": 3,
        "step": 1407,
        "learning_rate": 0.29994,
        "momentum": 0.85,
        "train_loss": 0.18765,
        "train_accuracy": 98.456,
        "eval_loss": 0.1794,
        "eval_accuracy": 98.65,
        "seconds": 5.26,
        "images_per_second": 11406.8,
    } | values


def right_edges(line: str, cells: Sequence[str]) -> list[int]:
    """Where each cell ends; the cells must follow each other in ``line``."""
    edges, position = [], 0
    for cell in cells:
        assert cell in line[position:]
        position = line.index(cell, position) + len(cell)
        edges.append(position)
    assert position == len(line)
    return edges


def test_epoch_line_of_one_seed():
    line = report.epoch_line([row()])
    cells = ["3", "0.299940", "0.1877", "98.46 %", "0.1794", "98.65 %", "11,407", "5.3 s"]
    assert right_edges(line, cells) == right_edges(report.epoch_header(), COLUMNS)


def test_epoch_line_of_three_seeds():
    rows = [
        row(seed=0, train_loss=0.1, train_accuracy=98.0, eval_loss=0.2, eval_accuracy=99.0),
        row(seed=1, train_loss=0.2, train_accuracy=98.5, eval_loss=0.3, eval_accuracy=99.1),
        row(seed=2, train_loss=0.3, train_accuracy=99.6, eval_loss=0.7, eval_accuracy=99.5),
    ]
    line = report.epoch_line(rows)
    # Mean 99.2, deviations -0.2, -0.1, 0.3: variance 0.14 / 2, sd 0.2646.
    cells = ["3", "0.299940", "0.2000", "98.70 %", "0.4000", "99.20 ± 0.26 %", "11,407", "5.3 s"]
    assert right_edges(line, cells) == right_edges(report.epoch_header(), COLUMNS)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_extreme_numbers_stay_in_their_columns(extreme: float):
    rows = [
        row(
            epoch=int(9999 * extreme),
            learning_rate=extreme,
            train_loss=99.0 * extreme,
            train_accuracy=100 * extreme,
            eval_accuracy=100 * seed * extreme,
            images_per_second=9_999_999 * extreme,
            seconds=9999 * extreme,
        )
        for seed in (0, 1)
    ]
    line = report.epoch_line(rows)
    assert len(line) == len(report.epoch_header())
    assert len(re.findall(r"  ?[\d,.]+", line)) >= 8


@pytest.mark.parametrize("learning_rate", [0.0003, 2e-5])
def test_small_learning_rates_are_told_apart_from_zero(learning_rate: float):
    shown = report.epoch_line([row(learning_rate=learning_rate)]).split()[1]
    assert float(shown) == pytest.approx(learning_rate, rel=0.1)


def summary(accuracies: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    return {
        "model": "model3",
        "params": 7784,
        "receptive_field": 42,
        "num_seeds": len(accuracies),
        "num_epochs": 15,
        "final_accuracy": scores.summary(accuracies),
        "best_accuracy": scores.summary(best),
        "compile_seconds": 6.75,
        "train_seconds": 81.04,
        "images_per_second": 11105.6,
        "backend": "cpu",
        "device": "some device",
        "jax_version": "0.10.2",
    }


def test_summary_of_one_seed():
    assert report.summary_text(summary([99.44], [99.51]), None).splitlines() == [
        "model3: 7,784 parameters, receptive field 42×42",
        "final accuracy 99.44 % (best epoch, chosen in hindsight, 99.51 %)",
        "trained in 81.0 s at 11,106 images/s on some device, compiled in 6.8 s",
    ]


def test_summary_of_three_seeds():
    lines = report.summary_text(summary([99.0, 99.1, 99.5], [99.2, 99.3, 99.6]), None).splitlines()
    # sd √0.07 = 0.26458; 4.302653 · 0.26458 / √3 = 0.65724.
    assert lines[1] == (
        "final accuracy 99.200 ± 0.265 % over 3 seeds (99.00 to 99.50; 95 % interval of the mean "
        "± 0.657); best epochs, chosen in hindsight, 99.367 %"
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("published", "line"),
    [
        (
            {"params": 7784, "best_accuracy": 99.47},
            "published: 7,784 parameters, best epoch 99.47 % (final epoch here -0.03)",
        ),
        (
            {"params": 6584, "best_accuracy": 95.7},
            "published: 6,584 parameters, best epoch 95.70 % (final epoch here +3.74)",
        ),
        (
            {"params": 8440, "best_accuracy": None, "target_accuracy": 99.4},
            "published: 8,440 parameters, target 99.40 %, nothing measured",
        ),
    ],
)
def test_summary_beside_the_publication(published: dict[str, Any], line: str):
    lines = report.summary_text(summary([99.44], [99.51]), published).splitlines()
    assert len(lines) == 4
    assert lines[2] == line


def test_run_header_says_what_runs():
    config = default_config()
    config.optimizer.learning_rate = 0.3
    layers = analyze.summarize(models.build("model3"))
    config.mesh.data = 1
    mesh = assemble.mesh(config)
    text = report.run_header(config, layers, mesh, 60_000, 10_000)
    assert text.startswith(analyze.table(layers))
    said = text.removeprefix(analyze.table(layers)).strip().splitlines()
    assert said[0] == "model3 on mnist, train/test: 60,000 images to train, 10,000 to evaluate"
    assert said[1] == (
        "15 epochs, batch 128, sgd, constant learning rate 0.3, weight decay 0, seed 0, float32"
    )
    assert said[2].startswith("on ")
    assert said[2].endswith(f", jax {jax.__version__}; devices: 1 (seed) × 1 (data)")
    config.seed, config.num_seeds = 5, 3
    assert ", 3 seeds from 5, float32\n" in report.run_header(config, layers, mesh, 60_000, 10_000)


def test_run_header_says_how_many_devices_share_what():
    mesh = jax.sharding.AbstractMesh((3, 2), (parallel.SEED, parallel.DATA))
    layers = analyze.summarize(models.build("model3"))
    text = report.run_header(default_config(), layers, cast(Any, mesh), 60_000, 10_000)
    assert text.endswith("; devices: 3 (seed) × 2 (data)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Programs:
    """Stands in for ``Programs``: ten steps of 100 images."""

    segments = (Segment(0, 10, 100),)
    steps_per_epoch = 10


def show_progress(
    stderr: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    partial: PartialEpoch | None = None,
    seeds: int = 1,
) -> str:
    """After one epoch of four, and perhaps a part of the next, 500 images are trained on."""
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "150")
    config = default_config()
    config.num_epochs, config.num_seeds = 4, seeds
    done = Record(1, [], partial, {})
    with report.Progress(config, cast(Programs, _Programs()), done) as progress:
        progress._bar.mininterval = 0
        progress.update(2, 5, 500, 0.51234, 87.654)
        progress._bar.refresh()
    return stderr.getvalue()


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    frames = show_progress(Terminal(), monkeypatch).split("\r")
    frame = next(frame for frame in frames if "step" in frame)
    assert frame.startswith("epoch 2/4, step  5/10")
    assert " 38% |" in frame  # 1,500 of 4,000 images
    assert "images/s, ETA" in frame
    assert frame.rstrip().endswith("loss 0.5123, accuracy 87.65 %")


@pytest.mark.parametrize(("seeds", "percent"), [(1, 55), (3, 47)])
def test_progress_goes_on_within_an_epoch(
    monkeypatch: pytest.MonkeyPatch, seeds: int, percent: int
):
    """700 images of each seed were done: now 2,200 of 4,000, or 5,600 of 12,000."""
    partial = PartialEpoch(7, 700, 1.0, [1.0] * seeds, [1.0] * seeds)
    frames = show_progress(Terminal(), monkeypatch, partial, seeds).split("\r")
    assert any(f" {percent}% |" in frame for frame in frames)


def test_progress_is_silent_elsewhere(monkeypatch: pytest.MonkeyPatch):
    assert show_progress(io.StringIO(), monkeypatch) == ""


def test_progress_is_silent_in_other_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxmnist.training.hosts.is_first", lambda: False)
    assert show_progress(Terminal(), monkeypatch) == ""


def test_say_prints_a_line_on_stdout(capsys: pytest.CaptureFixture[str]):
    report.say("a line")
    report.say()
    assert capsys.readouterr() == ("a line\n\n", "")


def test_only_the_first_process_says_something(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxmnist.training.hosts.is_first", lambda: False)
    report.say("a line")
    assert capsys.readouterr() == ("", "")
