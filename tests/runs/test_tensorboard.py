"""The event files of runs, read back: the numbers of metrics.jsonl and the figures."""

import io
import json
import math
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.image
import numpy as np
import pytest
import tensorboardX
from saved_runs import cut, tiny_config
from signals_in import signal_in_segment
from tensorboardX.proto import event_pb2
from workdirs import rows_of

from jaxmnist.config import Config
from jaxmnist.errors import Stopped, StorageError, UserError
from jaxmnist.networks import models
from jaxmnist.networks.layers import BatchNorm, Conv, Flatten, GlobalAvgPool, Linear, MaxPool, Relu
from jaxmnist.runs import train
from jaxmnist.runs.tensorboard import EventFiles
from jaxmnist.training import hosts

TAGS = {
    "loss/train": "train_loss",
    "loss/eval": "eval_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/eval": "eval_accuracy",
    "learning_rate": "learning_rate",
    "momentum": "momentum",
    "images_per_second": "images_per_second",
}
FIGURES = ("learning_curves", "schedule", "confusion_matrix", "misclassified")
SEEDS = (4, 5)


def small_network(_: float) -> models.Layers:
    """In the place of compact_tiny: compiled in less time."""
    return (
        *(Conv(4, 3, 1), BatchNorm(), Relu(), MaxPool()),
        *(GlobalAvgPool(), Flatten(), Linear(10)),
    )


class Runs(NamedTuple):
    """A run at two times: stopped after two epochs, and finished. Not to be changed.

    The checkpoint of epoch 2 was damaged in between: it was trained twice.
    """

    config: Config
    stopped: Path
    finished: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> Iterator[Runs]:
    fields = {"dataset": str(idx_folder), "dropout": 0.0, "mesh.data": 1}
    folder, config = tmp_path_factory.mktemp("runs"), tiny_config(**fields)
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "compact_tiny", small_network)
        with signal_in_segment(2, signal.SIGTERM), pytest.raises(Stopped):
            train.run(config, run, tensorboard=True)
        stopped = Path(shutil.copytree(run, folder / "stopped"))
        cut(run / "checkpoints" / "4")
        train.run(config, run, tensorboard=True)
        yield Runs(config, stopped, run)


@pytest.fixture
def copy(runs: Runs, tmp_path: Path) -> Path:
    """The finished run without its event files."""
    workdir = Path(shutil.copytree(runs.finished, tmp_path / "run"))
    shutil.rmtree(workdir / "tensorboard")
    return workdir


def files_of(workdir: Path, seed: int) -> list[Path]:
    return sorted((workdir / "tensorboard" / f"seed_{seed}").iterdir())


def file_of(workdir: Path, seed: int) -> Path:
    """The only one that is not empty."""
    (file,) = (f for f in files_of(workdir, seed) if f.stat().st_size)
    return file


def records_of(file: Path) -> list[bytes]:
    stream, records = io.BytesIO(file.read_bytes()), []
    while header := stream.read(12):
        (size,) = struct.unpack("<Q", header[:8])
        records.append(stream.read(size))
        assert len(stream.read(4)) == 4
    return records


def events_of(workdir: Path, seed: int) -> list[Any]:
    messages: Any = event_pb2
    return [messages.Event.FromString(record) for record in records_of(file_of(workdir, seed))]


