"""Whole runs, in process: what they reach, what they leave behind, how they are taken up."""

import contextlib
import functools
import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from signals_in import signal_in_segment
from workdirs import but_for_rounding, files_below, rows_of, without_timing

from jaxmnist.config import Config, default_config
from jaxmnist.errors import DivergenceError, Stopped, UserError
from jaxmnist.networks import models, target
from jaxmnist.networks.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Relu,
)
from jaxmnist.runs import fit, saved_run, train
from jaxmnist.runs.checkpoint import Checkpoints, Record
from jaxmnist.runs.cohort import Cohort
from jaxmnist.training import programs
from jaxmnist.training.programs import Programs


@pytest.fixture(scope="module", autouse=True)
def _no_plots() -> Iterator[None]:
    """They take longer than most runs here; test_main looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_draw", lambda *_: None)
        yield


def config_with(fields: dict[str, Any]) -> Config:
    config = default_config()
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.long
def test_learns_real_digits(tmp_path: Path):
    """120 steps, a quarter of an epoch, on real data: measured 96.7 to 97.4 % over five seeds."""
    config = config_with(
        {
            "model": "model3",
            "num_epochs": 2,
            "steps_per_epoch": 60,
            "optimizer.learning_rate": 0.1,
            "optimizer.nesterov": True,
            "schedule.name": "onecycle",
            "label_smoothing": 0.02,
            "augment.rotate_degrees": 7.0,
        }
    )
    summary = train.run(config, tmp_path / "run")
    assert summary["final_accuracy"]["mean"] > 96
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[-1]["eval_accuracy"] == summary["final_accuracy"]["mean"]
    assert rows[0]["train_accuracy"] < rows[1]["train_accuracy"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["params"] == 7784
    assert summary["final_accuracy"]["sd"] is None


# Runs of 3 epochs of 7 steps, the last of which has 40 images, in segments of 2, 2, 2 and 1.


def small_network(dropout: float) -> models.Layers:
    """A layer of each kind that has a state or randomness; a run is the same with any network."""
    return (
        *(Conv(4, 3, 1), BatchNorm(), Relu(), MaxPool()),
        *(Dropout(dropout, whole_channels=True), GlobalAvgPool(), Flatten(), Linear(10)),
    )


@pytest.fixture(scope="module", autouse=True)
def _small_network() -> Iterator[None]:
    """In the place of compact_tiny: compiled in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.NETWORKS, "compact_tiny", small_network)
        yield


def tiny(idx_folder: Path, **fields: Any) -> Config:
    """A learning rate small enough for rounding to stay what it is, and one device a seed."""
    return config_with(
        {
            "model": "compact_tiny",
            "dropout": 0.1,
            "dataset": str(idx_folder),
            "num_epochs": 3,
            "batch_size": 100,
            "seed": 4,
            "optimizer.learning_rate": 0.001,
            "schedule.name": "step",
            "schedule.step_size": 1,
            "augment.rotate_degrees": 7.0,
            "mesh.data": 1,
        }
        | fields
    )


def chunks_of(steps: int) -> contextlib.AbstractContextManager:
    return target.form(target.current()._replace(chunk_steps=steps))


def stop(config: Config, workdir: Path, segment: int, sent: signal.Signals) -> str:
    """Runs in chunks of 2 until the signal; the message."""
    with (
        chunks_of(2),
        signal_in_segment(segment, sent),
        pytest.raises(Stopped) as caught,
    ):
        train.run(config, workdir)
    assert caught.value.cause is sent
    assert not (workdir / "summary.json").exists()
    return str(caught.value)


class Reference(NamedTuple):
    """A run that nothing befell, and one that was stopped in epoch 2; neither to be changed."""

    config: Config
    whole: Path
    stopped: Path
    message: str


GetReference = Callable[[int], Reference]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, idx_folder: Path) -> GetReference:
    """By the number of seeds."""

    @functools.cache
    def make(seeds: int) -> Reference:
        folder = tmp_path_factory.mktemp("reference")
        config = tiny(idx_folder, num_seeds=seeds)
        with chunks_of(2):
            train.run(config, folder / "whole")
        sent = signal.SIGTERM if seeds == 1 else signal.SIGINT
        message = stop(config, folder / "stopped", 6, sent)
        return Reference(config, folder / "whole", folder / "stopped", message)

    return make


