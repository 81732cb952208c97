"""The study: nothing is tried twice, nothing is lost, whoever asks and whoever dies."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from sqlalchemy import event

from jaxmnist.errors import StorageError, UserError
from jaxmnist.sweeps import liveness
from jaxmnist.sweeps import search as search_lib
from jaxmnist.sweeps.sampling import SAMPLERS, Order
from jaxmnist.sweeps.search import Search, Trial
from jaxmnist.sweeps.space import Space, parse

GRID = parse({"dropout": "0,0.1,0.2", "optimizer.nesterov": "true,false"})
RANGES = parse({"optimizer.learning_rate": "log:0.01..1", "batch_size": "16..64"})


def order(space: Space = GRID, sampler: str = "grid", trials: int = 6, seed: int = 0) -> Order:
    return Order(space, sampler, trials, seed)


def opened(folder: Path, order: Order, worker: str = "a", *, shared: bool = False) -> Search:
    file = folder / "study.db"
    return Search(f"sqlite:///{file}" if shared else file, "sweep", order, worker)


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")


def record(trial: Trial, accuracy: float = 99.0) -> dict[str, Any]:
    return {"trial": trial.number, "final_accuracy": {"mean": accuracy}}


def values(trials: list[Trial]) -> list[tuple]:
    return [tuple(trial.values.values()) for trial in trials]


def test_grid_comes_in_order_and_once(tmp_path: Path):
    search = opened(tmp_path, order())
    first = search.ask(4)
    search.finish(1, record(first[1]), halved=False)
    again = opened(tmp_path, order())
    assert [trial.number for trial in again.mine()] == [0, 2, 3]
    rest = again.ask(10)
    expected = [(dropout, nesterov) for dropout in (0.0, 0.1, 0.2) for nesterov in (True, False)]
    assert values(first + rest) == expected
    assert again.ask(1) == []
    assert not again.wait_for_others()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_as_many_as_are_wanted_and_all_different(tmp_path: Path, sampler: str):
    wanted = order(RANGES, sampler, 12)
    search, trials = opened(tmp_path, wanted), []
    for accuracy in range(6):
        asked = search.ask(2)
        for trial in asked:
            search.report(trial.number, 1, accuracy)
            search.finish(trial.number, record(trial, 90 + accuracy), halved=accuracy % 2 == 0)
        trials += asked
        search = opened(tmp_path, wanted)  # as after an interruption
    assert len(trials) == len(set(values(trials))) == 12
    assert search.ask(1) == []
    assert all(0.01 <= t.values["optimizer.learning_rate"] <= 1 for t in trials)
    assert all(t.values["batch_size"] in range(16, 65) for t in trials)
    assert [found["trial"] for found in search.records()] == list(range(12))
    states = [trial.state.name for trial in study(tmp_path).trials]
    assert states == ["PRUNED", "PRUNED", "COMPLETE", "COMPLETE"] * 3


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_all_points_of_a_small_space_are_found_soon(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
):
    """tpe would ask for the best ones again and again; one is refused, and none takes its place."""
    monkeypatch.setattr(search_lib, "_PATIENCE", 3)
    space = parse({"batch_size": "16..19", "optimizer.nesterov": "true,false"})
    search = opened(tmp_path, order(space, sampler, 8))
    found = set()
    for accuracy in range(8):
        (trial,) = search.ask(1)
        found |= set(values([trial]))
        if accuracy == 2:
            search.refuse(trial.number, "too large")
        else:
            search.finish(trial.number, record(trial, 90 + accuracy), halved=False)
    assert len(found) == 8
    assert search.ask(1) == []
    assert len(study(tmp_path).trials) <= 9 * 4


def test_the_seed_decides(tmp_path: Path):
    for name in "xyz":
        (tmp_path / name).mkdir()
    x, y, z = (
        values(opened(tmp_path / name, order(RANGES, "random", 3, seed)).ask(3))
        for name, seed in (("x", 1), ("y", 1), ("z", 2))
    )
    assert x == y != z


def test_more_trials_may_be_wanted_later(tmp_path: Path):
    assert len(opened(tmp_path, order(RANGES, "qmc", 3)).ask(5)) == 3
    assert len(opened(tmp_path, order(RANGES, "qmc", 5)).ask(5)) == 2


def test_a_refused_trial_makes_room_for_another(tmp_path: Path):
    search = opened(tmp_path, order(RANGES, "random", 3))
    (trial,) = search.ask(1)
    search.refuse(trial.number, "too large")
    assert len(search.ask(5)) == 3
    assert study(tmp_path).trials[0].user_attrs["refused"] == "too large"


class Killed(BaseException):
    """In the place of SIGKILL."""


@pytest.fixture
def lives() -> Iterator[list[int]]:
    """How many writes are left until one kills; in a list of one number."""
    left = [0]

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    yield left
    event.remove(sqlalchemy.Engine, "before_cursor_execute", count)


@pytest.mark.parametrize(
    "sampler", ["grid", *(pytest.param(name, marks=pytest.mark.long) for name in SAMPLERS[1:])]
)
def test_killed_before_any_write_all_numbers_stay(tmp_path: Path, sampler: str, lives: list[int]):
    """While the study is made and while it is asked: no trial is lost or gets another number.

    Nor other settings, in a grid; elsewhere those that lacked are drawn anew.
    """
    grid = parse({"dropout": "0,0.1", "optimizer.nesterov": "true,false"})
    wanted = order(grid if sampler == "grid" else RANGES, sampler, 4)
    (tmp_path / "whole").mkdir()
    whole = opened(tmp_path / "whole", wanted).ask(4)
    writes = -lives[0]
    assert writes > 20
    for before in range(1, writes + 1):
        folder = tmp_path / str(before)
        folder.mkdir()
        lives[0] = before
        with pytest.raises(Killed):
            opened(folder, wanted).ask(4)
        again = opened(folder, wanted)
        found = again.mine()
        found += again.ask(4 - len(found))
        assert [trial.number for trial in found] == list(range(4))
        assert len(set(values(found))) == 4
        if sampler == "grid":
            assert found == whole
        assert again.ask(1) == []


def test_what_was_cut_short_and_handed_on_stays_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Just when its first worker is back and gets it the values that it lacks."""
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    handle = a._study.ask()
    handle.set_user_attr("worker", "a")
    suggest = search_lib.suggest

    def late(*args: Any) -> None:
        monkeypatch.undo()
        b._hand_back(b._trials()[handle.number])
        suggest(*args)

    monkeypatch.setattr(search_lib, "suggest", late)
    again = opened(tmp_path, order(), "a", shared=True)
    assert again.mine() == []
    assert len(set(values(b.ask(10)))) == GRID.size


