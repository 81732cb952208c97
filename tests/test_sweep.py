"""The command that sweeps: its flags, what it refuses, and real processes that are killed."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commands import fresh
from workdirs import wait_for

from jaxmnist.config import FIELDS
from jaxmnist.errors import UserError
from jaxmnist.sweeps.space import configured
from jaxmnist.training import parallel

TIMEOUT = 240
RATES = "--sweep.optimizer.learning_rate=0.03,0.1,0.3"
RECIPE = ("--config=compact_tiny", "--workdir=out")

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing swept": (RECIPE, "nothing is swept: --sweep.FIELD=a,b,c or"),
    "no recipe": ((RATES, "--workdir=out"), "--config is missing"),
    "no workdir": ((RECIPE[0], RATES), "--workdir is missing"),
    "empty workdir": ((RECIPE[0], RATES, "--workdir="), "--workdir is missing"),
    "empty storage": ((*RECIPE, RATES, "--storage="), "--storage is empty: name a database"),
    "two recipes": ((*RECIPE, RATES, "--config=model3"), "--config is given twice"),
    "no configuration": (
        ("--config=EMPTY", "--workdir=out", RATES),
        "config.recipe is missing: start from jaxmnist.config.default_config()",
    ),
    "no values": ((*RECIPE, "--sweep.dropout"), "--sweep.dropout has no values"),
    "empty": ((*RECIPE, "--sweep.dropout="), "--sweep.dropout has no values"),
    "twice": ((*RECIPE, RATES, RATES), "--sweep.optimizer.learning_rate is given twice"),
    "both": (
        (*RECIPE, RATES, "--config.optimizer.learning_rate=1"),
        "--config.optimizer.learning_rate and --sweep.optimizer.learning_rate are given",
    ),
    "unknown": ((*RECIPE, "--sweep.lr=1,2"), "--sweep.lr: config.lr is unknown"),
    "strings": ((*RECIPE, "--sweep.model=a..b"), "--sweep.model is 'a..b': model is no number"),
    "empty range": ((*RECIPE, "--sweep.dropout=0.5..0.1"), "an empty range"),
    "no number": ((*RECIPE, "--sweep.dropout=much"), "--sweep.dropout has 'much'"),
    "too few": ((*RECIPE, RATES, "--trials=2"), "--trials is 2: the grid has 3 points"),
    "too many": ((*RECIPE, RATES, "--trials=9"), "--trials is 9: the grid has 3 points"),
    "how many": ((*RECIPE, "--sweep.dropout=0..0.5"), "--trials is missing"),
    "sampler": ((*RECIPE, RATES, "--sampler=best"), "--sampler is 'best'"),
    "ill-typed": ((*RECIPE, RATES, "--trials=many"), "trials"),
    "network": (
        (*RECIPE, "--sweep.network.blocks=8/8/8/8/8/8,8/8"),
        "config.network.blocks is '8/8/8/8/8/8': compact_tiny has its own layers",
    ),
    "momentum of a schedule that has its own": (
        ("--config=model3", "--workdir=out", "--sweep.optimizer.momentum=0.8,0.9"),
        "--sweep.optimizer.momentum changes nothing with schedule.name=onecycle: onecycle has its",
    ),
    "field of another schedule": (
        (*RECIPE, "--sweep.schedule.gamma=0.5,0.6", "--sweep.schedule.name=constant,cosine"),
        "--sweep.schedule.gamma changes nothing with schedule.name=constant,cosine: it belongs to",
    ),
    "file": ((RECIPE[0], RATES, "--workdir=FILE"), "--workdir"),
    "below a file": ((RECIPE[0], RATES, "--workdir=FILE/x"), "--workdir"),
    "not writable": ((RECIPE[0], RATES, "--workdir=/proc/x"), "choose a folder that can be"),
    "not empty": ((RECIPE[0], RATES, "--workdir=."), "holds other things than a sweep"),
    "storage": ((*RECIPE, RATES, "--storage=nosuch://x"), "--storage nosuch://x"),
    "seeds": ((*RECIPE, "--sweep.seed=1,2"), "cannot be swept: --config.num_seeds=N"),
}


def placed(args: tuple[str, ...], folder: Path) -> list[str]:
    args = tuple(argument.replace("FILE", str(folder / "file")) for argument in args)
    return [argument.replace("EMPTY", str(folder / "empty.py")) for argument in args]


def sweep_here(*args: str) -> None:
    """As the command does it, but in this process."""
    module = fresh("sweep")
    module._parse(["sweep", *args])
    with mock.patch.object(parallel, "use_every_core"):  # there are some already
        module._sweep()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args, words = REFUSED[name]
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        sweep_here(*placed(args, tmp_path))
    message = str(caught.value)
    assert words in message
    assert message.isprintable()
    there = {path.name for path in tmp_path.iterdir()}
    assert there <= {"file", "empty.py", "out"}
    assert "out" not in there or name == "storage"


def execute(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxmnist.sweep", *args],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )


def test_help(tmp_path: Path):
    done = execute(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    for flag in ("config RECIPE", "workdir DIR", "sweep.FIELD=VALUES", "trials N", "halving R"):
        assert f"\n  --{flag} " in done.stdout
    for name in FIELDS:
        assert f"  --config.{name} " in done.stdout


def test_refused_by_a_process(tmp_path: Path):
    done = execute(tmp_path, *RECIPE, "--sweep.dropout=0.5..0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: --sweep.dropout is '0.5..0.1': an empty range.*\n", done.stderr)


@pytest.fixture(scope="module")
def quick(idx_folder: Path) -> tuple[str, ...]:
    """Arguments for a grid of six trials on 640 images."""
    return (
        *("--config=compact_tiny", "--config.model=blocks", "--config.network.blocks=3/4"),
        *("--config.network.padding=1", "--config.dropout=0", "--config.batch_size=100"),
        *(f"--config.dataset={idx_folder}", "--config.split=train/test", "--config.num_epochs=3"),
        *(RATES, "--sweep.augment.rotate_degrees=5,10", "--parallel=2"),
    )


def trials(workdir: Path) -> list[dict[str, Any]]:
    """Without what differs from time to time."""
    lines = (workdir / "trials.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command ran without any interruption."""
    folder = tmp_path_factory.mktemp("whole")
    done = execute(folder, *quick, "--workdir=out")
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    assert done.returncode == 0, done.stderr
    return folder