def checkpoints_of(workdir: Path) -> dict[int, Record]:
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        assert checkpoints.damaged == []
        return {step: checkpoints.record(step) for step in checkpoints.steps()}


def assert_same_end(workdir: Path, expected: Reference) -> None:
    """Bit for bit: metrics, accuracies, the final states of all seeds."""
    assert without_timing(rows_of(workdir)) == without_timing(rows_of(expected.whole))
    assert all(row["seconds"] > 0 for row in rows_of(workdir))
    summaries = [json.loads((w / "summary.json").read_text()) for w in (workdir, expected.whole)]
    for name in ("final_accuracy", "best_accuracy", "num_epochs", "num_seeds"):
        assert summaries[0][name] == summaries[1][name]
    first = expected.config.seed
    for seed in range(first, first + expected.config.num_seeds):
        states = [saved_run.load(w, seed=seed).state for w in (workdir, expected.whole)]
        for found, leaf in zip(*map(jax.tree.leaves, states), strict=True):
            assert np.asarray(found).tobytes() == np.asarray(leaf).tobytes()


@pytest.mark.parametrize("seeds", [1, 3])
def test_stop_within_an_epoch_is_taken_up(
    seeds: int, reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, _, stopped, message = expected = reference(seeds)
    assert message == (
        f"interrupted by {'SIGTERM' if seeds == 1 else 'SIGINT'} after step 11 (epoch 2 of 3), "
        "everything is saved; the same command goes on from there"
    )
    assert [(row["epoch"], row["seed"]) for row in rows_of(stopped)] == [
        (1, 4 + index) for index in range(seeds)
    ]
    records = checkpoints_of(stopped)
    assert list(records) == [7, 11]
    assert records[11].epoch == 1
    assert records[11].rows == records[7].rows == rows_of(stopped)
    partial = records[11].partial
    assert partial is not None
    assert (partial.steps, partial.images, len(partial.loss_S)) == (4, 400, seeds)

    workdir = shutil.copytree(stopped, tmp_path / "run")
    with chunks_of(2):
        train.run(config, workdir)
    assert "resumed in epoch 2 of 3, after 4 of 7 steps\n" in capsys.readouterr().out
    assert list(checkpoints_of(workdir))[-2:] == [14, 21]
    assert_same_end(workdir, expected)


def test_stop_before_the_last_step_of_an_epoch(
    reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """An epoch that lacks its last step must not pass for a whole one."""
    expected = reference(1)
    message = stop(expected.config, tmp_path / "run", 7, signal.SIGTERM)
    assert message.startswith("interrupted by SIGTERM after step 13 (epoch 2 of 3), everything is")
    assert [row["epoch"] for row in rows_of(tmp_path / "run")] == [1]
    records = checkpoints_of(tmp_path / "run")
    assert list(records) == [7, 13]
    partial = records[13].partial
    assert partial is not None
    assert (records[13].epoch, partial.steps, partial.images) == (1, 6, 600)
    with chunks_of(2):
        train.run(expected.config, tmp_path / "run")
    assert "resumed in epoch 2 of 3, after 6 of 7 steps\n" in capsys.readouterr().out
    assert_same_end(tmp_path / "run", expected)


def test_stop_within_a_segment_is_taken_up(reference: GetReference, tmp_path: Path):
    """Segments of 3, of which step 4 is the first of the second one."""
    config, _, stopped, _ = expected = reference(1)
    workdir = shutil.copytree(stopped, tmp_path / "run")
    with chunks_of(3):
        train.run(config, workdir)
    assert_same_end(workdir, expected)


@pytest.mark.parametrize(("segment", "step", "resumed"), [(4, 7, "after epoch 1"), (6, 11, "in")])
def test_stop_between_two_checkpoints_loses_nothing(
    segment: int,
    step: int,
    resumed: str,
    reference: GetReference,
    idx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """In the last segment of epoch 1 and in the second of epoch 2, with all of 5 in between."""
    config = tiny(idx_folder, **{"checkpoint.every_epochs": 5})
    message = stop(config, tmp_path / "run", segment, signal.SIGINT)
    assert message.startswith(f"interrupted by SIGINT after step {step} (")
    assert list(checkpoints_of(tmp_path / "run")) == [step]
    with chunks_of(2):
        train.run(config, tmp_path / "run")
    assert f"resumed {resumed}" in capsys.readouterr().out
    assert_same_end(tmp_path / "run", reference(1))


def test_signal_in_the_last_segment_comes_too_late(reference: GetReference, tmp_path: Path):
    config = reference(1).config
    with chunks_of(2), signal_in_segment(12, signal.SIGTERM):
        train.run(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", reference(1))


def test_lost_metrics_are_written_again(
    reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, _, stopped, _ = expected = reference(1)
    workdir = shutil.copytree(stopped, tmp_path / "run")
    (workdir / "metrics.jsonl").unlink()
    with chunks_of(2):
        train.run(config, workdir)
    assert "metrics.jsonl lacked epochs that the checkpoint has" in capsys.readouterr().out
    assert_same_end(workdir, expected)


def test_damaged_checkpoint_costs_what_came_after_the_one_before(
    reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, _, stopped, _ = expected = reference(1)
    workdir = shutil.copytree(stopped, tmp_path / "run")
    (workdir / "checkpoints" / "11" / "manifest.ocdbt").write_bytes(b"")
    with chunks_of(2):
        train.run(config, workdir)
    said = capsys.readouterr().out
    assert "11 is damaged (manifest.ocdbt has changed): moved to 11.damaged.1\n" in said
    assert "resumed after epoch 1 of 3\n" in said
    assert (workdir / "checkpoints" / "11.damaged.1").is_dir()
    assert_same_end(workdir, expected)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_run_is_taken_up_on_other_devices(reference: GetReference, tmp_path: Path):
    """From a device a seed to four that share each batch, in segments of 3: all but rounding."""
    config, whole, stopped, _ = reference(3)
    assert config.mesh.seed == 0
    workdir = shutil.copytree(stopped, tmp_path / "run")
    moved = config.copy_and_resolve_references()
    moved.mesh.seed, moved.mesh.data = 1, 4
    with chunks_of(9):
        train.run(moved, workdir)
    rows = [without_timing(rows_of(folder)) for folder in (workdir, whole)]
    assert len(rows[0]) == 9
    for found, expected in zip(*rows, strict=True):
        assert found == but_for_rounding(expected, rel=1e-5)


def test_seeds_in_one_program_equal_single_runs(
    reference: GetReference, idx_folder: Path, tmp_path: Path
):
    together = without_timing(rows_of(reference(3).whole))
    for seed in (4, 5, 6):
        alone = reference(1).whole
        if seed != 4:
            alone = tmp_path / str(seed)
            with chunks_of(2):
                train.run(tiny(idx_folder, seed=seed), alone)
        of_seed = [row for row in together if row["seed"] == seed]
        for row, other in zip(of_seed, without_timing(rows_of(alone)), strict=True):
            assert row == but_for_rounding(other, rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_more_epochs_equal_a_run_of_that_length(
    schedule: str,
    reference: GetReference,
    idx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    config, expected = reference(1).config, reference(1)
    if schedule == "constant":
        config = tiny(idx_folder, **{"schedule.name": "constant", "steps_per_epoch": 2})
        train.run(config, tmp_path / "whole")
        expected = Reference(config, tmp_path / "whole", tmp_path, "")
    shorter = config.copy_and_resolve_references()
    shorter.num_epochs = 2
    with chunks_of(2):
        train.run(shorter, tmp_path / "run")
        assert len(rows_of(tmp_path / "run")) == 2
        capsys.readouterr()
        train.run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert f"goes on to 3 epochs, 2 before; the {schedule} schedule of those stays" in said
    assert "resumed after epoch 2 of 3\n" in said
    assert_same_end(tmp_path / "run", expected)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_):
        raise AssertionError("nothing may be compiled")

    monkeypatch.setattr(Cohort, "programs", refuse)


@pytest.mark.usefixtures("no_training")
def test_finished_run_is_only_reported(
    reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, whole, _, _ = reference(1)
    workdir = shutil.copytree(whole, tmp_path / "run")
    written = (workdir / "summary.json").stat().st_mtime_ns
    before = files_below(workdir)
    summary = train.run(config, workdir)
    assert files_below(workdir) == before
    assert (workdir / "summary.json").stat().st_mtime_ns == written
    assert summary == json.loads((workdir / "summary.json").read_text())
    said = capsys.readouterr().out
    assert said.startswith("finished already; --restart moves it aside and starts over\n")
    assert f"final accuracy {summary['final_accuracy']['mean']:.2f} %" in said
    (workdir / "metrics.jsonl").unlink()
    train.run(config, workdir)
    assert rows_of(workdir) == rows_of(whole)


@pytest.mark.usefixtures("no_training")
def test_finished_run_without_checkpoints_is_refused(reference: GetReference, tmp_path: Path):
    """It would train anew and overwrite the results."""
    config, whole, _, _ = reference(1)
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    before = files_below(workdir)
    for _ in range(2):
        with pytest.raises(UserError, match=r"finished run without any intact.*--restart"):
            train.run(config, workdir)
    assert files_below(workdir) == before


def test_run_that_lacks_only_its_end_gets_it(
    reference: GetReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, whole, _, _ = expected = reference(1)
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "summary.json").unlink()
    with chunks_of(2):
        train.run(config, workdir)
    assert "resumed after epoch 3 of 3\n" in capsys.readouterr().out
    assert rows_of(workdir) == rows_of(whole)
    assert_same_end(workdir, expected)


def test_last_smaller_batch_is_trained_on(reference: GetReference):
    row = rows_of(reference(1).whole)[0]
    assert row["step"] == 7  # 640 = 6·100 + 40
    for accuracy, images in ((row["train_accuracy"], 640), (row["eval_accuracy"], 200)):
        assert accuracy * images / 100 == pytest.approx(round(accuracy * images / 100))


def test_seconds_are_without_compilation(
    tmp_path: Path, idx_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """By a clock of ours: each segment takes 2 s, compilation 50 s in the last one."""
    clock, train_segment = itertools.count(), Programs.train
    now = 0.0

    def train_by_the_clock(self: Programs, states: Any, order_SN: Any, segment: programs.Segment):
        nonlocal now
        result = train_segment(self, states, order_SN, segment)
        now += 2.0
        if next(clock) == 1:
            now += 50.0
            self.compile_seconds += 50.0
        return result

    class Clock:
        perf_counter = staticmethod(lambda: now)

    monkeypatch.setattr(train, "time", Clock)
    monkeypatch.setattr(fit, "time", Clock)
    monkeypatch.setattr(programs, "time", Clock)
    monkeypatch.setattr(Programs, "train", train_by_the_clock)
    with chunks_of(2):
        config = tiny(idx_folder, num_epochs=1, steps_per_epoch=4)
        summary = train.run(config, tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert row["seconds"] == summary["train_seconds"] == 4.0
    assert summary["compile_seconds"] == 50.0


def test_divergence_stops_the_run(tmp_path: Path, idx_folder: Path):
    fields = {
        "steps_per_epoch": 4,
        "optimizer.learning_rate": 1e30,
        "optimizer.weight_decay": 1e30,
        "schedule.name": "constant",
        "seed": 3,
    }
    with pytest.raises(DivergenceError, match=r"step \d \(epoch 1, seed 3\).*learning_rate"):
        train.run(tiny(idx_folder, **fields), tmp_path / "run")
    assert rows_of(tmp_path / "run") == []


def test_divergence_in_the_last_step_stops_the_run(tmp_path: Path, idx_folder: Path):
    """The loss of a step is taken before its update: only the evaluation sees the last one."""
    fields = {"num_epochs": 1, "steps_per_epoch": 1, "optimizer.learning_rate": 1e30}
    with pytest.raises(DivergenceError, match=r"step 1 \(epoch 1, seed 4\)"):
        train.run(tiny(idx_folder, **fields), tmp_path / "run")
    assert rows_of(tmp_path / "run") == []
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*")) == []


def test_too_many_steps_are_refused_before_anything_is_written(tmp_path: Path, idx_folder: Path):
    words = re.escape("steps_per_epoch is 1000: 640 training images make 7 steps")
    with pytest.raises(UserError, match=words):
        train.run(tiny(idx_folder, steps_per_epoch=1000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_accuracy_counts_training_mode_batches(tmp_path: Path, idx_folder: Path):
    """With no learning to speak of, training accuracy is that of the initial network."""
    fields = {"optimizer.learning_rate": 1e-12, "num_epochs": 1, "steps_per_epoch": 6}
    train.run(tiny(idx_folder, **fields), tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert 0 <= row["train_accuracy"] < 35
    assert row["train_loss"] == pytest.approx(np.log(10), abs=0.4)
