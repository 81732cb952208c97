"""The files of a run: what is taken up, refused, moved aside, written."""

import contextlib
import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workdirs import files_below

from jaxmnist.config import Config, default_config, flatten
from jaxmnist.errors import StorageError, UserError
from jaxmnist.runs import scores
from jaxmnist.runs.workdir import Workdir, storage_errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def config_with(**values: Any) -> Config:
    config = default_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in values.items()}
    )
    return config


def made(path: Path, config: Config, **options: Any) -> Workdir:
    """A run's folder that others may use."""
    files = Workdir(path, config, **options)
    files.close()
    return files


def refusal(path: Path, config: Config, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Workdir(path, config, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_creates_the_folder_and_config_json(folder: Path):
    config = config_with(seed=7, optimizer__learning_rate=0.25)
    files = made(folder, config)
    assert (files.path, files.moved_to, files.grown_from) == (folder, None, None)
    assert files.checkpoints == folder / "checkpoints"
    assert list(files_below(folder)) == [".lock", "config.json"]
    written = written_config(folder)
    assert written == config.to_dict()
    assert (written["seed"], written["optimizer"]["learning_rate"]) == (7, 0.25)


def test_same_settings_are_taken_up(folder: Path):
    made(folder, config_with(seed=7)).append_metrics([{"seed": 7, "epoch": 1}])
    before = files_below(folder)
    files = made(folder, config_with(seed=7))
    assert (files.moved_to, files.grown_from) == (None, None)
    assert files_below(folder) == before


def test_whole_float_is_the_same_setting(folder: Path):
    made(folder, config_with(optimizer__learning_rate=1.0))
    made(folder, config_with(optimizer__learning_rate=1))


@pytest.mark.parametrize("names", [(".lock",), (".lock", "config.json.partial")])
def test_traces_of_a_run_that_had_just_begun_are_no_run(folder: Path, names: tuple[str, ...]):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("")
    made(folder, default_config())
    assert written_config(folder) == default_config().to_dict()


def test_locked_until_it_is_closed(folder: Path):
    files = Workdir(folder, default_config())
    before = files_below(folder.parent)
    for config in (default_config(), config_with(seed=1)):
        for restart in (False, True):
            text = refusal(folder, config, restart=restart)
            assert f"--workdir {folder} is in use" in text
    assert files_below(folder.parent) == before
    files.close()
    made(folder, default_config())


def test_restart_locks_the_new_folder_and_frees_the_old(folder: Path):
    made(folder, config_with(seed=1))
    with contextlib.closing(Workdir(folder, config_with(seed=2), restart=True)) as files:
        assert "in use" in refusal(folder, config_with(seed=2))
        assert files.moved_to is not None
        made(files.moved_to, config_with(seed=1))


HOLD = """
import sys
from pathlib import Path
from jaxmnist.config import default_config
from jaxmnist.runs.workdir import Workdir

files = Workdir(Path(sys.argv[1]), default_config())
print("locked", flush=True)
sys.stdin.read()
"""


def test_locked_until_the_process_dies(folder: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert "in use by another process" in refusal(folder, default_config())
        process.kill()
        process.wait()
        made(folder, default_config())


def test_other_settings_are_refused_and_named(folder: Path):
    made(folder, config_with(seed=7, optimizer__name="adam"))
    before = files_below(folder)
    text = refusal(folder, config_with(seed=8, optimizer__name="sgd"))
    assert str(folder) in text
    assert "config.seed is 7 there and 8 here" in text
    assert "config.optimizer.name is 'adam' there and 'sgd' here" in text
    assert text.count(" there and ") == 2
    assert "--restart" in text
    assert files_below(folder) == before


def test_many_other_settings_are_counted(folder: Path):
    fields = {"seed": 1, "num_seeds": 2, "batch_size": 3, "dropout": 0.5, "label_smoothing": 0.1}
    made(folder, config_with(**fields))
    text = refusal(folder, default_config())
    assert text.count(" there and ") == 3
    assert "; and 2 more): " in text


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_epochs_may_become_more(folder: Path, schedule: str):
    made(folder, config_with(schedule__name=schedule, num_epochs=3))
    longer = config_with(schedule__name=schedule, num_epochs=5)
    assert made(folder, longer).grown_from == 3
    assert written_config(folder) == longer.to_dict()
    assert made(folder, longer).grown_from is None


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_schedule_over_all_epochs_is_not_stretched(folder: Path, schedule: str):
    made(folder, config_with(schedule__name=schedule, num_epochs=3))
    before = files_below(folder)
    text = refusal(folder, config_with(schedule__name=schedule, num_epochs=5))
    words = f"config.num_epochs is 3 there and 5 here, and the {schedule} schedule spans them"
    assert words in text
    assert files_below(folder) == before


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
def test_epochs_may_not_become_fewer(folder: Path, schedule: str):
    made(folder, config_with(schedule__name=schedule, num_epochs=5))
    before = files_below(folder)
    text = refusal(folder, config_with(schedule__name=schedule, num_epochs=3))
    assert "config.num_epochs is 5 there and 3 here" in text
    assert files_below(folder) == before


def test_more_epochs_of_another_run_are_refused(folder: Path):
    made(folder, config_with(num_epochs=3, seed=1))
    before = files_below(folder)
    text = refusal(folder, config_with(num_epochs=5, seed=2))
    assert "config.seed is 1 there and 2 here" in text
    assert files_below(folder) == before


@pytest.mark.parametrize("missing", ["there", "here"])
def test_field_on_one_side_only_is_refused(folder: Path, missing: str):
    made(folder, default_config())
    written = written_config(folder)
    if missing == "there":
        del written["seed"]
    else:
        written["optimizer"]["amsgrad"] = True
    (folder / "config.json").write_text(json.dumps(written))
    named = "config.seed" if missing == "there" else "config.optimizer.amsgrad"
    assert named in refusal(folder, default_config())


def test_checkpoint_settings_may_change(folder: Path):
    made(folder, default_config())
    made(folder, config_with(checkpoint__every_epochs=3, checkpoint__keep=9))
    assert written_config(folder)["checkpoint"] == {"every_epochs": 3, "keep": 9}


def test_devices_may_change(folder: Path):
    made(folder, default_config())
    made(folder, config_with(mesh__seed=2, mesh__data=4))
    written = written_config(folder)
    assert written["mesh"] == {"seed": 2, "data": 4}
    del written["mesh"]  # as the runs of version 0.1.0 were
    (folder / "config.json").write_text(json.dumps(written))
    made(folder, default_config())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"text"', "[1, 2]", '{"seed": 0', "{1: 2}"]
)
def test_damaged_config_json_is_refused(folder: Path, text: str):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    refused = refusal(folder, default_config())
    assert str(folder) in refused
    assert "--restart" in refused
    assert files_below(folder) == {".lock": b"", "config.json": text.encode()}


def test_config_json_that_is_no_text_is_refused(folder: Path):
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json" in refusal(folder, default_config())


def test_restart_moves_aside_and_keeps_everything(folder: Path):
    for number in range(3):
        files = made(folder, config_with(seed=number), restart=True)
        assert list(files_below(folder)) == [".lock", "config.json"]
        files.append_metrics([{"epoch": number}])
        (folder / "deeper").mkdir()
        (folder / "deeper" / "file").write_text(f"content {number}")
        expected = folder.with_name(f"a.{number}") if number else None
        assert files.moved_to == expected
    siblings = sorted(path.name for path in folder.parent.iterdir())
    assert siblings == ["a", "a.1", "a.2"]
    for number, name in enumerate(("a.1", "a.2", "a")):
        there = folder.with_name(name)
        assert written_config(there)["seed"] == number
        assert (there / "metrics.jsonl").read_text() == json.dumps({"epoch": number}) + "\n"
        assert (there / "deeper" / "file").read_text() == f"content {number}"


def test_restart_skips_names_that_are_taken(folder: Path):
    made(folder, default_config())
    folder.with_name("a.1").write_text("mine")
    files = made(folder, default_config(), restart=True)
    assert files.moved_to == folder.with_name("a.2")
    assert folder.with_name("a.1").read_text() == "mine"


def test_restart_leaves_alone_what_is_no_run(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    before = files_below(tmp_path)
    for name in ("file", "folder", "folder/..", "."):
        path = tmp_path / name
        assert str(tmp_path) in refusal(path, default_config(), restart=True)
    assert files_below(tmp_path) == before


def test_restart_in_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    made(folder, config_with(seed=1))
    monkeypatch.chdir(folder)
    made(Path("."), config_with(seed=2), restart=True)
    for name, seed in (("a.1", 1), ("a", 2)):
        assert written_config(folder.with_name(name))["seed"] == seed


def test_restart_of_a_run_behind_a_link(folder: Path, tmp_path: Path):
    """What is moved aside is the run, and the new one is where the old one was."""
    made(folder, config_with(seed=1))
    (tmp_path / "link").symlink_to(folder)
    made(tmp_path / "link", config_with(seed=2), restart=True)
    assert (tmp_path / "link").readlink() == folder
    for name, seed in ((f"{folder.name}.1", 1), (folder.name, 2)):
        assert written_config(folder.with_name(name))["seed"] == seed


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


ROWS = [
    {"seed": seed, "epoch": epoch, "loss": 0.1 * epoch} for epoch in (1, 2, 3) for seed in (4, 5)
]


def test_metrics_are_appended(folder: Path):
    files = made(folder, default_config())
    for first in (0, 2, 4):
        files.append_metrics(ROWS[first : first + 2])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert lines[0] == '{"seed": 4, "epoch": 1, "loss": 0.1}'


LINES = [json.dumps(row) + "\n" for row in ROWS]


@pytest.mark.parametrize(
    ("before", "lacked"),
    [
        pytest.param(None, True, id="missing"),
        pytest.param("", True, id="empty"),
        pytest.param("".join(LINES[:3]), True, id="shorter"),
        pytest.param("".join(LINES[:3]) + LINES[3][:-1], True, id="no last newline"),
        pytest.param("garbage\n" + "".join(LINES[1:4]), True, id="garbage"),
        pytest.param("\udcff" + "".join(LINES[:4]), True, id="no text"),
        pytest.param("".join(LINES[2:]), True, id="other rows"),
        pytest.param("".join(LINES[:4]), False, id="intact"),
        pytest.param("".join(LINES), False, id="later rows"),
        pytest.param("".join(LINES[:4]) + LINES[4][:9], False, id="half a line"),
    ],
)
def test_metrics_become_those_of_the_checkpoint(folder: Path, before: str | None, lacked: bool):
    """The checkpoint holds two epochs; a crash may have left more or less, or half a line."""
    files = made(folder, default_config())
    if before is not None:
        (folder / "metrics.jsonl").write_bytes(before.encode("utf-8", "surrogateescape"))
    assert files.write_metrics(ROWS[:4]) is lacked
    assert (folder / "metrics.jsonl").read_text() == "".join(LINES[:4])
    assert set(files_below(folder)) == {".lock", "config.json", "metrics.jsonl"}


@pytest.mark.parametrize("before", ["", "".join(LINES)])
def test_run_from_the_start_has_no_metrics(folder: Path, before: str):
    files = made(folder, default_config())
    (folder / "metrics.jsonl").write_text(before)
    assert not files.write_metrics([])
    assert (folder / "metrics.jsonl").read_text() == ""


def test_summary_is_json(folder: Path):
    files = made(folder, default_config())
    assert files.read_summary() is None
    files.write_summary({"model": "model3", "final_accuracy": scores.summary([99.0])})
    files.write_summary({"model": "model1", "final_accuracy": scores.summary([98.5])})
    expected = {
        "model": "model1",
        "final_accuracy": {"mean": 98.5, "sd": None, "min": 98.5, "max": 98.5, "ci95": None},
    }
    assert json.loads((folder / "summary.json").read_text()) == expected
    assert files.read_summary() == expected
    assert set(files_below(folder)) == {".lock", "config.json", "summary.json"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_damaged_summary_is_none(folder: Path, content: bytes):
    files = made(folder, default_config())
    (folder / "summary.json").write_bytes(content)
    assert files.read_summary() is None


def test_storage_errors_are_one_line(tmp_path: Path):
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith(f"{tmp_path}: No space left on device: see that the disk")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match=r"/plot\.png: No space"), storage_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "/plot.png")
    with pytest.raises(ValueError, match="mine"), storage_errors(tmp_path):
        raise ValueError("mine")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.jsonl", lambda files: files.append_metrics(ROWS)),
        ("metrics.jsonl.partial", lambda files: files.write_metrics(ROWS)),
        ("summary.json.partial", lambda files: files.write_summary({"model": "model3"})),
    ],
)
def test_full_disk_is_told(folder: Path, name: str, write: Callable[[Workdir], object]):
    files = made(folder, default_config())
    (folder / name).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=rf"{folder}/\S+: No space left on device"):
        write(files)
    assert files.read_summary() is None


def test_config_json_holds_every_field(folder: Path):
    made(folder, default_config())
    written = written_config(folder)
    leaves = sum(len(value) if isinstance(value, dict) else 1 for value in written.values())
    assert leaves == len(flatten(default_config()))


def test_refused_workdir_is_free_for_the_next(folder: Path):
    """Even while the error is kept, as in a notebook."""
    made(folder, default_config())
    other = config_with(seed=5)
    with pytest.raises(UserError) as caught:
        Workdir(folder, other)
    made(folder, default_config())
    assert "seed" in str(caught.value)
