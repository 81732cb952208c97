"""Whole sweeps, in process: what they try, what they leave behind, how they are taken up."""

import contextlib
import json
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from signals_in import signal_in_segment
from workdirs import rows_of, without_timing

from jaxmnist.config import Config, default_config, validate
from jaxmnist.errors import Stopped, StorageError, UserError
from jaxmnist.networks import target
from jaxmnist.runs import assemble, train
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.cohort import Cohort
from jaxmnist.sweeps import recipe as recipe_lib
from jaxmnist.sweeps import rounds as rounds_lib
from jaxmnist.sweeps import search as search_lib
from jaxmnist.sweeps import sweep
from jaxmnist.sweeps.folder import SweepDir
from jaxmnist.sweeps.rounds import Options, Rounds
from jaxmnist.sweeps.sampling import Order
from jaxmnist.sweeps.search import Search
from jaxmnist.sweeps.space import configured, parse
from jaxmnist.training.programs import Programs

Records = list[dict[str, Any]]
RATES = "0.03,0.1,0.3"
LEFT = {".lock", "best.py", "study.db", "sweep.json", "sweep.png", "trials.jsonl"}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than most sweeps here; one test looks at them."""
    monkeypatch.setattr(sweep, "_draw", lambda *_: None)


def tiny(idx_folder: Path, **fields: Any) -> Config:
    """Seven steps an epoch of a network of some hundred parameters, one device a member."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model": "blocks",
            "network.blocks": "3/4",
            "network.padding": "1",
            "dataset": str(idx_folder),
            "num_epochs": 2,
            "batch_size": 100,
            "seed": 4,
            "optimizer.learning_rate": 0.01,
            "mesh.seed": 1,
            "mesh.data": 1,
        }
        | fields
    )
    return config


def run(config: Config, workdir: Path, asked: dict[str, str], **options: Any) -> Records:
    return sweep.run(
        config,
        parse(asked),
        workdir,
        Options(**options),
        command="python -m jaxmnist.sweep ...",
        split="train/test",
    )


@contextlib.contextmanager
def rows_heard() -> Iterator[list[dict[str, Any]]]:
    """The rows of every epoch of every member."""
    rows, hear = [], Rounds._hear
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounds, "_hear", lambda self, new: (rows.extend(new), hear(self, new)))
        yield rows


