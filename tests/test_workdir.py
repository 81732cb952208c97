"""The files of a run: what is taken up, refused, moved aside, written; and the statistics."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxmnist.config import Config, default_config, flatten
from jaxmnist.errors import UserError
from jaxmnist.workdir import Workdir, spread


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def config_with(**values: Any) -> Config:
    config = default_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in values.items()}
    )
    return config


def refusal(path: Path, config: Config, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Workdir(path, config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_creates_the_folder_and_config_json(folder: Path):
    config = config_with(seed=7, optimizer__learning_rate=0.25)
    files = Workdir(folder, config)
    assert (files.path, files.moved_to) == (folder, None)
    assert files.checkpoints == folder / "checkpoints"
    assert list(contents(folder)) == ["config.json"]
    written = json.loads((folder / "config.json").read_text())
    assert written == config.to_dict()
    assert (written["seed"], written["optimizer"]["learning_rate"]) == (7, 0.25)


def test_same_settings_are_taken_up(folder: Path):
    row = {"seed": 7, "epoch": 1}
    Workdir(folder, config_with(seed=7)).append_metrics([row])
    assert Workdir(folder, config_with(seed=7)).read_metrics(1) == [row]


def test_whole_float_is_the_same_setting(folder: Path):
    Workdir(folder, config_with(optimizer__learning_rate=1.0))
    Workdir(folder, config_with(optimizer__learning_rate=1))


def test_other_settings_are_refused_and_named(folder: Path):
    Workdir(folder, config_with(seed=7, optimizer__name="adam"))
    before = contents(folder)
    text = refusal(folder, config_with(seed=8, optimizer__name="sgd"))
    assert str(folder) in text
    assert "config.seed is 7 there and 8 here" in text
    assert "config.optimizer.name is 'adam' there and 'sgd' here" in text
    assert text.count(" there and ") == 2
    assert "--restart" in text
    assert contents(folder) == before


@pytest.mark.parametrize("missing", ["there", "here"])
def test_field_on_one_side_only_is_refused(folder: Path, missing: str):
    Workdir(folder, default_config())
    written = json.loads((folder / "config.json").read_text())
    if missing == "there":
        del written["seed"]
    else:
        written["optimizer"]["amsgrad"] = True
    (folder / "config.json").write_text(json.dumps(written))
    named = "config.seed" if missing == "there" else "config.optimizer.amsgrad"
    assert named in refusal(folder, default_config())


def test_checkpoint_settings_may_change(folder: Path):
    Workdir(folder, default_config())
    Workdir(folder, config_with(checkpoint__every_epochs=3, checkpoint__keep=9))
    written = json.loads((folder / "config.json").read_text())
    assert written["checkpoint"] == {"every_epochs": 3, "keep": 9}


def test_devices_may_change(folder: Path):
    Workdir(folder, default_config())
    Workdir(folder, config_with(mesh__seed=2, mesh__data=4))
    written = json.loads((folder / "config.json").read_text())
    assert written["mesh"] == {"seed": 2, "data": 4}
    del written["mesh"]  # as the runs of version 0.1.0 were
    (folder / "config.json").write_text(json.dumps(written))
    Workdir(folder, default_config())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"text"', "[1, 2]", '{"seed": 0', "{1: 2}"]
)
def test_damaged_config_json_is_refused(folder: Path, text: str):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    refused = refusal(folder, default_config())
    assert str(folder) in refused
    assert "--restart" in refused
    assert contents(folder) == {"config.json": text.encode()}


def test_config_json_that_is_no_text_is_refused(folder: Path):
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json" in refusal(folder, default_config())


def test_restart_moves_aside_and_keeps_everything(folder: Path):
    for number in range(3):
        files = Workdir(folder, config_with(seed=number), restart=True)
        assert files.read_metrics(0) == []
        files.append_metrics([{"epoch": number}])
        (folder / "deeper").mkdir()
        (folder / "deeper" / "file").write_text(f"content {number}")
        expected = folder.with_name(f"a.{number}") if number else None
        assert files.moved_to == expected
    siblings = sorted(path.name for path in folder.parent.iterdir())
    assert siblings == ["a", "a.1", "a.2"]
    for number, name in enumerate(("a.1", "a.2", "a")):
        there = folder.with_name(name)
        assert json.loads((there / "config.json").read_text())["seed"] == number
        assert (there / "metrics.jsonl").read_text() == json.dumps({"epoch": number}) + "\n"
        assert (there / "deeper" / "file").read_text() == f"content {number}"


def test_restart_skips_names_that_are_taken(folder: Path):
    Workdir(folder, default_config())
    folder.with_name("a.1").write_text("mine")
    files = Workdir(folder, default_config(), restart=True)
    assert files.moved_to == folder.with_name("a.2")
    assert folder.with_name("a.1").read_text() == "mine"


def test_restart_leaves_alone_what_is_no_run(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    before = contents(tmp_path)
    for name in ("file", "folder", "folder/..", "."):
        path = tmp_path / name
        assert str(tmp_path) in refusal(path, default_config(), restart=True)
    assert contents(tmp_path) == before


def test_restart_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    Workdir(folder, config_with(seed=1))
    monkeypatch.chdir(folder)
    Workdir(Path("."), config_with(seed=2), restart=True)
    for name, seed in (("a.1", 1), ("a", 2)):
        written = json.loads((folder.with_name(name) / "config.json").read_text())
        assert written["seed"] == seed


@pytest.mark.parametrize("below", ["", "sub", "sub/deeper"])
def test_file_in_the_way_is_refused(tmp_path: Path, below: str):
    (tmp_path / "file").write_text("precious")
    path = tmp_path / "file" / below
    assert str(path) in refusal(path, default_config())
    assert (tmp_path / "file").read_text() == "precious"


def test_folder_as_config_json_is_refused(folder: Path):
    (folder / "config.json").mkdir(parents=True)
    assert str(folder) in refusal(folder, default_config())


def test_name_that_is_too_long_is_refused(tmp_path: Path):
    assert "--workdir" in refusal(tmp_path / ("x" * 300), default_config())


TWO_SEEDS = {"seed": 4, "num_seeds": 2}
ROWS = [
    {"seed": seed, "epoch": epoch, "loss": 0.1 * epoch} for epoch in (1, 2, 3) for seed in (4, 5)
]


def test_metrics_are_appended_and_read_back(folder: Path):
    files = Workdir(folder, config_with(**TWO_SEEDS))
    assert files.read_metrics(0) == []
    for first in (0, 2, 4):
        files.append_metrics(ROWS[first : first + 2])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert lines[0] == '{"seed": 4, "epoch": 1, "loss": 0.1}'
    assert files.read_metrics(3) == ROWS


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
def test_metrics_after_the_checkpoint_are_removed(folder: Path, epochs: int):
    files = Workdir(folder, config_with(**TWO_SEEDS))
    files.append_metrics(ROWS)
    assert files.read_metrics(epochs) == ROWS[: 2 * epochs]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[: 2 * epochs]
    assert not list(folder.glob("*.partial"))


def test_half_a_line_after_the_checkpoint_is_removed(folder: Path):
    """A crash in the middle of writing an epoch leaves it incomplete and without a checkpoint."""
    files = Workdir(folder, config_with(**TWO_SEEDS))
    files.append_metrics(ROWS[:4])
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + b'{"seed": 4, "epo')
    assert files.read_metrics(2) == ROWS[:4]
    assert (folder / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("line", ["garbage", "[]", "3", "{}", '{"epoch": "one"}', "\udcff"])
def test_damaged_metrics_are_refused(folder: Path, line: str):
    files = Workdir(folder, config_with(**TWO_SEEDS))
    files.append_metrics(ROWS[:2])
    damaged = (line + "\n").encode("utf-8", "surrogateescape")
    damaged += (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(damaged)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*--restart"):
        files.read_metrics(1)
    assert (folder / "metrics.jsonl").read_bytes() == damaged


def test_metrics_that_lack_an_epoch_are_refused(folder: Path):
    """The checkpoint says two epochs, the file knows one: its numbers would be wrong."""
    files = Workdir(folder, config_with(**TWO_SEEDS))
    with pytest.raises(UserError, match=r"metrics\.jsonl.*--restart"):
        files.read_metrics(1)
    files.append_metrics(ROWS[:3])
    with pytest.raises(UserError, match=r"metrics\.jsonl.*--restart"):
        files.read_metrics(2)
    assert (folder / "metrics.jsonl").read_text().count("\n") == 3


def test_summary_is_json(folder: Path):
    files = Workdir(folder, default_config())
    files.write_summary({"model": "model3", "final_accuracy": spread([99.0])})
    files.write_summary({"model": "model1", "final_accuracy": spread([98.5])})
    assert json.loads((folder / "summary.json").read_text()) == {
        "model": "model1",
        "final_accuracy": {"mean": 98.5, "sd": None, "min": 98.5, "max": 98.5, "ci95": None},
    }
    assert set(contents(folder)) == {"config.json", "summary.json"}


def test_spread_by_hand():
    # Deviations -2, -1, 3: sum of squares 14, variance 7; t quantile 0.975 with 2 degrees 4.302653.
    assert spread([1.0, 2.0, 6.0]) == {
        "mean": pytest.approx(3.0, abs=1e-12),
        "sd": pytest.approx(math.sqrt(7), abs=1e-12),
        "min": 1.0,
        "max": 6.0,
        "ci95": pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6),
    }


def test_spread_of_two():
    result = spread([1.0, 2.0])
    assert result["sd"] == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert result["ci95"] == pytest.approx(12.706205 / 2, rel=1e-6)


def test_spread_of_one_knows_no_deviation():
    assert spread([99.5]) == {"mean": 99.5, "sd": None, "min": 99.5, "max": 99.5, "ci95": None}


def test_spread_of_equal_values_is_zero():
    assert spread([98.0] * 4) == {"mean": 98.0, "sd": 0.0, "min": 98.0, "max": 98.0, "ci95": 0.0}


def test_spread_is_plain_json():
    assert json.loads(json.dumps(spread([1, 2, 3])))["mean"] == 2.0
    assert all(type(value) is float for value in spread([1, 2, 3]).values())


def test_config_json_holds_every_field(folder: Path):
    Workdir(folder, default_config())
    written = json.loads((folder / "config.json").read_text())
    leaves = sum(len(value) if isinstance(value, dict) else 1 for value in written.values())
    assert leaves == len(flatten(default_config()))