def test_what_it_says_when_piped(whole: Path):
    said = (whole / "stdout").read_text()
    assert "\x1b" not in said
    lines = said.splitlines()
    assert lines[0].startswith("sweep of 6 trials (grid), one seed each, on ")
    assert sum(line.startswith("trial ") and "parameters" in line for line in lines) == 6
    table = lines.index(next(line for line in lines if line.split()[:2] == ["trial", "accuracy"]))
    assert lines[table].split()[-2:] == ["learning_rate", "rotate_degrees"]
    assert len(lines[table:]) == 8
    assert lines[-1] == f"everything is in {whole / 'out'}"


def test_the_test_set_is_warned_of(whole: Path):
    assert re.fullmatch(r"warning: --config.split=train/test .*\n", (whole / "stderr").read_text())
    description = json.loads((whole / "out" / "sweep.json").read_text())["sweep"]
    assert description["config.split"] == "train/test"


def test_settings_are_not_chosen_on_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from jaxmnist.sweeps import sweep

    seen: list[Any] = []
    monkeypatch.setattr(sweep, "run", lambda *args, **options: seen.append((args[0], options)))
    args = ("--config=model3", "--workdir=out", RATES)
    sweep_here(*args)
    ((config, options),) = seen
    assert config.split == "train/val"
    assert options["split"] == "train/test"
    assert options["command"] == f"python -m jaxmnist.sweep {' '.join(args)}"