def without_seconds(records: Records) -> Records:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def written(workdir: Path) -> Records:
    file = workdir / "trials.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """The sweeps here share what is compiled for them."""
    kept: dict[Any, Programs] = {}
    make = Cohort.programs

    def programs(self: Cohort, mesh: Any, *sets: Any) -> Programs:
        key = assemble.shape(self.configs[0]), len(self), mesh, target.current()
        if key in kept:
            kept[key].populate(self.members())
        else:
            kept[key] = make(self, mesh, *sets)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohort, "programs", programs)
        yield


@contextlib.contextmanager
def programs_made() -> Iterator[list[int]]:
    """The number of members of each ``Programs`` that is made."""
    made, make = [], Cohort.programs

    def count(self: Cohort, *args: Any) -> Programs:
        made.append(len(self))
        return make(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohort, "programs", count)
        yield made


@pytest.mark.parametrize("rates", ["0.03,0.1", pytest.param(RATES, marks=pytest.mark.long)])
def test_each_member_of_a_grid_is_the_same_run_alone(idx_folder: Path, tmp_path: Path, rates: str):
    """Learning rates, two rotations, two seeds: one program, each network bit for bit."""
    config = tiny(idx_folder, num_seeds=2, dropout=0.1, label_smoothing=0.05)
    asked = {"optimizer.learning_rate": rates, "augment.rotate_degrees": "5,10"}
    with rows_heard() as kept, programs_made() as made:
        records = run(config, tmp_path / "sweep", asked, parallel=6)
    count = 2 * len(rates.split(","))
    assert made == [2 * count]
    assert [record["trial"] for record in records] == list(range(count))
    assert len(kept) == 4 * count
    for record in records:
        config_alone = configured(config, record["settings"])
        workdir = tmp_path / str(record["trial"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "_draw", lambda *_: None)
            summary = train.run(config_alone, workdir)
        assert record["final_accuracy"] == summary["final_accuracy"]
        assert record["best_accuracy"] == summary["best_accuracy"]
        assert record["params"] == summary["params"]
        assert record["receptive_field"] == summary["receptive_field"]
        in_sweep = [
            {key: value for key, value in row.items() if key != "trial"}
            for row in kept
            if row["trial"] == record["trial"]
        ]
        assert without_timing(in_sweep) == without_timing(rows_of(workdir))
    losses = {row["train_loss"] for row in kept}
    assert len(losses) == len(kept), "different members must differ"


def test_what_is_left(idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "sweep"
    config = tiny(idx_folder, num_seeds=2)
    records = run(config, workdir, {"optimizer.learning_rate": RATES})
    assert written(workdir) == records
    assert {path.name for path in workdir.iterdir()} == LEFT - {"sweep.png"}
    for number, (record, rate) in enumerate(zip(records, (0.03, 0.1, 0.3), strict=True)):
        assert record["trial"] == number
        assert record["settings"] == {"optimizer.learning_rate": rate}
        assert record["epochs"] == 2
        assert record["seconds"] > 0
        assert set(record["final_accuracy"]) == {"mean", "sd", "min", "max", "ci95"}
    # Of a hundred images two seeds may get as many right, but not each time.
    assert any(r["final_accuracy"]["min"] < r["final_accuracy"]["max"] for r in records)
    said = capsys.readouterr().out
    assert re.search(r"^trial 2: \d+\.\d\d ± \d+\.\d\d %, 199 parameters, ", said, re.M)
    assert "optimizer.learning_rate=0.3 (3 of 3)" in said


def test_the_best_is_a_recipe(idx_folder: Path, tmp_path: Path):
    """Of all that were trained to the end; it trains as the trial did."""
    workdir = tmp_path / "sweep"
    config = tiny(idx_folder)
    records = run(config, workdir, {"optimizer.learning_rate": RATES})
    best = max(records, key=lambda record: record["final_accuracy"]["mean"])
    module: dict[str, Any] = {}
    exec(compile((workdir / "best.py").read_text(), "best.py", "exec"), module)
    recipe = module["get_config"]()
    validate(recipe)
    expected = configured(config, best["settings"])
    assert recipe.to_json() == expected.to_json()
    said = " ".join(module["__doc__"].split())
    assert f"Trial {best['trial']} of a sweep" in said
    assert "python -m jaxmnist.sweep ..." in said
    assert f"{best['final_accuracy']['mean']:.3f} % (n = 1" in said
    assert max(map(len, (workdir / "best.py").read_text().splitlines())) <= 100


def test_the_command_in_a_recipe_is_one_for_a_shell():
    """However long, and whatever its arguments hold: a shell makes the same of it again."""
    choices = ", ".join(str(number) for number in range(1, 13))
    names = [f"--sweep.batch_size={choices}"] * 4 + ["it's", "a\\b", 'a"""b', '"""']
    typed = ["python", "-m", "jaxmnist.sweep", *names]
    best = {"trial": 0, "settings": {}, "params": 1, "receptive_field": 1}
    best |= {"final_accuracy": {"mean": 99.0, "sd": None}}
    text = recipe_lib.text(default_config(), best, 1, shlex.join(typed), "train/val")
    assert max(map(len, text.splitlines())) <= 100
    module: dict[str, Any] = {}
    exec(compile(text, "best.py", "exec"), module)
    lines = module["__doc__"].partition("Found by\n")[2].partition("\nAccuracy")[0]
    assert lines.count("\\\n") > 1
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\n' {lines.strip()}"], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == typed


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:PASSWORD@host:5432/db"),
        ("mysql+pymysql://:secret@host/db?a=b@c", "mysql+pymysql://:PASSWORD@host/db?a=b@c"),
        (
            "postgresql://h/db?user=me&password=secret&x=1",
            "postgresql://h/db?user=me&password=PASSWORD&x=1",
        ),
        ("postgresql://me@host/db", None),
        ("sqlite:////shared/sweep.db", None),
        ("/shared/a:b@c.log", None),
    ],
)
def test_passwords_are_written_nowhere(
    url: str, shown: str | None, idx_folder: Path, tmp_path: Path
):
    command, asked = f"python -m jaxmnist.sweep --storage {url}", parse({"dropout": "0.1"})
    workdir, config = tmp_path / "sweep", tiny(idx_folder, num_epochs=1)
    sweep.run(config, asked, workdir, Options(), command=command, split="train/val")
    text = (workdir / "best.py").read_text()
    assert (shown or url) in text
    assert "secret" not in text
    order = Order(asked, "grid", 1, 0)
    description = sweep._description(config, asked, order, Options(storage=url))
    assert description["--storage"] == (shown or url)


@pytest.mark.parametrize("storage", ["sqlite:///mine.db", "mine.log"])
def test_results_are_not_written_over_where_a_shared_study_is_missing(
    storage: str, idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where the same command is started in another folder."""
    config, asked = tiny(idx_folder, num_epochs=1), {"optimizer.learning_rate": RATES}
    workdir = tmp_path / "sweep"
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    records = run(config, workdir, asked, storage=storage)
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(UserError, match=f"holds results that --storage {storage} does not have"):
        run(config, workdir, asked, storage=storage)
    assert written(workdir) == records
    monkeypatch.chdir(tmp_path / "here")
    with programs_made() as made:
        assert run(config, workdir, asked, storage=storage) == records
    assert made == []


