"""The frontier's log and report."""

import json
from pathlib import Path
from typing import Any

import frontier
import numpy as np
import pytest
import study_report
from matplotlib.figure import Figure
from scipy import stats

import jaxmnist
from jaxmnist import recipes
from jaxmnist.errors import UserError


def made(recipe: str, seed: int, accuracy: float, epochs: int, params: int) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "peer": "jaxmnist",
        "version": "0.3.0",
        "seed": seed,
        "params": params,
        "epochs": epochs,
        "final_accuracy": accuracy,
        "fields": study_report.fields(recipe),
    }


def test_budgets_are_in_order_and_kept(monkeypatch: pytest.MonkeyPatch):
    names = ["under_8k", "under_500", "model3", "under_20k_long", "under_20k", "under_1k"]
    monkeypatch.setattr(recipes, "names", lambda: names)
    ordered = ["under_500", "under_1k", "under_8k", "under_20k", "under_20k_long"]
    assert frontier.budgets() == ordered
    assert [frontier.budget(name) for name in ordered] == [500, 1000, 8000, 20000, 20000]


def sweep(folder: Path, accuracies: list[float]) -> Path:
    folder.mkdir(exist_ok=True)
    said = {"config.model": "blocks", "config.num_seeds": 8, "config.split": "train/val"}
    (folder / "sweep.json").write_text(json.dumps({"worker": "me", "sweep": said}))
    trials = [
        {
            "trial": number,
            "settings": {"label_smoothing": number / 100},
            "params": 490,
            "final_accuracy": {"mean": accuracy, "sd": 0.12345},
            "epochs": 15,
        }
        for number, accuracy in enumerate(accuracies)
    ]
    (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    return folder


def test_sweeps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Once each, with what differs from the defaults."""
    monkeypatch.setattr(frontier, "TRIALS", tmp_path / "frontier.jsonl")
    first, second = sweep(tmp_path / "first", [97.0, 98.00049]), sweep(tmp_path / "second", [96.0])
    frontier.keep([first, second])
    sweep(second, [96.0, 95.0])
    frontier.keep([second])
    lines = [json.loads(text) for text in frontier.TRIALS.read_text().splitlines()]
    assert [(line["sweep"], line["accuracy"]) for line in lines] == [
        ("first", 97.0),
        ("first", 98.00049),
        ("second", 96.0),
        ("second", 95.0),
    ]
    assert lines[1] == {
        "sweep": "first",
        "params": 490,
        "epochs": 15,
        "seeds": 8,
        "accuracy": 98.00049,
        "sd": 0.12345,
        "version": jaxmnist.__version__,
        "fields": {"label_smoothing": 0.01, "model": "blocks", "split": "train/val"},
    }


def test_what_is_no_sweep_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="holds no results of a sweep"):
        frontier.keep([tmp_path])


def test_a_sweep_of_one_seed_has_no_spread(tmp_path: Path):
    folder = sweep(tmp_path / "one", [97.0])
    trial = json.loads((folder / "trials.jsonl").read_text())
    trial["final_accuracy"]["sd"] = None
    (folder / "trials.jsonl").write_text(json.dumps(trial))
    assert [line["sd"] for line in frontier.kept(folder)] == [None]


def test_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_figures: list[Figure]
):
    monkeypatch.setattr(frontier, "budgets", lambda: ["model3", "compact", "efficient"])
    lines = [made("model3", seed, 99.3 + seed / 10, 15, 7784) for seed in range(3)]
    lines += [made("model3", seed, 99.6, 40, 7784) for seed in range(2)]
    lines += [made("compact", seed, 99.5, 20, 18472) for seed in range(2)]
    lines += [made("efficient", 0, 99.5, 20, 19664)]
    assert frontier.table(lines).splitlines() == [
        "| recipe | parameters | epochs | test, final epoch, mean ± sd |",
        "| --- | --: | --: | --: |",
        "| `model3` | 7,784 | 15 | 99.400 ± 0.100 (n = 3) |",
        "| `compact` | 18,472 | 20 | 99.500 ± 0.000 (n = 2) |",
    ]
    frontier.draw(lines, tmp_path / "frontier.png")
    (axes,) = saved_figures[0].axes
    drawn: dict[str, Any] = {str(bar.get_label()): bar for bar in axes.containers}
    half = stats.t.interval(0.95, 2, 0, 0.1 / 3**0.5)[1]
    expected = {
        "ours, 15 or 20 epochs": {7784: 0.6, 18472: 0.5},
        "published recipes, trained by us": {7784: 0.6},
        "published recipes, trained by us, on held-out images": {18472: 0.5},
    }
    assert list(drawn) == [*expected, "as others publish it, mostly the best of one run"]
    for label in expected:
        bar = drawn[label]
        means = dict(bar.lines[0].get_xydata().tolist())
        assert means == pytest.approx(expected[label])
        for segment, (params, mean) in zip(
            bar.lines[2][0].get_segments(), means.items(), strict=True
        ):
            reach = half if params == 7784 else 0
            assert segment[:, 1].tolist() == pytest.approx([mean - reach, mean + reach])
    (claims,) = (np.asarray(line.get_xydata()) for line in axes.lines if line.get_marker() == "D")
    assert len(claims) == len(frontier.CLAIMS) + 8  # net8k publishes no accuracy
    assert [7784, pytest.approx(0.53)] in claims.tolist()


def test_the_readme_says_what_the_files_say():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert frontier.table(study_report.read(frontier.STUDY)) in readme
    parts = frontier.ablations(study_report.read(frontier.TRIALS))
    assert len(parts.splitlines()) == 2 + 30
    assert parts in readme


def trial(sweep: str, accuracy: float, **fields: Any) -> dict[str, Any]:
    shared = {"model": "blocks", "network.activation": "silu"}
    fields = shared | {name.replace("__", "."): value for name, value in fields.items()}
    fields = {name: value for name, value in fields.items() if value is not None}
    return {
        "sweep": sweep,
        "params": 488,
        "seeds": 8,
        "accuracy": accuracy,
        "sd": 0.1,
        "fields": fields,
    }


def test_ablations_name_what_is_changed(monkeypatch: pytest.MonkeyPatch):
    """The interval is that of Welch: t(14, 0.975) = 2.145, times 0.1·√(2/8)."""
    budgets = ["under_500", "under_2k", "under_20k", "under_20k_long"]
    monkeypatch.setattr(frontier, "budgets", lambda: budgets)
    trials = [
        trial("ablation_under_500_relu", 98.1, network__activation=None),
        trial("shapes_under_500", 99.0),
    ]
    assert frontier.ablations(trials) == ""
    trials += [
        trial("ablation_under_500", 98.3),
        trial("ablation_under_500_turn", 98.4, augment__rotate_degrees=5),
        trial("ablation_under_20k_long", 98.0),
        trial("ablation_under_20k", 99.0),
        trial("ablation_under_20k_turn", 99.0, augment__rotate_degrees=5),
    ]
    assert frontier.ablations(trials).splitlines()[2:] == [
        "| `under_500` | `network.activation=relu` | 488 | 98.100 ± 0.100 (n = 8) "
        "| -0.200 ± 0.107 |",
        "| `under_500` | nothing | 488 | 98.300 ± 0.100 (n = 8) |  |",
        "| `under_500` | `augment.rotate_degrees=5` | 488 | 98.400 ± 0.100 (n = 8) "
        "| +0.100 ± 0.107 |",
        "| `under_20k` | nothing | 488 | 99.000 ± 0.100 (n = 8) |  |",
        "| `under_20k` | `augment.rotate_degrees=5` | 488 | 99.000 ± 0.100 (n = 8) "
        "| +0.000 ± 0.107 |",
        "| `under_20k_long` | nothing | 488 | 98.000 ± 0.100 (n = 8) |  |",
    ]