def test_those_who_died_while_asking_are_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And what was asked for meanwhile is none of theirs."""
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    a._study.ask()  # and is killed
    waited: list[float] = []
    monkeypatch.setattr(search_lib.time, "sleep", waited.append)
    assert len(set(values(b.ask(10)))) == GRID.size - 1
    assert sum(waited) == pytest.approx(5)


def test_a_result_that_was_told_stays(tmp_path: Path):
    search = opened(tmp_path, order())
    (trial,) = search.ask(1)
    search.finish(trial.number, record(trial, 99.0), halved=False)
    search.finish(trial.number, record(trial, 11.0), halved=False)
    search.report(trial.number, 7, 11.0)
    assert search.records() == [record(trial, 99.0)]
    assert study(tmp_path).trials[0].intermediate_values == {}


def test_two_workers_share_a_grid(tmp_path: Path):
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    trials = a.ask(2) + b.ask(2) + a.ask(1) + b.ask(5) + a.ask(5)
    assert sorted(values(trials)) == sorted(set(values(trials)))
    assert len(trials) == 6
    assert len(a.mine()) == 3
    assert len(b.mine()) == 3


def test_a_grid_that_two_began_at_once_is_tried_once(tmp_path: Path):
    """Both found it empty: each point waits twice, and the later ones are dropped."""
    a = opened(tmp_path, order(), "a", shared=True)
    for point in [dict(t.system_attrs["fixed_params"]) for t in study(tmp_path).trials]:
        a._study.enqueue_trial(point)
    trials = a.ask(20)
    assert len(trials) == len(set(values(trials))) == 6


def test_of_two_that_asked_for_the_last_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted = order(RANGES, "random", 1)
    a, b = (opened(tmp_path, wanted, worker, shared=True) for worker in "ab")
    asked = a.ask(1)
    monkeypatch.setattr(search_lib, "_MOST_REPEATS", 5)
    monkeypatch.setattr(b, "_live", lambda: [])  # as if that had come in between
    assert b.ask(1) == []
    assert len(asked) == 1
    assert [trial.state.name for trial in study(tmp_path).trials][1:] == ["FAIL"] * 5


ASK_IN_TURN = """
import sys
from jaxmnist.sweeps.sampling import Order
from jaxmnist.sweeps.search import Search
from jaxmnist.sweeps.space import parse