def test_nor_where_a_study_of_its_own_is_gone(idx_folder: Path, tmp_path: Path):
    config, asked = tiny(idx_folder, num_epochs=1), {"optimizer.learning_rate": RATES}
    workdir = tmp_path / "sweep"
    records = run(config, workdir, asked)
    study = (workdir / "study.db").read_bytes()
    (workdir / "study.db").unlink()
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"holds results that its study\.db does not have: bring"
        ):
            run(config, workdir, asked)
    assert written(workdir) == records
    (workdir / "study.db").write_bytes(study)
    assert run(config, workdir, asked) == records


def test_a_finished_sweep_is_only_reported(idx_folder: Path, tmp_path: Path):
    workdir, asked = tmp_path / "sweep", {"optimizer.learning_rate": RATES}
    records = run(tiny(idx_folder), workdir, asked)
    (workdir / "trials.jsonl").unlink()
    with programs_made() as made:
        assert run(tiny(idx_folder), workdir, asked) == records
    assert made == []
    assert written(workdir) == records


def test_a_sweep_may_grow(idx_folder: Path, tmp_path: Path):
    workdir, asked = tmp_path / "sweep", {"optimizer.learning_rate": "log:0.001..0.1"}
    few = run(tiny(idx_folder), workdir, asked, trials=2)
    more = run(tiny(idx_folder), workdir, asked, trials=3)
    assert more[:2] == few
    assert len(more) == 3


# Interruptions.