def test_a_recipe_may_say_1_for_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a configuration of its own making, whose field would take whole numbers alone."""
    from jaxmnist.sweeps import sweep

    (tmp_path / "mine.py").write_text(
        "import ml_collections\nfrom jaxmnist.config import default_config\n\n\n"
        "def get_config():\n    nested = default_config().to_dict()\n"
        "    nested['optimizer']['learning_rate'] = 1\n"
        "    return ml_collections.ConfigDict(nested)\n"
    )
    seen: list[Any] = []
    monkeypatch.setattr(sweep, "run", lambda *args, **_: seen.append(args[0]))
    sweep_here(f"--config={tmp_path / 'mine.py'}", "--workdir=out", RATES)
    (config,) = seen
    assert (config.split, config.optimizer.learning_rate) == ("train/val", 1.0)
    assert configured(config, {"optimizer.learning_rate": 0.5}).optimizer.learning_rate == 0.5


def begin(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxmnist.sweep", *args],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def changes(file: Path) -> Callable[[], bool]:
    """Whether the file has been written or removed since this call."""

    def written() -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return file.stat().st_mtime_ns
        return None

    before = written()
    return lambda: written() != before


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_three_times_killed(
    sent: signal.Signals, quick: tuple[str, ...], whole: Path, tmp_path: Path
):
    """While it starts, as it has begun a round, and as it trains; then it ends all the same."""
    random.seed(sent)
    codes = []
    for sign in ("", "round.json", "trials.jsonl"):
        # An earlier start may have left the file, if its signal came late.
        has_come = changes(tmp_path / "out" / sign) if sign else lambda: True
        process = begin(tmp_path, *quick, "--workdir=out")
        wait_for(process, has_come)
        time.sleep(random.uniform(0, 0.2) if sign else random.uniform(0.5, 2.5))
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=TIMEOUT)
        codes.append(process.returncode)
        assert b"Traceback" not in stderr
    assert set(codes) <= {0, -sent, 128 + sent}
    assert codes[0]
    assert codes[1]
    done = execute(tmp_path, *quick, "--workdir=out")
    assert done.returncode == 0, done.stderr
    assert trials(tmp_path / "out") == trials(whole / "out")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_processes_share_a_sweep_and_one_dies(
    kind: str, quick: tuple[str, ...], whole: Path, tmp_path: Path
):
    """No trial twice, none lost; what the dead one had is done by the other."""
    storage = f"sqlite:///{tmp_path / 'study.db'}" if kind == "sqlite" else str(tmp_path / "log")
    args = (*quick, f"--storage={storage}")
    processes = {name: begin(tmp_path, *args, f"--workdir={name}") for name in "ab"}

    def training() -> list[str]:
        return [name for name in processes if (tmp_path / name / "round.json").exists()]

    wait_for(processes["a"], lambda: bool(training()))
    dead, alive = sorted(processes, key=lambda name: name not in training())
    processes[dead].kill()
    processes[dead].communicate()
    assert processes[dead].returncode == -signal.SIGKILL
    content = json.loads((tmp_path / dead / "round.json").read_text())
    begun = {number for number, _ in content["trials"]}
    _, stderr = processes[alive].communicate(timeout=TIMEOUT)
    assert processes[alive].returncode == 0, stderr
    found = trials(tmp_path / alive)
    # What the dead one had not told yet got another number when it was handed on.
    assert begun - {trial["trial"] for trial in found}
    settings = Counter(json.dumps(trial["settings"]) for trial in found)
    assert set(settings.values()) == {1}
    expected = {json.dumps(t["settings"]): t["final_accuracy"] for t in trials(whole / "out")}
    assert {json.dumps(t["settings"]): t["final_accuracy"] for t in found} == expected
    # The dead one comes back: nothing is left for it to do.
    done = execute(tmp_path, *args, f"--workdir={dead}")
    assert done.returncode == 0, done.stderr
    assert trials(tmp_path / dead) == found