url, sampler, worker = sys.argv[1:]
space = parse({"dropout": "0,0.1,0.2,0.3,0.4,0.5,0.6", "batch_size": "16,32,64"})
search = Search(url, "sweep", Order(space, sampler, 21, 0), worker)
print("ready", flush=True)
sys.stdin.readline()
while asked := search.ask(1):
    print(asked[0].number, *asked[0].values.values(), flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("sqlite", "grid"),
        pytest.param("journal", "grid", marks=pytest.mark.long),
        pytest.param("sqlite", "qmc", marks=pytest.mark.long),
        pytest.param("sqlite", "random", marks=pytest.mark.long),
    ],
)
def test_processes_that_ask_at_once_get_different_trials(tmp_path: Path, kind: str, sampler: str):
    """They make the database at once, too."""
    url = f"sqlite:///{tmp_path / 'study.db'}" if kind == "sqlite" else str(tmp_path / "log")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK_IN_TURN, url, sampler, worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in "abc"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    numbers = [line.split()[0] for lines in found for line in lines]
    settings = [tuple(line.split()[1:]) for lines in found for line in lines]
    assert len(set(numbers)) == len(numbers)
    assert len(set(settings)) == len(settings)
    assert len(settings) == 21


def test_a_process_of_another_host_is_not_looked_for_on_this_one(monkeypatch: pytest.MonkeyPatch):
    """Also if that is called alike, as copies of a virtual machine are."""
    gone = liveness.sign() | {"pid": 2**30}  # none has so large a number
    assert liveness.Watch().is_dead("a", gone)
    with monkeypatch.context() as patch:
        patch.setattr(liveness.Path, "read_text", lambda _: "another start\n")
        elsewhere = liveness.sign() | {"pid": 2**30}
    assert not liveness.Watch().is_dead("a", elsewhere)


@pytest.mark.parametrize("how", ["process gone", "silent elsewhere"])
def test_what_a_dead_worker_had_is_tried_by_another(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search_lib, "_POLL", 0.01)
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    lost, kept = a.ask(4), b.ask(4)
    if how == "process gone":
        monkeypatch.setattr(os, "getpid", lambda: 2**30)  # none has so large a number
    else:
        monkeypatch.setattr(liveness.socket, "gethostname", lambda: "elsewhere")
        monkeypatch.setattr(liveness, "PATIENCE", 0.05)
    a.beat()
    monkeypatch.undo()
    monkeypatch.setattr(search_lib, "_POLL", 0.01)
    if how != "process gone":
        monkeypatch.setattr(liveness, "PATIENCE", 0.05)
    for trial in kept:
        b.finish(trial.number, record(trial), halved=False)
    taken = []
    while b.wait_for_others():
        taken += b.ask(2)
    assert sorted(values(taken)) == sorted(values(lost))
    # It comes back: what it had is another's now.
    for trial in lost:
        a.finish(trial.number, record(trial, 11.0), halved=False)
    for trial in taken:
        b.finish(trial.number, record(trial), halved=False)
    assert len(b.records()) == 6
    assert {found["final_accuracy"]["mean"] for found in b.records()} == {99.0}


def test_a_living_worker_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    asked = a.ask(6)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        trial = asked[len(pauses) - 1]
        a.finish(trial.number, record(trial), halved=False)

    monkeypatch.setattr(search_lib.time, "sleep", pause)
    assert not b.wait_for_others()
    assert len(pauses) == 6
    assert len(b.records()) == 6


def test_so_it_is_where_a_small_space_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One point is refused: one trial less than wanted, which nobody waits for."""
    a, b = (opened(tmp_path, order(GRID, "random"), worker, shared=True) for worker in "ab")
    refused, *asked = a.ask(6)
    assert not b.is_used_up()
    a.refuse(refused.number, "too large")
    assert b.ask(1) == []
    assert b.is_used_up()

    def pause(_: float) -> None:
        trial = asked.pop()
        a.finish(trial.number, record(trial), halved=False)

    monkeypatch.setattr(search_lib.time, "sleep", pause)
    assert not b.wait_for_others()
    assert asked == []


def test_whether_others_train(tmp_path: Path):
    a, b = (opened(tmp_path, order(), worker, shared=True) for worker in "ab")
    assert not b.others_train()
    (trial,) = a.ask(1)
    assert b.others_train()
    assert not a.others_train()
    a.finish(trial.number, record(trial), halved=False)
    assert not b.others_train()


def test_a_journal_file_will_do(tmp_path: Path):
    wanted = order(RANGES, "tpe", 4)
    path = str(tmp_path / "study.journal")
    searches = [Search(path, "sweep", wanted, worker) for worker in "ab"]
    for search in searches:
        for trial in search.ask(2):
            search.finish(trial.number, record(trial), halved=False)
    assert len(searches[0].records()) == 4


@pytest.mark.parametrize(
    "storage", ["sqlite:////nowhere/x.db", "nosuch://me:secret@x/y", "/full/version/x.log"]
)
def test_storages_that_cannot_be_used(storage: str):
    with pytest.raises(UserError, match="--storage") as raised:
        Search(storage, "sweep", order(), "a")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_storage_that_fails_later_is_told(tmp_path: Path):
    search = opened(tmp_path, order())
    (tmp_path / "study.db").write_bytes(b"not a database any more" * 1000)
    with pytest.raises(StorageError, match="storage failed") as raised:
        search.ask(1)
    assert "\n" not in str(raised.value)