GRID = {"optimizer.learning_rate": RATES, "augment.rotate_degrees": "5,10"}


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials each."""
    monkeypatch.setattr(rounds_lib, "_LARGEST_ROUND", 2)


@pytest.fixture(scope="module")
def whole(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The sweep of GRID without any interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_draw", lambda *_: None)
        return run(tiny(idx_folder), tmp_path_factory.mktemp("whole") / "s", GRID, parallel=2)


@pytest.mark.parametrize("segment", [1, 4, 6])  # of four in each of three populations
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("small_rounds")
def test_stopped_and_taken_up(
    idx_folder: Path, tmp_path: Path, whole: Records, segment: int, sent: signal.Signals
):
    workdir = tmp_path / "sweep"
    with signal_in_segment(segment, sent), pytest.raises(Stopped, match="everything is saved"):
        run(tiny(idx_folder), workdir, GRID, parallel=2)
    assert (workdir / "round.json").exists()
    records = taken_up(idx_folder, workdir)
    assert without_seconds(records) == without_seconds(whole)
    assert {path.name for path in workdir.iterdir()} == LEFT - {"sweep.png"}


def taken_up(idx_folder: Path, workdir: Path) -> Records:
    """The sweep of GRID to its end; of what is finished no epoch is trained again."""
    finished = {record["trial"] for record in written(workdir)}
    with rows_heard() as rows:
        records = run(tiny(idx_folder), workdir, GRID, parallel=2)
    assert not finished & {row["trial"] for row in rows}
    return records


@pytest.mark.usefixtures("small_rounds")
def test_what_was_too_much_for_the_memory_is_taken_up_in_smaller_parts(
    idx_folder: Path, tmp_path: Path
):
    workdir = tmp_path / "sweep"

    def too_much(*_: Any) -> Any:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounds, "_train", too_much)
        with pytest.raises(MemoryError):
            run(tiny(idx_folder), workdir, GRID, parallel=2)
    assert json.loads((workdir / "round.json").read_text())["parallel"] == 2
    with programs_made() as made:
        records = run(tiny(idx_folder), workdir, GRID, parallel=1)
    assert set(made) == {1}
    assert len(records) == len(written(workdir)) == 6


class Killed(BaseException):
    """Stands for the end of the process in the middle of something."""


PLACES: dict[str, tuple[Any, str]] = {
    "asked, not noted": (SweepDir, "begin_round"),
    "noted, not trained": (Rounds, "_train"),
    "trained, not told": (Search, "finish"),
    "told, round not ended": (SweepDir, "end_round"),
    "reported": (Search, "report"),
    "saving": (Checkpoints, "save"),
    "asking": (Search, "ask"),
}


@pytest.mark.parametrize(
    ("call", "after"),
    [
        (2, False),
        *(
            pytest.param(call, after, marks=pytest.mark.long)
            for call, after in ((1, False), (1, True), (2, True), (3, False), (3, True))
        ),
    ],
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("small_rounds")
def test_killed_and_taken_up(
    idx_folder: Path, tmp_path: Path, whole: Records, place: str, call: int, after: bool
):
    """Before and after each thing that is written, in the first rounds."""
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), []

    def die(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        result = function(*args, **options)
        if len(calls) == call:
            raise Killed
        return result

    workdir = tmp_path / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            run(tiny(idx_folder), workdir, GRID, parallel=2)
    records = taken_up(idx_folder, workdir)
    assert without_seconds(records) == without_seconds(whole)
    assert {path.name for path in workdir.iterdir()} == LEFT - {"sweep.png"}


@pytest.mark.parametrize("damage", ["round.json", "trials.jsonl", "populations"])
@pytest.mark.usefixtures("small_rounds")
def test_what_is_damaged_is_made_again(
    idx_folder: Path, tmp_path: Path, whole: Records, damage: str
):
    workdir = tmp_path / "sweep"
    with signal_in_segment(6, signal.SIGINT), pytest.raises(Stopped):
        run(tiny(idx_folder), workdir, GRID, parallel=2)
    if damage == "populations":
        for file in (workdir / damage).rglob("d/*"):
            file.write_bytes(file.read_bytes()[:10])
    else:
        (workdir / damage).write_text('{"half')
    records = run(tiny(idx_folder), workdir, GRID, parallel=2)
    assert without_seconds(records) == without_seconds(whole)


def test_a_full_disk_is_told_and_survived(
    idx_folder: Path, tmp_path: Path, whole: Records, monkeypatch: pytest.MonkeyPatch
):
    workdir = tmp_path / "sweep"
    results = SweepDir.write_results

    def full(*_: Any) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(SweepDir, "write_results", full)
    with pytest.raises(StorageError):
        run(tiny(idx_folder), workdir, GRID, parallel=2)
    monkeypatch.setattr(SweepDir, "write_results", results)
    records = run(tiny(idx_folder), workdir, GRID, parallel=2)
    assert without_seconds(records) == without_seconds(whole)


# Rounds: shapes, sizes, halving.


def test_each_shape_is_compiled_once(idx_folder: Path, tmp_path: Path):
    asked = {"batch_size": "50,100", "optimizer.learning_rate": RATES + ",0.2"}
    with programs_made() as made:
        records = run(tiny(idx_folder), tmp_path / "sweep", asked, parallel=4)
    assert made == [4, 4]
    assert len(records) == 8


@pytest.mark.long
def test_off_and_on_are_two_shapes(idx_folder: Path, tmp_path: Path):
    asked = {"dropout": "0,0.1,0.2", "label_smoothing": "0.1"}
    with programs_made() as made:
        records = run(tiny(idx_folder), tmp_path / "sweep", asked, parallel=3)
    assert sorted(made) == [1, 2]
    assert [record["settings"]["dropout"] for record in records] == [0.0, 0.1, 0.2]


def halved_epochs(records: Records) -> list[int]:
    return sorted(record["epochs"] for record in records)


def test_halving(idx_folder: Path, tmp_path: Path):
    """Of six, three go on after one of four epochs, two after two, with the same numbers."""
    asked = {"optimizer.learning_rate": "0.01,0.03,0.1,0.2,0.3,0.5"}
    config = tiny(idx_folder, num_epochs=4, **{"schedule.name": "onecycle"})
    with rows_heard() as rows:
        full = run(config, tmp_path / "full", asked, parallel=6)
    # No network in a program of its own, which rounds otherwise.
    halved = run(config, tmp_path / "halved", asked, parallel=3, halving=2)
    assert halved_epochs(halved) == [1, 1, 1, 2, 4, 4]
    for record in halved:
        if record["epochs"] < 4:
            luckier = record | {"final_accuracy": {"mean": 100.0}}
            best = sweep._best(config, [*halved, luckier])
            assert best
            assert best["epochs"] == 4
    for one, other in zip(halved, full, strict=True):
        assert one["settings"] == other["settings"]
        if one["epochs"] == 4:
            assert without_seconds([one]) == without_seconds([other])

    def accuracies(epoch: int, trials: set[int]) -> list[float]:
        wanted = (row for row in rows if row["epoch"] == epoch and row["trial"] in trials)
        return [row["eval_accuracy"] for row in wanted]

    for epoch, there, kept in ((1, 0, 1), (2, 1, 2)):
        alive = {record["trial"] for record in halved if record["epochs"] > there}
        chosen = {record["trial"] for record in halved if record["epochs"] > kept}
        assert min(accuracies(epoch, chosen)) >= max(accuracies(epoch, alive - chosen))


@pytest.mark.long
@pytest.mark.parametrize("segment", [3, 5, 9])
def test_halving_is_taken_up(idx_folder: Path, tmp_path: Path, segment: int):
    asked = {"optimizer.learning_rate": "0.03,0.1,0.2,0.3"}
    config = tiny(idx_folder, num_epochs=4)
    options = {"parallel": 2, "halving": 2}
    expected = run(config, tmp_path / "whole", asked, **options)
    with signal_in_segment(segment, signal.SIGTERM), pytest.raises(Stopped):
        run(config, tmp_path / "sweep", asked, **options)
    assert without_seconds(run(config, tmp_path / "sweep", asked, **options)) == without_seconds(
        expected
    )


def test_larger_networks_are_not_trained(idx_folder: Path, tmp_path: Path):
    asked = {"network.blocks": "2..6/4..8", "network.head": "linear,avgmax"}
    records = run(
        tiny(idx_folder, num_epochs=1),
        tmp_path / "sweep",
        asked,
        trials=2,
        sampler="random",
        max_params=300,
    )
    assert len(records) == 2
    assert all(record["params"] <= 300 for record in records)
    assert len({json.dumps(record["settings"]) for record in records}) == 2


@pytest.mark.long
def test_what_cannot_be_trained_is_left_out(idx_folder: Path, tmp_path: Path):
    """At the upper end of the range a batch would have more images than there are."""
    config = tiny(idx_folder, num_epochs=1, drop_remainder=True)
    asked = {"batch_size": "300..900"}
    records = run(config, tmp_path / "sweep", asked, trials=3, sampler="random")
    assert len(records) == 3
    assert all(record["settings"]["batch_size"] <= 640 for record in records)


def test_a_space_that_has_fewer_is_tried_to_its_end(
    idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Nesterov without a momentum is none of them."""
    asked = {"optimizer.nesterov": "true,false", "optimizer.momentum": "0.0,0.9"}
    config = tiny(idx_folder, num_epochs=1)
    records = run(config, tmp_path / "sweep", asked, trials=4, sampler="random")
    assert len(records) == 3
    said = capsys.readouterr().out
    assert said.count("no further settings were found that can be trained and are new") == 1


