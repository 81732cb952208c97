"""Several processes as one run, for real: two of them on the loopback device, two cores each."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from workdirs import but_for_rounding, rows_of, wait_for, without_timing

from jaxmnist.errors import UserError
from jaxmnist.runs import saved_run
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.workdir import CHECKPOINTS
from jaxmnist.training import hosts

RECIPE = Path(__file__).parents[2] / "configs" / "compact_tiny.py"
TIMEOUT = 120
# Its lines come from several threads, a piece at a time, and may be mixed.
GLOO = {"Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"}


def command(idx_folder: Path, workdir: Path, *more: str) -> list[str]:
    """A run whose learning rate is small enough for rounding to stay what it is."""
    return [
        *(sys.executable, "-m", "jaxmnist.main", f"--config={RECIPE}", f"--workdir={workdir}"),
        *(f"--config.dataset={idx_folder}", "--config.split=train/test"),
        *("--config.batch_size=100", "--config.steps_per_epoch=0"),
        *("--config.optimizer.learning_rate=0.0001", "--config.schedule.name=constant"),
        *more,
    ]


def start(args: Sequence[str], devices: int, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        args,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
    )


def free_port() -> int:
    """Below those that the system chooses from, or another program may get it meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    pytest.fail("there is no free port")


@contextlib.contextmanager
def two_processes(
    args: Sequence[str],
    cwds: Sequence[Path | None] = (None, None),
    second: Sequence[str] = (),
) -> Iterator[list[subprocess.Popen[str]]]:
    """The same command twice, with two devices each; whatever is left of them is killed.

    ``second``: arguments that the second has besides.
    """
    flags = f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"
    processes = [
        start([*args, *flags, f"--process_id={i}", *more], devices=2, cwd=cwd)
        for i, (cwd, more) in enumerate(zip(cwds, ((), second), strict=True))
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def outputs(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, 4])
def test_two_processes_equal_one(tmp_path: Path, idx_folder: Path, seeds: int):
    """One seed: each batch over all four devices. Four: a seed each, on two hosts."""
    fields = f"--config.num_seeds={seeds}", "--config.num_epochs=8"
    with two_processes(command(idx_folder, tmp_path / "two", *fields)) as processes:
        (code, said, complaint), (other_code, other_said, other_complaint) = outputs(processes)
    assert (code, other_code) == (0, 0), complaint + other_complaint
    assert "final accuracy" in said
    assert set(re.findall("[A-Za-z]+", other_said)) <= GLOO, other_said
    alone = start(command(idx_folder, tmp_path / "one", *fields), devices=4)
    assert outputs([alone])[0][0] == 0

    rows, expected = rows_of(tmp_path / "two"), rows_of(tmp_path / "one")
    places = [(row["epoch"], row["seed"]) for row in rows]
    assert places == [(epoch, seed) for epoch in range(1, 9) for seed in range(seeds)]
    for row, other in zip(without_timing(rows), without_timing(expected), strict=True):
        assert row == but_for_rounding(other, rel=1e-5)
    for seed in range(seeds):
        two, one = (saved_run.load(tmp_path / name, seed=seed).state for name in ("two", "one"))
        assert int(two.step) == 56
        distances = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), two.params, one.params)
        largest = max(jax.tree.leaves(distances))
        print(f"seed {seed}: largest difference of a weight after 56 steps: {largest:.0e}")
        assert largest < 1e-5
        chex.assert_trees_all_close(two, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_death_of_one_ends_the_other_and_the_run_resumes(
    tmp_path: Path, idx_folder: Path, victim: int
):
    workdir = tmp_path / "run"
    args = command(idx_folder, workdir, "--config.num_epochs=9999")
    with two_processes(args) as processes:
        survivor = processes[1 - victim]
        wait_for(survivor, lambda: len(rows_of(workdir)) >= 3)
        processes[victim].kill()
        _, complaint = survivor.communicate(timeout=TIMEOUT)
    assert survivor.returncode in (1, -signal.SIGABRT)  # ours, or that of JAX, who may be first
    assert "another process" in complaint or "another task" in complaint

    before = rows_of(workdir)
    with contextlib.closing(CheckedRun(args)) as alone:
        wait_for(alone.process, lambda: len(rows_of(workdir)) > len(before))
        code, said, complaint = alone.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, complaint
    resumed = re.search(r"resumed after epoch (\d+) of 9999", said)
    assert resumed
    assert int(resumed[1]) >= len(before) - 1
    after = rows_of(workdir)
    assert [row["epoch"] for row in after] == list(range(1, len(after) + 1))


BROKEN = """
import runpy, jax
from jaxmnist.training.programs import Programs

init = Programs.init

def fail(programs):
    if jax.process_index() == {victim}:
        raise RuntimeError("a mistake of ours")
    return init(programs)

Programs.init = fail
runpy.run_module("jaxmnist.main", run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_mistake_of_ours_in_one_ends_both(tmp_path: Path, idx_folder: Path, victim: int):
    python, _, _, *flags = command(idx_folder, tmp_path / "run", "--config.num_epochs=1")
    with two_processes([python, "-c", BROKEN.format(victim=victim), *flags]) as processes:
        results = outputs(processes)
    code, _, complaint = results[victim]
    assert code == 1
    assert complaint.endswith("RuntimeError: a mistake of ours\n")
    code, _, complaint = results[1 - victim]
    assert code in (1, -signal.SIGABRT)
    assert "another process" in complaint or "another task" in complaint


def test_sigterm_to_one_stops_and_saves_both(tmp_path: Path, idx_folder: Path):
    workdir = tmp_path / "run"
    with two_processes(command(idx_folder, workdir, "--config.num_epochs=9999")) as processes:
        wait_for(processes[1], lambda: len(rows_of(workdir)) >= 2)
        processes[1].send_signal(signal.SIGTERM)
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 128 + signal.SIGTERM, complaint
        assert "everything is saved" in complaint
    with contextlib.closing(Checkpoints(workdir / CHECKPOINTS, read_only=True)) as checkpoints:
        assert checkpoints.record(checkpoints.steps()[-1]).rows == rows_of(workdir)


class CheckedRun:
    """A run in one process, on one device."""

    def __init__(self, args: Sequence[str]):
        self.process = start(args, devices=1)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return outputs([self.process])[0]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.long
def test_impossible_mesh_ends_all_processes(tmp_path: Path, idx_folder: Path):
    args = command(idx_folder, tmp_path / "run", "--config.mesh.data=2")
    with two_processes(args) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 2
        assert complaint.count("\n") == 1
        assert "config.mesh" in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_refusals_of_the_first_process_end_all(tmp_path: Path, idx_folder: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("")
    with two_processes(command(idx_folder, tmp_path / "run")) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 2
        assert complaint.count("\n") == 1
        assert "holds other things" in complaint


@pytest.mark.long
def test_data_that_one_process_lacks_ends_all(tmp_path: Path, idx_folder: Path):
    """Soon: at a proper exit one would wait for the others, who wait for it, for minutes."""
    args = command(Path(idx_folder.name), tmp_path / "run")
    with two_processes(args, cwds=(idx_folder.parent, tmp_path)) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 2
        assert complaint == (
            f"error: dataset {idx_folder.name!r} is no folder; use 'mnist', a folder of IDX files "
            "or 'tfds:NAME'\n"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (
            "--config.optimizer.learning_rate=0.3",
            "config.optimizer.learning_rate is 0.0001 in the first process of the run and 0.3 in "
            "another: start all of them with the same settings",
        ),
        pytest.param(
            "--config.network.head=maps",
            "config.network.head is 'maps': compact_tiny has its own layers, set "
            "config.model=blocks",
            marks=pytest.mark.long,
        ),
    ],
)
def test_different_settings_are_refused(
    tmp_path: Path, idx_folder: Path, second: str, expected: str
):
    """Which JAX would not notice: a learning rate is data of its program."""
    args = command(idx_folder, tmp_path / "run")
    with two_processes(args, second=(second,)) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert (code, complaint) == (2, f"error: {expected}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_different_images_are_refused(tmp_path: Path, idx_folder: Path):
    """Of the same number, in folders of the same name."""
    cwds = tmp_path / "first", tmp_path / "second"
    for cwd in cwds:
        shutil.copytree(idx_folder, cwd / "digits")
    file = cwds[1] / "digits" / "t10k-labels-idx1-ubyte"
    content = bytearray(file.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    file.write_bytes(content)
    with two_processes(command(Path("digits"), tmp_path / "run"), cwds=cwds) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 2
        assert complaint == (
            "error: config.dataset is 'digits', where not all processes of the run find the same "
            "images: give them the same files\n"
        )
    assert not (tmp_path / "run").exists()


def test_workdirs_that_are_not_shared_are_refused(tmp_path: Path, idx_folder: Path):
    with two_processes(command(idx_folder, Path("run")), cwds=(tmp_path, idx_folder)) as processes:
        results = outputs(processes)
    for code, _, complaint in results:
        assert code == 2
        assert complaint.count("\n") == 1
        assert "not the same folder for all processes" in complaint


def test_processes_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED:\nnobody came")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"host:1: DEADLINE_EXCEEDED: nobody came") as caught:
        hosts.join("host:1", 2, 0)
    assert "\n" not in str(caught.value)


def test_one_process_is_the_first():
    assert hosts.is_first()
    assert hosts.on_first(lambda: 7) == 7
    assert hosts.on_each(lambda: 8) == 8
    assert hosts.largest(5) == 5