def points_of(workdir: Path, seed: int) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars by tag, in the order of the file."""
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in events_of(workdir, seed)
        if event.HasField("summary") and event.summary.value[0].HasField("simple_value")
    ]


def points_in(rows: list[dict[str, Any]], seed: int) -> list[tuple[int, dict[str, float]]]:
    """What ``points_of`` finds where these are written, in float32."""
    return [
        (row["step"], {tag: float(np.float32(row[name])) for tag, name in TAGS.items()})
        for row in rows
        if row["seed"] == seed
    ]


def images_of(workdir: Path, seed: int) -> list[tuple[int, str, Any]]:
    return [
        (event.step, value.tag, value.image)
        for event in events_of(workdir, seed)
        for value in event.summary.value
        if value.HasField("image")
    ]


def row(seed: int, epoch: int, **fields: Any) -> dict[str, Any]:
    numbers = {name: 10.0 * epoch + seed for name in TAGS.values()}
    return {"seed": seed, "epoch": epoch, "step": 2 * epoch, "seconds": 3.0} | numbers | fields


@pytest.mark.parametrize("seed", SEEDS)
def test_points_are_the_rows(seed: int, runs: Runs):
    """Also of an epoch that is trained again: its step comes once."""
    assert [step for step, _ in points_of(runs.stopped, seed)] == [2, 4]
    assert [step for step, _ in points_of(runs.finished, seed)] == [2, 4, 6]
    for workdir in (runs.stopped, runs.finished):
        assert points_of(workdir, seed) == points_in(rows_of(workdir), seed)
    assert points_of(runs.stopped, seed)[1] != points_of(runs.finished, seed)[1]  # as to images/s


def test_figures_are_those_of_the_run(runs: Runs):
    images = images_of(runs.finished, 4)
    assert [(step, tag) for step, tag, _ in images] == [(6, f"figures/{name}") for name in FIGURES]
    for name, (_, _, image) in zip(FIGURES, images, strict=True):
        png = runs.finished / f"{name}.png"
        assert image.encoded_image_string == png.read_bytes()
        drawn = matplotlib.image.imread(png)
        assert (image.height, image.width, image.colorspace) == drawn.shape
    assert images_of(runs.finished, 5) == images_of(runs.stopped, 4) == []


def test_files_are_framed_as_by_tensorboardx(runs: Runs, tmp_path: Path):
    file = file_of(runs.finished, 4)
    assert "tfevents" in file.name
    writer = tensorboardX.RecordWriter(str(tmp_path / "events"))
    for record in records_of(file):
        writer.write(record)
    writer.close()
    assert (tmp_path / "events").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_open_tensorboard_begins_anew(seed: int, runs: Runs):
    """It goes on to a file of a greater name, and START voids what was in the one before.

    That one is still there, since otherwise it would go no further.
    """
    empty, file = files_of(runs.finished, seed)
    assert [empty.name] == [file.name for file in files_of(runs.stopped, seed)]
    assert empty.stat().st_size == 0
    assert file == file_of(runs.finished, seed)
    version, start = events_of(runs.finished, seed)[:2]
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (0, start.session_log.START)


@pytest.mark.parametrize("seed", SEEDS)
def test_time_is_that_of_training(seed: int, runs: Runs):
    rows = [row for row in rows_of(runs.finished) if row["seed"] == seed]
    times = [event.wall_time for event in events_of(runs.finished, seed)]
    seconds = np.diff(times[1:5]).tolist()  # START and three epochs
    assert seconds == pytest.approx([row["seconds"] for row in rows], abs=1e-5)
    assert abs(time.time() - times[-1]) < 3600


def test_finished_run_gets_them_too(runs: Runs, copy: Path):
    (copy / "schedule.png").unlink()
    (copy / "misclassified.png").write_bytes(b"\x89PNG")
    for _ in range(2):
        train.run(runs.config, copy, tensorboard=True)
        for seed in SEEDS:
            assert points_of(copy, seed) == points_of(runs.finished, seed)
        tags = [tag for _, tag, _ in images_of(copy, 4)]
        assert tags == ["figures/learning_curves", "figures/confusion_matrix"]


def test_restart_moves_them_aside(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(train, "_draw", lambda *_: None)
    workdir = Path(shutil.copytree(runs.stopped, tmp_path / "run"))
    train.run(runs.config, workdir, restart=True)
    assert f"moved the old {workdir} to {workdir}.1\n" in capsys.readouterr().out
    assert not (workdir / "tensorboard").exists()
    assert points_of(tmp_path / "run.1", 5) == points_of(runs.stopped, 5)


def test_nothing_is_written_unless_wanted(runs: Runs, copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor is the library missed."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(train, "_draw", lambda *_: None)
    (copy / "summary.json").unlink()  # for all that comes after the last epoch
    train.run(runs.config, copy)
    assert (copy / "summary.json").exists()
    assert not (copy / "tensorboard").exists()


def test_missing_library_is_told_before_anything_is_written(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError) as caught:
        train.run(runs.config, tmp_path / "run", tensorboard=True)
    assert str(caught.value) == (
        "--tensorboard is given and tensorboardX is missing: pip install 'jaxmnist[tensorboard]'"
    )
    assert not (tmp_path / "run").exists()


def test_rows_are_on_disk_at_once(tmp_path: Path):
    rows: list[dict[str, Any]] = []
    files = EventFiles(tmp_path, SEEDS)
    files.write([])
    for epoch in (1, 2):
        new = [row(seed, epoch) for seed in SEEDS]
        files.append(new)
        rows += new
        for seed in SEEDS:
            assert points_of(tmp_path, seed) == points_in(rows, seed)


def test_points_of_an_earlier_start_go(tmp_path: Path):
    """And nothing else does."""
    earlier = EventFiles(tmp_path, SEEDS)
    earlier.write([row(seed, epoch) for epoch in (1, 2, 3) for seed in SEEDS])
    note = tmp_path / "tensorboard" / "note.txt"
    note.write_text("mine")
    rows = [row(seed, 1) for seed in SEEDS]
    for _ in range(3):
        EventFiles(tmp_path, SEEDS).write(rows)
        for seed in SEEDS:
            assert points_of(tmp_path, seed) == points_in(rows, seed)
            assert len(files_of(tmp_path, seed)) == 2  # this start's and the last one's, empty
    assert note.read_text() == "mine"


def test_null_is_not_a_number(tmp_path: Path):
    rows = json.loads(json.dumps([row(4, 1, train_loss=None, eval_loss=None)]))
    files = EventFiles(tmp_path, (4,))
    files.write(rows)
    files.append([row(4, 2)])
    (_, first), (_, second) = points_of(tmp_path, 4)
    assert math.isnan(first["loss/train"])
    assert math.isnan(first["loss/eval"])
    assert (first["accuracy/eval"], second["loss/train"]) == (14, 24)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = EventFiles(tmp_path, SEEDS)
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    files.write([row(4, 1)])
    files.append([row(4, 2)])
    files.add_figures()
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_a_storage_error(runs: Runs, copy: Path):
    (copy / "tensorboard").write_text("in the way")
    with pytest.raises(StorageError, match=r"tensorboard.*: Not a directory: see that the disk"):
        train.run(runs.config, copy, tensorboard=True)
    (copy / "tensorboard").unlink()
    train.run(runs.config, copy, tensorboard=True)
    assert points_of(copy, 5) == points_of(runs.finished, 5)


def test_full_disk_is_a_storage_error(tmp_path: Path):
    files = EventFiles(tmp_path, SEEDS)
    files.write([])
    file = file_of(tmp_path, 4)
    file.unlink()
    file.symlink_to("/dev/full")
    for add in (lambda: files.append([row(4, 1)]), files.add_figures):
        with pytest.raises(StorageError, match=r"seed_4.*: No space left on device: see that"):
            add()