def test_a_space_is_refused_where_nothing_in_it_can_be_trained(idx_folder: Path):
    """Not where only its ends cannot: Nesterov needs SGD and a momentum."""
    config = tiny(idx_folder, **{"optimizer.nesterov": True})
    options = Options(trials=4)
    for names in ("sgd,adam", "adam,sgd", "adam"):
        space = parse({"optimizer.momentum": "0..0.95", "optimizer.name": names})
        order = sweep._order(config, space, options)
        refused = pytest.raises(UserError, match=r"nesterov .*with optimizer\.momentum=0")
        with refused if names == "adam" else contextlib.nullcontext():
            sweep._check_points(config, space, order, options, 640)


def test_none_small_enough(idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rounds_lib, "_MOST_REFUSED", 20)
    asked = {"network.blocks": "100..200/4..8"}
    with pytest.raises(UserError, match=r"none of 20 settings .* more than --max_params 50"):
        run(tiny(idx_folder), tmp_path / "s", asked, trials=4, max_params=50, sampler="random")


def test_none_is_not_said_while_another_worker_trains_one(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rounds_lib, "_MOST_REFUSED", 20)
    monkeypatch.setattr(search_lib.Search, "others_train", lambda _: True)
    asked = {"network.blocks": "100..200/4..8"}
    options: dict[str, Any] = {"trials": 4, "max_params": 50, "sampler": "random"}
    assert run(tiny(idx_folder), tmp_path / "s", asked, **options) == []


