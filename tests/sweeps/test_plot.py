"""sweep.png: every kind of field, with and without seeds, trials that were stopped."""

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmnist.sweeps import plot
from jaxmnist.sweeps.space import parse

ASKED = {
    "optimizer.learning_rate": "log:0.01..1",
    "augment.rotate_degrees": "0..15",
    "schedule.name": "onecycle,cosine",
    "optimizer.nesterov": "true,false",
    "network.blocks": "2..9/4",
}
VALUES = {
    "optimizer.learning_rate": lambda number: 0.01 * 10 ** (number / 5),
    "augment.rotate_degrees": lambda number: number,
    "schedule.name": lambda number: ("onecycle", "cosine")[number % 2],
    "optimizer.nesterov": lambda number: number % 3 == 0,
    "network.blocks": lambda number: f"{2 + number % 8}/4",
}


def record(number: int, fields: list[str], seeds: int, epochs: int) -> dict[str, Any]:
    mean = 99 + number / 50
    spread = {"mean": mean, "min": mean, "max": mean, "sd": None, "ci95": None}
    if seeds > 1:
        spread |= {"min": mean - 0.1, "max": mean + 0.1, "sd": 0.1, "ci95": 0.3}
    return {
        "trial": number,
        "settings": {field: VALUES[field](number) for field in fields},
        "params": 1000 + 10 * number,
        "epochs": epochs,
        "final_accuracy": spread,
    }


@pytest.mark.parametrize(
    ("fields", "seeds", "stopped"),
    [
        (list(ASKED), 1, 3),
        (["optimizer.learning_rate", "schedule.name"], 2, 0),
        (["network.blocks"], 2, 2),
        (["optimizer.nesterov"], 1, 10),
    ],
)
def test_draw(
    tmp_path: Path, fields: list[str], seeds: int, stopped: int, saved_figures: list[Figure]
):
    space = parse({field: ASKED[field] for field in fields})
    records = [record(n, fields, seeds, 2 if n < stopped else 9) for n in range(10)]
    file = tmp_path / "sweep.png"
    plot.draw(file, records, space, 9, "a title")
    image = matplotlib.image.imread(file)
    assert np.asarray(image).shape[0] > 400
    assert 0.005 < (np.asarray(image)[..., :3].min(-1) < 0.9).mean() < 0.5, "something is drawn"
    panels = [axes for axes in saved_figures[0].axes if axes.get_visible()][: len(fields)]
    for axes, field in zip(panels, fields, strict=True):
        assert field in axes.get_xlabel()
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        heights = [np.asarray(dot.get_ydata())[0] for dot in dots]
        np.testing.assert_allclose(
            sorted(heights), [found["final_accuracy"]["mean"] for found in records]
        )
        grey = [line for line in axes.lines if line.get_color() == plot._GREY]
        assert len(grey) == 2 * (stopped % 10)  # where all were stopped, none is


def test_long_choices_and_close_accuracies_can_be_read(tmp_path: Path, saved_figures: list[Figure]):
    """Labels that would run into each other are turned; there are ticks between 98.0 and 98.5."""
    networks = "24-24/24-24-24/16-10", "8k5-16d-24d/32d-32d-32d/48d-48d/10", "6/12/10"
    space = parse({"network.blocks": ",".join(networks), "optimizer.nesterov": "true,false"})
    records = [record(number, [], 1, 3) for number in range(6)]
    for number, one in enumerate(records):
        mean = 98 + number / 10
        one["settings"] = {
            "network.blocks": networks[number // 2],
            "optimizer.nesterov": bool(number % 2),
        }
        one["final_accuracy"] |= {"mean": mean, "min": mean, "max": mean}
    plot.draw(tmp_path / "sweep.png", records, space, 3, "")
    first, second, *_ = saved_figures[0].axes
    turned = [{label.get_rotation() for label in a.get_xticklabels()} for a in (first, second)]
    assert turned == [{30}, {0}]
    low, high = first.get_ylim()
    assert sum(low <= tick <= high for tick in first.get_yticks()) >= 3


def test_a_single_trial(tmp_path: Path):
    space = parse({"dropout": "0.1"})
    single = {**record(0, [], 1, 3), "settings": {"dropout": 0.1}}
    plot.draw(tmp_path / "sweep.png", [single], space, 3, "")
    assert (tmp_path / "sweep.png").stat().st_size > 1000
