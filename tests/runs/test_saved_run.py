"""Runs read back: checkpoints, seeds, and what is refused."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_runs import cut, make_run, tiny_config, tiny_run
from workdirs import files_and_times

from jaxmnist.config import flatten
from jaxmnist.errors import UserError
from jaxmnist.runs import assemble, saved_run
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch, Record
from jaxmnist.runs.workdir import Workdir
from jaxmnist.training.engine import TrainState
from jaxmnist.training.population import Member

ACCURACIES = {1: 50.0, 2: 90.0, 3: 70.0, 4: 80.0}  # of `made`, which keeps 2, 3 and 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    workdir = tmp_path_factory.mktemp("made") / "run"
    return workdir, make_run(workdir, tiny_config(), ACCURACIES)


def fresh_state(run: saved_run.SavedRun) -> tuple[Callable[[Member], TrainState], Member]:
    """What makes the state that the run began with, and its argument."""
    schedule = assemble.schedule(run.config, 1)
    return assemble.engine(run.config).init, assemble.member(run.config, schedule, run.seed)


def test_last_epoch_and_first_seed_are_the_default(trained: Path):
    before = files_and_times(trained)
    run = saved_run.load(trained)
    assert files_and_times(trained) == before
    assert (run.epoch, run.seed, int(run.state.step)) == (3, 4, 6)
    assert run.config.to_json() == tiny_config().to_json()
    fresh = jax.eval_shape(*fresh_state(run)).replace(opt_state=None)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), run.state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), fresh
    )


@pytest.mark.parametrize("seed", [4, 5])
def test_seeds_are_told_apart(trained: Path, seed: int):
    run = saved_run.load(trained, seed=seed)
    assert run.seed == seed
    init, member = fresh_state(run)
    start = jax.jit(init)(member).params["layers_0"]["kernel"]
    moved = np.abs(np.asarray(run.state.params["layers_0"]["kernel"]) - np.asarray(start))
    assert 0 < moved.max() < 0.1  # six steps at 0.01; another seed's start is 0.3 away


@pytest.mark.parametrize(("checkpoint", "epoch"), [("last", 3), ("2", 2)])
@pytest.mark.parametrize("seed", [4, 5])
def test_row_is_that_of_the_epoch_and_seed(trained: Path, checkpoint: str, epoch: int, seed: int):
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    rows = {(row["seed"], row["epoch"]): row for row in map(json.loads, lines)}
    assert saved_run.load(trained, checkpoint, seed).row == rows[seed, epoch]


@pytest.mark.parametrize(
    ("checkpoint", "epoch"), [("last", 4), ("best", 2), ("2", 2), ("3", 3), ("4", 4)]
)
@pytest.mark.parametrize("seed", [4, 5])
def test_checkpoints_by_name(made: tuple[Path, TrainState], checkpoint: str, epoch: int, seed: int):
    workdir, states = made
    run = saved_run.load(workdir, checkpoint, seed)
    assert (run.epoch, int(run.state.step)) == (epoch, 10 * epoch)
    expected = jax.tree.map(lambda leaf: leaf[seed - 4], states)
    expected = expected.replace(step=run.state.step, opt_state=None)
    jax.tree.map(np.testing.assert_array_equal, run.state, expected)


def test_checkpoint_within_an_epoch_is_only_the_last(made: tuple[Path, TrainState], tmp_path: Path):
    workdir = shutil.copytree(made[0], tmp_path / "run")
    partial = PartialEpoch(5, 320, 1.0, [1.0, 1.0], [300.0, 300.0])
    with contextlib.closing(Checkpoints(workdir / "checkpoints", 3)) as checkpoints:
        states = made[1].replace(step=jnp.full(2, 45, jnp.int32))
        rows = checkpoints.record(40).rows
        checkpoints.save(45, states, Record(4, rows, partial, flatten(tiny_config())))
    for name, step, accuracy in (("4", 40, 80.0), ("best", 20, 90.0), ("3", 30, 70.0)):
        run = saved_run.load(workdir, name)
        assert int(run.state.step) == step
        assert run.row is not None
        assert run.row["eval_accuracy"] == accuracy
    run = saved_run.load(workdir, "last")
    assert (run.epoch, int(run.state.step), run.row) == (4, 45, None)
    with pytest.raises(UserError, match=r"--checkpoint is '5'.*\(2, 3, 4\)"):
        saved_run.load(workdir, "5")


@pytest.mark.parametrize(
    "checkpoint",
    ["1", "5", "0", "-1", "2.0", "two", "", " 2", "²", "9" * 1000],
    ids=lambda c: c[:5],
)
def test_checkpoints_that_are_not_kept(made: tuple[Path, TrainState], checkpoint: str):
    with pytest.raises(UserError, match=r"--checkpoint .*\(2, 3, 4\)") as raised:
        saved_run.load(made[0], checkpoint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", [-1, 0, 3, 6, 2**31, 10**30])
def test_seeds_that_the_run_has_not(made: tuple[Path, TrainState], seed: int):
    with pytest.raises(UserError, match=f"--seed is {seed}: .* 4 to 5"):
        saved_run.load(made[0], seed=seed)


def put(name: str, content: str | bytes | None) -> Callable[[Path], None]:
    """Overwrites a file of the run; None deletes it."""

    def damage(workdir: Path) -> None:
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_text(content)

    return damage


def edit(name: str, value: object) -> Callable[[Path], None]:
    """Changes a field of config.json."""

    def damage(workdir: Path) -> None:
        config = json.loads((workdir / "config.json").read_text())
        (workdir / "config.json").write_text(json.dumps(config | {name: value}))

    return damage


# What happens to the run, and what the complaint must say.
DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (put("config.json", None), "holds no run"),
    "empty config": (put("config.json", ""), "config.json is not a run's configuration"),
    "cut config": (put("config.json", '{"seed": 5,'), "config.json is not a run's"),
    "binary config": (put("config.json", b"\xff\xfe\x00"), "config.json is not a run's"),
    "config of a list": (put("config.json", "[1, 2]"), "config.json is not a run's"),
    "config of a number": (put("config.json", "3"), "config.json is not a run's"),
    "deep config": (put("config.json", "[" * 100_000), "config.json is not a run's"),
    "other keys": (put("config.json", '{"items": 3}'), "config.items is unknown"),
    "unknown model": (edit("model", "resnet"), "config.model is 'resnet'"),
    "ill-typed": (edit("num_seeds", "2"), "config.num_seeds is '2'"),
    "no checkpoints": (put("checkpoints", None), "has no checkpoint"),
    "file for a folder": (put("checkpoints", "text"), "has no checkpoint"),
    "another network": (edit("model", "model1"), "checkpoints/40 cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_told_in_one_line(name: str, made: tuple[Path, TrainState], tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    damage, words = DAMAGED[name]
    damage(workdir)
    before = files_and_times(workdir)
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        saved_run.load(workdir)
    assert "\n" not in str(raised.value)
    assert str(workdir) in str(raised.value) or "config." in words
    assert files_and_times(workdir) == before


def test_damaged_checkpoint_is_not_read(made: tuple[Path, TrainState], tmp_path: Path):
    """The one before is the last; who names the damaged one is told."""
    workdir = shutil.copytree(made[0], tmp_path / "run")
    cut(workdir / "checkpoints" / "40")
    before = files_and_times(workdir)
    assert saved_run.load(workdir).epoch == 3
    with pytest.raises(UserError, match=r"'4': .* \(2, 3, checkpoint 40 is damaged \(d/\w+ has"):
        saved_run.load(workdir, "4")
    assert files_and_times(workdir) == before


@pytest.mark.parametrize("checkpoint", ["last", "best", "2"])
def test_damage_to_all_checkpoints_is_told(
    made: tuple[Path, TrainState], tmp_path: Path, checkpoint: str
):
    workdir = shutil.copytree(made[0], tmp_path / "run")
    cut(workdir / "checkpoints" / "20")
    (workdir / "checkpoints" / "30" / "record.json").unlink()
    (workdir / "checkpoints" / "40" / "_METADATA").write_text("{")
    before = files_and_times(workdir)
    with pytest.raises(UserError, match=f"--checkpoint is '{checkpoint}'") as raised:
        saved_run.load(workdir, checkpoint)
    message = str(raised.value)
    assert "\n" not in message
    assert "checkpoint 30 is damaged (record.json is missing)" in message
    assert "checkpoint 40 is damaged (_METADATA has changed)" in message
    assert files_and_times(workdir) == before


def test_a_checkpoint_that_is_just_written_is_no_damage(
    made: tuple[Path, TrainState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = shutil.copytree(made[0], tmp_path / "run")
    record = workdir / "checkpoints" / "40" / "record.json"
    record.rename(tmp_path / "record.json")
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "record.json").rename(record))
    assert saved_run.load(workdir).epoch == 4


def test_a_checkpoint_that_is_left_for_a_newer_one_meanwhile(
    made: tuple[Path, TrainState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = shutil.copytree(made[0], tmp_path / "run")
    restore = Checkpoints.restore_networks

    def late(self: Checkpoints, step: int, *args: TrainState) -> TrainState:
        if step == 40:
            shutil.rmtree(workdir / "checkpoints" / "40")
        return restore(self, step, *args)

    monkeypatch.setattr(Checkpoints, "restore_networks", late)
    assert saved_run.load(workdir).epoch == 3


def test_folders_without_a_run(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name in ("empty", "file", "missing", "file/run", "x" * 300):
        with pytest.raises(UserError, match="holds no run"):
            saved_run.load(tmp_path / name)
    assert {path.name for path in tmp_path.rglob("*")} == {"empty", "file"}


def test_run_without_a_checkpoint_yet(tmp_path: Path):
    files = Workdir(tmp_path / "run", tiny_config())
    files.close()
    with pytest.raises(UserError, match="has no checkpoint"):
        saved_run.load(tmp_path / "run")
    files.checkpoints.mkdir()
    with pytest.raises(UserError, match=r"--checkpoint is 'last'.*\(none\)"):
        saved_run.load(tmp_path / "run")


def test_other_things_among_the_checkpoints(made: tuple[Path, TrainState], tmp_path: Path):
    """Half a checkpoint, as an interrupted save leaves it, and what people put there."""
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    (workdir / "checkpoints" / "50.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "10.removing").mkdir()
    (workdir / "checkpoints" / "notes").mkdir()
    (workdir / "checkpoints" / "notes.txt").write_text("text")
    before = files_and_times(workdir)
    assert saved_run.load(workdir).epoch == 4
    assert files_and_times(workdir) == before


def test_engine_does_not_depend_on_the_data():
    """The data may be elsewhere by now: only training needs it."""
    config = tiny_config(dataset="nowhere", steps_per_epoch=999)
    schedule = assemble.schedule(config, steps_per_epoch=1)
    assert assemble.engine(config).network().layers
    assert assemble.member(config, schedule, 4).seed == 4