def test_a_grid_is_asked_to_its_end(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However many of its points are too large, one after the other."""
    monkeypatch.setattr(rounds_lib, "_MOST_REFUSED", 2)
    asked = {"network.blocks": "40/40,30/30,20/20,3/4"}
    records = run(tiny(idx_folder, num_epochs=1), tmp_path / "s", asked, max_params=300)
    assert [record["settings"]["network.blocks"] for record in records] == ["3/4"]
    for _ in range(2):  # begun anew, too
        with pytest.raises(UserError, match=r"none of 4 settings .* more than --max_params 50"):
            run(tiny(idx_folder), tmp_path / "none", asked, max_params=50)


def test_ctrl_c_during_the_last_save_of_a_population(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of its epochs are there; what comes after it does not begin."""
    save, saved = Checkpoints.save, []

    def interrupted(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        if not saved:
            signal.raise_signal(signal.SIGINT)
        saved.append(args)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    asked = {"network.blocks": "3/4,4/4"}
    with pytest.raises(Stopped, match=r"after step 7 \(epoch 1 of 1\)"):
        run(tiny(idx_folder, num_epochs=1), tmp_path / "s", asked)
    assert len(saved) == 1


def test_batches_of_one_where_a_batch_norm_has_one_value(idx_folder: Path, tmp_path: Path):
    """Which torch.nn refuses too, only later."""
    config = tiny(idx_folder, batch_size=71)  # of 640 images, 9 · 71 and one
    words = r"config.batch_size is 71: 640 images leave a batch of one .* of 1×1"
    with pytest.raises(UserError, match=words):
        run(config, tmp_path / "s", {"network.blocks": "3/4,3/3/3/3/3"})
    config.network.blocks = "3/3/3/3/3"
    with pytest.raises(UserError, match=words):
        train.run(config, tmp_path / "run")
    config.drop_remainder = True
    assert Cohort.of([config], 640).schedules


def test_divergence_is_a_result(idx_folder: Path, tmp_path: Path):
    """A member that diverges does not stop the others, nor change them."""
    config = tiny(idx_folder)
    expected = run(config, tmp_path / "a", {"optimizer.learning_rate": "0.01,0.03"}, parallel=2)
    asked = {"optimizer.learning_rate": "0.01,1e30,0.03"}
    records = run(config, tmp_path / "b", asked, parallel=3)
    assert records[1]["final_accuracy"]["mean"] < 30
    for one, other in ((records[0], expected[0]), (records[2], expected[1])):
        assert one["final_accuracy"] == other["final_accuracy"]


@pytest.mark.long
def test_tpe_learns_from_what_it_tried(idx_folder: Path, tmp_path: Path):
    records = run(
        tiny(idx_folder, num_epochs=1),
        tmp_path / "sweep",
        {"optimizer.learning_rate": "log:1e-6..0.3"},
        trials=16,
        sampler="tpe",
    )
    rates = [record["settings"]["optimizer.learning_rate"] for record in records]
    assert len(set(rates)) == 16
    assert np.median(np.log(rates[10:])) > np.median(np.log(rates[:10]))


# What is refused.


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        (GRID, {"trials": 5}, "--trials is 5: the grid has 6 points"),
        (GRID, {"trials": 7}, "--trials is 7: the grid has 6 points"),
        (GRID, {"trials": 7, "sampler": "random"}, "there are only 6 different settings"),
        (GRID, {"sampler": "magic"}, "--sampler is 'magic': it must be one of grid, random"),
        (GRID, {"parallel": 0}, "--parallel is 0"),
        (GRID, {"halving": 1}, "--halving is 1: it must be 2 or more"),
        (GRID, {"max_params": -5}, "--max_params is -5"),
        ({"dropout": "0..0.5"}, {}, "--trials is missing"),
        ({"dropout": "0..0.5"}, {"trials": 0}, "--trials is 0"),
        ({"dropout": "0..0.5"}, {"trials": 3, "sampler": "grid"}, "dropout has a range"),
        ({"batch_size": "10..12"}, {"trials": 4}, "there are only 3 different settings"),
        ({"num_epochs": "1,2"}, {"halving": 2}, "do not sweep them"),
        ({"model": "model3,compact"}, {}, "(with model=model3)"),
        ({"network.blocks": "0..3/4"}, {"trials": 2}, "has '0/4': it must be widths"),
        ({"network.blocks": "2..3{}/4"}, {"trials": 2}, "it must be widths"),
        ({"batch_size": "100,700"}, {}, "must not exceed the 640 training images"),
        ({"network.padding": "0/1/0"}, {}, "network.blocks has 2 blocks"),
        ({"network.blocks": "1..3/2-2-2-2-2-2-2/4/4/4/4"}, {"trials": 2}, "nothing is left"),
        ({"batch_size": "50,300"}, {"storage": "nosuch://x"}, "--storage nosuch://x"),
    ],
)
def test_refused(
    idx_folder: Path, tmp_path: Path, asked: dict[str, str], options: dict[str, Any], words: str
):
    config = tiny(idx_folder, drop_remainder=True)
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        run(config, tmp_path / "sweep", asked, **options)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "sweep").exists() or "storage" in options


