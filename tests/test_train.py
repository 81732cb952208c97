"""Whole runs, in process: what they reach, what they leave behind, how they are taken up."""

import json

import jax
import numpy as np
import pytest

from jaxmnist import train
from jaxmnist.config import Config, default_config
from jaxmnist.errors import DivergenceError, UserError


def quick(**fields) -> Config:
    config = default_config()
    config.update_from_flattened_dict(
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
        | fields
    )
    return config


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_timing(rows: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


def test_learns_real_digits(tmp_path):
    """120 steps, a quarter of an epoch, on real data: measured 96.7 to 97.4 % over five seeds."""
    summary = train.run(quick(), tmp_path / "run")
    assert summary["final_accuracy"]["mean"] > 96
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [60, 120]
    assert rows[-1]["eval_accuracy"] == summary["final_accuracy"]["mean"]
    assert rows[0]["train_accuracy"] < rows[1]["train_accuracy"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["params"] == 7784
    assert summary["final_accuracy"]["sd"] is None


def test_seeds_in_one_program_equal_single_runs(tmp_path):
    """On one device a run: how a batch is split changes the rounding, and 20 steps enlarge that."""
    fields = {"steps_per_epoch": 10, "model": "compact_tiny", "dropout": 0.1, "mesh.data": 1}
    train.run(quick(**fields, num_seeds=3, seed=4), tmp_path / "together")
    together = without_timing(metrics(tmp_path / "together"))
    for seed in (4, 5, 6):
        train.run(quick(**fields, seed=seed), tmp_path / str(seed))
        of_seed = [row for row in together if row["seed"] == seed]
        for row, alone in zip(of_seed, metrics(tmp_path / str(seed)), strict=True):
            assert row == pytest.approx({k: alone[k] for k in row}, rel=1e-4)


def test_run_is_taken_up_where_it_stopped(tmp_path, monkeypatch, idx_folder):
    """Interrupted in the third epoch and started again, it ends as if nothing had happened."""
    config = quick(dataset=str(idx_folder), num_epochs=4, steps_per_epoch=0, batch_size=100)
    train.run(config, tmp_path / "whole")

    epochs = []
    train_epoch = train._train_epoch

    def interrupted(config, programs, states, epoch, progress):
        epochs.append(epoch)
        if epoch == 3:
            raise KeyboardInterrupt
        return train_epoch(config, programs, states, epoch, progress)

    monkeypatch.setattr(train, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.run(config, tmp_path / "cut")
    assert [row["epoch"] for row in metrics(tmp_path / "cut")] == [1, 2]
    assert not (tmp_path / "cut" / "summary.json").exists()

    monkeypatch.setattr(train, "_train_epoch", train_epoch)
    train.run(config, tmp_path / "cut")
    whole, cut = metrics(tmp_path / "whole"), metrics(tmp_path / "cut")
    assert without_timing(cut) == without_timing(whole)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_run_is_taken_up_on_other_devices(tmp_path, monkeypatch, idx_folder):
    """An epoch on one device, a second one on four: as if both had been on one, but for rounding.

    The learning rate is small enough for rounding to stay what it is.
    """
    fields = {
        "dataset": str(idx_folder),
        "model": "compact_tiny",
        "dropout": 0.1,
        "num_seeds": 2,
        "steps_per_epoch": 0,
        "batch_size": 100,
        "optimizer.learning_rate": 0.001,
        "schedule.name": "constant",
    }
    one, several = (quick(**fields, **{"mesh.seed": n, "mesh.data": n}) for n in (1, 2))
    train.run(one, tmp_path / "one")

    train_epoch = train._train_epoch

    def interrupted(config, programs, states, epoch, progress):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(config, programs, states, epoch, progress)

    monkeypatch.setattr(train, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.run(one, tmp_path / "moved")
    monkeypatch.setattr(train, "_train_epoch", train_epoch)
    train.run(several, tmp_path / "moved")
    rows = [without_timing(metrics(tmp_path / name)) for name in ("moved", "one")]
    assert len(rows[0]) == 4
    for moved, expected in zip(*rows, strict=True):
        assert moved == pytest.approx(expected, rel=1e-5)


def test_finished_run_is_only_reported(tmp_path, idx_folder, capsys):
    config = quick(dataset=str(idx_folder), steps_per_epoch=2)
    first = train.run(config, tmp_path / "run")
    again = train.run(config, tmp_path / "run")
    assert again["final_accuracy"] == first["final_accuracy"]
    assert len(metrics(tmp_path / "run")) == 2
    assert "resumed after epoch 2 of 2" in capsys.readouterr().out


def test_last_smaller_batch_is_trained_on(tmp_path, idx_folder):
    config = quick(dataset=str(idx_folder), steps_per_epoch=0, batch_size=150, num_epochs=1)
    train.run(config, tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert row["step"] == 5  # 640 = 4·150 + 40
    assert row["train_accuracy"] * 640 / 100 == pytest.approx(
        round(row["train_accuracy"] * 640 / 100)
    )
    assert row["eval_accuracy"] * 200 / 100 == pytest.approx(
        round(row["eval_accuracy"] * 200 / 100)
    )


def test_divergence_stops_the_run(tmp_path, idx_folder):
    config = quick(
        **{
            "dataset": str(idx_folder),
            "steps_per_epoch": 0,
            "optimizer.learning_rate": 1e30,
            "optimizer.weight_decay": 1e30,
            "schedule.name": "constant",
            "seed": 3,
        }
    )
    with pytest.raises(DivergenceError, match=r"step \d \(epoch 1, seed 3\).*learning_rate"):
        train.run(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == []


def test_divergence_in_the_last_step_stops_the_run(tmp_path, idx_folder):
    """The loss of a step is taken before its update: only the evaluation sees the last one."""
    config = quick(
        **{
            "dataset": str(idx_folder),
            "model": "compact_tiny",
            "num_epochs": 1,
            "steps_per_epoch": 1,
            "optimizer.learning_rate": 1e30,
            "schedule.name": "constant",
        }
    )
    with pytest.raises(DivergenceError, match=r"step 1 \(epoch 1, seed 0\)"):
        train.run(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == []
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*")) == []


def test_too_many_steps_are_refused_before_anything_is_written(tmp_path, idx_folder):
    config = quick(dataset=str(idx_folder), steps_per_epoch=1000)
    with pytest.raises(UserError, match=r"steps_per_epoch is 1000.*640 training images.*5 steps"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_accuracy_counts_training_mode_batches(tmp_path, idx_folder):
    """With no learning to speak of, training accuracy is that of the initial network."""
    fields = {"optimizer.learning_rate": 1e-12, "schedule.name": "constant", "num_epochs": 1}
    train.run(quick(dataset=str(idx_folder), steps_per_epoch=0, **fields), tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert 0 <= row["train_accuracy"] < 35
    assert row["train_loss"] == pytest.approx(np.log(10), abs=0.4)