def spoil_description(workdir: Path) -> None:
    (workdir / "sweep.json").write_text("{}")


def other_things(workdir: Path) -> None:
    (workdir / "sweep.json").unlink()


@pytest.mark.parametrize(
    ("asked", "fields", "options", "words"),
    [
        ({"optimizer.learning_rate": "0.1,0.2"}, {}, {}, "--sweep.optimizer.learning_rate is"),
        ({"optimizer.momentum": RATES}, {}, {}, "is missing there and"),
        ({"optimizer.learning_rate": RATES}, {"num_epochs": 3}, {}, "config.num_epochs is 2 there"),
        (
            {"optimizer.learning_rate": RATES},
            {},
            {"halving": 2},
            "--halving is missing there and 2",
        ),
    ],
)
def test_another_sweep_on_the_same_workdir(
    idx_folder: Path,
    tmp_path: Path,
    asked: dict[str, str],
    fields: dict[str, Any],
    options: dict[str, Any],
    words: str,
):
    workdir = tmp_path / "sweep"
    records = run(tiny(idx_folder), workdir, {"optimizer.learning_rate": RATES})
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        run(tiny(idx_folder, **fields), workdir, asked, **options)
    assert "holds another sweep" in str(raised.value)
    assert written(workdir) == records


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_description, "is not a sweep's description"),
        (other_things, "holds other things than a sweep"),
    ],
)
def test_workdirs_of_something_else(
    idx_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
):
    workdir, asked = tmp_path / "sweep", {"optimizer.learning_rate": "0.1"}
    run(tiny(idx_folder, num_epochs=1), workdir, asked)
    spoil(workdir)
    with pytest.raises(UserError, match=words):
        run(tiny(idx_folder, num_epochs=1), workdir, asked)


def test_locked_while_it_runs(idx_folder: Path, tmp_path: Path):
    with (
        contextlib.closing(SweepDir(tmp_path / "sweep", {})),
        pytest.raises(UserError, match="in use by another process"),
    ):
        run(tiny(idx_folder), tmp_path / "sweep", GRID)


def test_folders_that_a_database_cannot_lie_in(idx_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"a%20b.*choose another --workdir"):
        run(tiny(idx_folder), tmp_path / "a%20b", GRID)


def test_a_run_does_not_go_into_a_sweep(idx_folder: Path, tmp_path: Path):
    run(tiny(idx_folder, num_epochs=1), tmp_path / "sweep", {"optimizer.learning_rate": "0.1"})
    with pytest.raises(UserError, match="holds other things than a run"):
        train.run(tiny(idx_folder), tmp_path / "sweep")


@pytest.mark.long
@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_members_are_spread_over_devices(idx_folder: Path, tmp_path: Path):
    """Four devices for six trials: three share them evenly; the same results but for rounding."""
    config = tiny(idx_folder, **{"mesh.seed": 0})
    alone = run(tiny(idx_folder), tmp_path / "alone", GRID, parallel=6)
    spread = run(config, tmp_path / "spread", GRID, parallel=6)
    members = [configured(config, record["settings"]) for record in spread]
    assert Cohort.of(members, 640, range(6)).mesh().shape["seed"] == 3
    for one, other in zip(spread, alone, strict=True):
        assert one["final_accuracy"]["mean"] == pytest.approx(
            other["final_accuracy"]["mean"], abs=1
        )
