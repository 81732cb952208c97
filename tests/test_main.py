"""The command line as its users meet it, each kind of use in a process of its own."""

import concurrent.futures
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import pytest
from commands import fresh
from workdirs import AT_ONCE, files_below, rows_of, wait_for

import jaxmnist
from jaxmnist.config import FIELDS
from jaxmnist.errors import UserError
from jaxmnist.runs import saved_run, train
from jaxmnist.training import parallel

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPE = ("--config", str(CONFIGS / "compact_tiny.py"))
TIMEOUT = 120

METRICS = [
    "seed",
    "epoch",
    "step",
    "learning_rate",
    "momentum",
    "train_loss",
    "train_accuracy",
    "eval_loss",
    "eval_accuracy",
    "seconds",
    "images_per_second",
]
SUMMARY = [
    "model",
    "params",
    "receptive_field",
    "num_seeds",
    "num_epochs",
    "final_accuracy",
    "best_accuracy",
    "compile_seconds",
    "train_seconds",
    "images_per_second",
    "backend",
    "device",
    "jax_version",
]
PLOTS = {"learning_curves.png", "schedule.png", "confusion_matrix.png", "misclassified.png"}
FILES = {".lock", "config.json", "metrics.jsonl", "summary.json", "checkpoints"} | PLOTS

BAD_RECIPES = {
    "syntax": "def get_config(:\n",
    "no such file": "def get_config():\n    open('rates.json')\n",
    "raises": "def get_config():\n    raise ValueError('the\\nreason')\n",
    "none": "def get_config():\n    pass\n",
    "nothing": "",
}

# Ctrl-C in the middle of a garbage collection, whose callbacks cannot raise: JAX has one.
LATE_CTRL_C = """
import gc, signal
from jaxmnist.config import default_config

def press(*_):
    gc.callbacks.remove(press)
    gc.set_threshold(700, 10, 10)
    signal.raise_signal(signal.SIGINT)

def get_config():
    gc.callbacks.append(press)
    gc.set_threshold(1)  # soon: in a run this short the training might hear it last
    return default_config()
"""

# Ctrl-C of which another exception is made, as Python 3.11 does within a class statement.
DISGUISED_CTRL_C = """
import signal

def get_config():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as pressed:
        raise RuntimeError("Error calling __set_name__ on 'Field'") from pressed
"""

# Arguments, and what the one line on stderr must name. RECIPES and WORKDIRS stand for folders.
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no recipe": ((), ("--config is missing", "model3")),
    "empty recipe": (("--config=",), ("--config",)),
    "empty workdir": (
        ("--config=model3", "--workdir=", "--restart"),
        ("--workdir is empty: name a folder, or leave it out",),
    ),
    "missing recipe": (
        ("--config=nowhere/model9.py",),
        ("--config: ", "nowhere/model9.py", "packaged ones: compact, "),
    ),
    "syntax error": (("--config=RECIPES/syntax.py",), ("syntax.py", "line 1")),
    "recipe raises": (("--config=RECIPES/raises.py",), ("raises.py", "the reason")),
    "recipe misses a file": (
        ("--config=RECIPES/no such file.py",),
        ("no such file.py", "FileNotFoundError", "rates.json"),
    ),
    "and a field is set": (
        ("--config=RECIPES/no such file.py", "--config.num_epochs=3"),
        ("no such file.py", "FileNotFoundError", "rates.json"),
    ),
    "two recipes": ((*RECIPE, "--config=model3"), ("--config is given twice",)),
    "recipe of nothing": (("--config=RECIPES/none.py",), ("none.py", "get_config")),
    "no get_config": (("--config=RECIPES/nothing.py",), ("nothing.py", "get_config")),
    "unknown flag": ((*RECIPE, "--epochs=3"), ("'epochs'",)),
    "positional": ((*RECIPE, "model3"), ("'model3'",)),
    "unknown field": (
        (*RECIPE, "--config.learning_rate=3"),
        ("config.learning_rate", "config.optimizer.learning_rate"),
    ),
    "no and a value": ((*RECIPE, "--norestart=true"), ("--norestart=true", "see --help")),
    "no and a field's value": (
        (*RECIPE, "--noconfig.drop_remainder=true"),
        ("--noconfig.drop_remainder=true does not take an argument: see --help",),
    ),
    "missing file of flags": ((*RECIPE, "--flagfile=nowhere"), ("'nowhere': see --help",)),
    "ill-typed": ((*RECIPE, "--config.num_epochs=1.5"), ("config.num_epochs", "1.5", "int")),
    "group": ((*RECIPE, "--config.optimizer=3"), ("config.optimizer",)),
    "no such data": ((*RECIPE, "--config.dataset=nowhere"), ("dataset", "'nowhere'")),
    "too many steps": (
        (*RECIPE, "--config.steps_per_epoch=999"),
        ("config.steps_per_epoch is 999", "391"),
    ),
    "another run": ((*RECIPE, "--workdir=WORKDIRS/other"), ("config.seed is 5", "--restart")),
}
# One of each kind, in processes of their own: a flag, a recipe, data, a workdir.
REFUSED_TO_A_PROCESS = (
    "unknown field",
    "recipe raises",
    "no such data",
    "another run",
)

OTHER_RUN = '{"seed": 5}'

# What the shell is told to close.
BOTH_CLOSED = ">&- 2>&-"


class Outcome(NamedTuple):
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str
    cwd: Path


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "jaxmnist.main", *args]


def execute(cwd: Path, args: Sequence[str], redirection: str = "") -> Outcome:
    cwd.mkdir()
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*args)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, cwd)


def parsed(*args: str) -> ModuleType:
    """The command in this process, after it has read its flags."""
    command = fresh("main")
    command._parse(["main", *args])
    return command


def trained(*args: str) -> None:
    parsed(*args)._train()


@pytest.fixture(scope="module")
def quick(idx_folder: Path) -> tuple[str, ...]:
    """Arguments for epochs of ten steps on 640 real images, evaluated on 200."""
    return (
        *RECIPE,
        f"--config.dataset={idx_folder}",
        "--config.split=train/test",
        "--config.batch_size=64",
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Recipes and workdirs that cannot be used."""
    recipes, workdirs = tmp_path_factory.mktemp("recipes"), tmp_path_factory.mktemp("workdirs")
    for name, text in BAD_RECIPES.items():
        (recipes / f"{name}.py").write_text(text)
    (recipes / "late_ctrl_c.py").write_text(LATE_CTRL_C)
    (recipes / "flags").write_text("--config=compact_tiny\n--config.num_epochs=0\n")
    (recipes / "disguised_ctrl_c.py").write_text(DISGUISED_CTRL_C)
    (workdirs / "other").mkdir()
    (workdirs / "other" / "config.json").write_text(OTHER_RUN)
    return {"RECIPES": recipes, "WORKDIRS": workdirs}


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory,
    material: Mapping[str, Path],
    quick: tuple[str, ...],
):
    """The outcome of a command by name; all of them run side by side from the first use on."""
    commands = {name: REFUSED[name][0] for name in REFUSED_TO_A_PROCESS}
    commands["refusal 2>&-"] = REFUSED["no such data"][0]
    commands["help >&-"] = ("--help",)
    commands["file of flags"] = ("--flagfile=RECIPES/flags",)
    one_epoch = (*quick, "--config.num_epochs=1")
    commands[f"run {BOTH_CLOSED}"] = one_epoch
    commands["success"] = (*quick, "--config.num_epochs=2", "--config.num_seeds=2")
    commands["divergence"] = (*quick, "--config.optimizer.learning_rate=1e25")
    commands["late Ctrl-C"] = (
        "--config=RECIPES/late_ctrl_c.py",
        *quick[2:],
        "--config.num_epochs=1",
    )
    commands["disguised Ctrl-C"] = ("--config=RECIPES/disguised_ctrl_c.py",)
    commands["help"] = ("--help",)
    base = tmp_path_factory.mktemp("cwd")
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        # The long ones first, so that they do not run alone at the end.
        futures = {}
        for number, (name, args) in enumerate(reversed(commands.items())):
            place, redirection = base / str(number), name.partition(" ")[2] if "&-" in name else ""
            futures[name] = pool.submit(execute, place, placed(args, material), redirection)
        yield lambda name: futures[name].result()
        for future in futures.values():
            future.cancel()


GetOutcome = Callable[[str], Outcome]


def placed(args: Sequence[str], material: Mapping[str, Path]) -> list[str]:
    """The arguments with RECIPES and WORKDIRS replaced."""
    for key, folder in material.items():
        args = [arg.replace(key, str(folder)) for arg in args]
    return list(args)


@pytest.mark.parametrize("name", REFUSED_TO_A_PROCESS)
def test_refused_in_one_line(name: str, outcome: GetOutcome):
    done = outcome(name)
    assert "Traceback" not in done.stderr
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith("\n")
    assert len(done.stderr.splitlines()) == 1
    assert "/site-packages/" not in done.stderr
    for word in REFUSED[name][1]:
        assert word in done.stderr
    assert done.stdout == ""
    assert files_below(done.cwd) == {}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(
    name: str,
    material: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """As the command does it, but in this process."""
    args, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "use_every_core", lambda: None)  # there are some already
    with pytest.raises(UserError) as caught:
        trained(*placed(args, material))
    message = str(caught.value)
    assert message.isprintable()
    assert "/site-packages/" not in message
    for word in words:
        assert word in message
    assert capsys.readouterr().out == ""
    assert files_below(tmp_path) == {}


def test_a_file_may_hold_the_flags(outcome: GetOutcome):
    done = outcome("file of flags")
    assert done.exit_code == 2
    assert done.stderr == "error: config.num_epochs is 0: it must be from 1 to 10000\n"


def test_refused_workdirs_are_untouched(outcome: GetOutcome, material: Mapping[str, Path]):
    outcome("another run")
    assert files_below(material["WORKDIRS"]) == {
        "other": b"",
        "other/.lock": b"",
        "other/config.json": OTHER_RUN.encode(),
    }


def test_help_lists_every_field(outcome: GetOutcome):
    done = outcome("help")
    assert (done.exit_code, done.stderr) == (0, "")
    for flag in ("config RECIPE", "workdir DIR", "restart", "tensorboard", "coordinator HOST:PORT"):
        assert f"\n  --{flag} " in done.stdout
    for flag in ("num_processes N", "process_id I"):
        assert f"\n  --{flag} " in done.stdout
    for name in FIELDS:
        assert len(re.findall(rf"^  --config\.{re.escape(name)} ", done.stdout, re.M)) == 1


def test_divergence_is_one_line(outcome: GetOutcome):
    done = outcome("divergence")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.match(
        r"error: the loss is (inf|nan|-inf) at step \d+ \(epoch \d+, seed 0\)", done.stderr
    )
    assert "config.optimizer.learning_rate (now 1e+25)" in done.stderr


@pytest.mark.parametrize("name", ["late Ctrl-C", "disguised Ctrl-C"])
def test_ctrl_c_is_heard_wherever_it_comes(name: str, outcome: GetOutcome):
    done = outcome(name)
    assert done.exit_code == 130
    assert done.stderr.startswith("error: interrupted")
    assert done.stderr.count("\n") == 1


def test_piped_output_is_plain(outcome: GetOutcome):
    done = outcome("success")
    assert (done.exit_code, done.stderr) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" +\d+ +\d\.\d", line)]
    assert [row[0] for row in rows] == ["1", "2"]
    assert "6,584 parameters" in done.stdout
    assert "published" not in done.stdout  # other data than the publication's


def test_files_of_a_run(outcome: GetOutcome):
    workdir = outcome("success").cwd / "runs" / "compact_tiny"
    files = {path.name for path in workdir.iterdir()}
    assert files == FILES
    for plot in PLOTS:
        assert (workdir / plot).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    config = json.loads((workdir / "config.json").read_text())
    assert (config["batch_size"], config["num_seeds"], config["model"]) == (64, 2, "compact_tiny")
    newest = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert newest == ["10", "20"]


def test_metrics_of_a_run(outcome: GetOutcome):
    rows = rows_of(outcome("success").cwd / "runs" / "compact_tiny")
    assert [list(row) for row in rows] == [METRICS] * 4
    assert [(row["epoch"], row["seed"], row["step"]) for row in rows] == [
        (1, 0, 10),
        (1, 1, 10),
        (2, 0, 20),
        (2, 1, 20),
    ]
    for row in rows:
        assert (row["learning_rate"], row["momentum"]) == (0.01, 0.9)
        # Shares of 640 and 200 images, in percent.
        assert (row["train_accuracy"] * 6.4) == pytest.approx(round(row["train_accuracy"] * 6.4))
        assert (row["eval_accuracy"] * 2) == pytest.approx(round(row["eval_accuracy"] * 2))
        assert 0 <= row["train_accuracy"] <= 100
        assert row["seconds"] * row["images_per_second"] == pytest.approx(2 * 640)
    assert rows[0]["train_loss"] != rows[1]["train_loss"]


def test_summary_of_a_run(outcome: GetOutcome):
    workdir = outcome("success").cwd / "runs" / "compact_tiny"
    summary, rows = json.loads((workdir / "summary.json").read_text()), rows_of(workdir)
    assert list(summary) == SUMMARY
    assert (summary["model"], summary["params"]) == ("compact_tiny", 6584)
    assert (summary["num_seeds"], summary["num_epochs"]) == (2, 2)
    accuracies = [row["eval_accuracy"] for row in rows]
    assert list(summary["final_accuracy"]) == ["mean", "sd", "min", "max", "ci95"]
    assert summary["final_accuracy"]["mean"] == pytest.approx(sum(accuracies[2:]) / 2)
    assert summary["final_accuracy"]["max"] == max(accuracies[2:])
    best = [max(accuracies[seed], accuracies[2 + seed]) for seed in (0, 1)]
    assert summary["best_accuracy"]["mean"] == pytest.approx(sum(best) / 2)
    assert summary["train_seconds"] == pytest.approx(rows[0]["seconds"] + rows[2]["seconds"])
    assert summary["images_per_second"] == pytest.approx(2560 / summary["train_seconds"])


def test_a_run_with_closed_streams_is_whole(outcome: GetOutcome):
    """What is said goes nowhere, least of all into the file that took a closed stream's number."""
    done = outcome(f"run {BOTH_CLOSED}")
    assert done[:3] == (0, "", "")
    workdir = done.cwd / "runs" / "compact_tiny"
    assert [path.name for path in done.cwd.iterdir()] == ["runs"]
    assert {path.name for path in workdir.iterdir()} == FILES
    (line,) = (workdir / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == METRICS
    assert list(json.loads((workdir / "summary.json").read_text())) == SUMMARY
    assert (workdir / ".lock").read_bytes() == b""
    for plot in PLOTS:
        assert (workdir / plot).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert saved_run.load(workdir).epoch == 1


def test_help_and_refusals_survive_closed_streams(outcome: GetOutcome):
    assert outcome("help >&-")[:3] == (0, "", "")
    refusal = outcome("refusal 2>&-")
    assert refusal[:3] == (2, "", "")
    assert files_below(refusal.cwd) == {}


class OnTerminal:
    """A command on a pseudo-terminal of 150 columns; ``screen`` grows with what it prints."""

    def __init__(self, cwd: Path, *args: str):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 150, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command(*args), cwd=cwd, stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, args=(master,))
        self._reader.start()

    def _read(self, master: int) -> None:
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:  # on Linux, the end
                chunk = b""
            if not chunk:
                break
            self._bytes += chunk
        os.close(master)

    @property
    def screen(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    def end(self, sent: signal.Signals) -> int:
        """The exit code after a signal."""
        exit_code = end(self.process, sent)
        self._reader.join(TIMEOUT)
        return exit_code


def end(process: subprocess.Popen, sent: signal.Signals) -> int:
    process.send_signal(sent)
    try:
        return process.wait(TIMEOUT)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, quick: tuple[str, ...]):
    """A run that is stopped on a terminal, its exit code, and the command that started it."""
    cwd = tmp_path_factory.mktemp("interrupted")
    args = (
        *quick,
        "--config.num_epochs=5000",
        "--workdir=w",
        "--config.checkpoint.every_epochs=9999",
    )
    shown = re.compile(r"step +\d+/10 +\d+% .*accuracy")
    terminal = OnTerminal(cwd, *args)
    try:
        wait_for(
            terminal.process,
            lambda: len(rows_of(cwd / "w")) >= 3 and bool(shown.search(terminal.screen)),
        )
    except BaseException:
        terminal.process.kill()
        raise
    exit_code = terminal.end(signal.SIGINT)
    return cwd, args, exit_code, terminal.screen


def test_terminal_shows_a_live_bar(interrupted):
    screen = interrupted[3]
    assert re.search(
        r"\repoch \d+/5000, step +\d+/10 +\d+% \|.*\| +\d[\d.]*k? images/s, ETA \d[\d:]+, "
        r"loss \d+\.\d{4}, accuracy \d+\.\d\d %",
        screen,
    )


def test_terminal_lines_are_not_mixed_with_the_bar(interrupted):
    lines = [line.rpartition("\r")[2] for line in interrupted[3].split("\r\n")]
    rows = [line.split() for line in lines if re.match(r" +\d+ +\d\.\d", line)]
    assert [row[0] for row in rows[:2]] == ["1", "2"]  # the third may be on file and not printed
    assert all(len(row) == 11 for row in rows)  # eight numbers, two '%' and an 's'
    assert lines[-1] == ""
    assert "step" not in "\n".join(lines[:-2])  # but in the error, which is the last


def test_ctrl_c_ends_with_130_and_a_line(interrupted):
    _, _, exit_code, screen = interrupted
    assert exit_code == 130
    assert "Traceback" not in screen
    last = screen.rstrip("\r\n").split("\r\n")[-1].rpartition("\r")[2]
    assert STOPPED.fullmatch(last)


STOPPED = re.compile(
    r"error: interrupted by (SIGINT|SIGTERM) after step (\d+) \(epoch (\d+) of 5000\), everything "
    r"is saved; the same command goes on from there\n?"
)


def test_same_command_goes_on(interrupted):
    """The epochs that were done are not done again, though no checkpoint was due."""
    cwd, args, _, screen = interrupted
    before = rows_of(cwd / "w")
    assert [row["epoch"] for row in before] == list(range(1, len(before) + 1))
    stopped = STOPPED.search(screen.replace("\r\n", "\n"))
    assert stopped
    assert stopped.groups() == ("SIGINT", str(10 * len(before)), str(len(before)))
    names = [path.name for path in (cwd / "w" / "checkpoints").iterdir()]
    assert names == [str(10 * len(before))]

    with (cwd / "stdout").open("w") as stdout, (cwd / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(*args), cwd=cwd, stdout=stdout, stderr=stderr)
        try:
            wait_for(process, lambda: len(rows_of(cwd / "w")) > len(before) + 1)
        except BaseException:
            process.kill()
            raise
        assert end(process, signal.SIGTERM) == 128 + signal.SIGTERM
    assert f"resumed after epoch {len(before)} of 5000\n" in (cwd / "stdout").read_text()
    after = rows_of(cwd / "w")
    stopped = STOPPED.fullmatch((cwd / "stderr").read_text())
    assert stopped
    assert stopped.groups() == ("SIGTERM", str(10 * len(after)), str(len(after)))
    assert [row["epoch"] for row in after] == list(range(1, len(after) + 1))
    assert after[: len(before)] == before


PRINTS = """
from absl import flags
from jaxmnist import cli
cli.run(lambda: print("scores"), lambda argv: cli.parse_flags(argv, flags.FlagValues()), "")
"""


@pytest.mark.parametrize("args", [command("--help"), [sys.executable, "-c", PRINTS]])
def test_a_closed_pipe_is_no_news(args: list[str]):
    """Buffered, as Python writes into pipes unless PYTHONUNBUFFERED is set."""
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)  # before the process begins: it may write at once
    process = subprocess.Popen(args, stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert process.communicate(timeout=TIMEOUT)[1] == b""
    assert process.returncode == 1


FILLS = """
import jax
from absl import flags
from jaxmnist import cli
def fill():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nmore")
cli.run(fill, lambda argv: cli.parse_flags(argv, flags.FlagValues()), "")
"""


def test_a_full_device_is_told_in_a_line():
    done = subprocess.run([sys.executable, "-c", FILLS], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the device has too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 "
        "bytes.): train fewer networks at once (config.num_seeds, in a sweep --parallel), or take "
        "a smaller config.batch_size\n"
    )


THIRD = ("--num_processes=4", "--process_id=2")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (THIRD, r"--num_processes and --process_id are given: --coordinator .* needed"),
        (("--process_id=0",), r"--coordinator HOST:PORT is needed"),
        (("--coordinator=auto", *THIRD), r"--coordinator HOST:PORT is needed"),
        (("--coordinator=host", *THIRD), r"--coordinator is 'host': .* HOST:PORT or auto"),
        (("--coordinator=", *THIRD), r"--coordinator is ''"),
        (("--coordinator=:80", *THIRD), r"--coordinator is ':80'"),
        (("--coordinator=host:http", *THIRD), r"--coordinator is 'host:http'"),
        (("--coordinator=host:1234567", *THIRD), r"--coordinator is 'host:1234567'"),
        (("--coordinator=host:80",), r"--num_processes is None, --process_id None: both"),
        (("--coordinator=host:80", "--num_processes=4"), r"is 4, --process_id None: both"),
        (("--coordinator=host:80", "--process_id=0"), r"is None, --process_id 0: both"),
        (("--coordinator=host:80", "--num_processes=2", "--process_id=2"), r"from 0 to N-1"),
        (("--coordinator=host:80", "--num_processes=2", "--process_id=-1"), r"from 0 to N-1"),
        (("--coordinator=host:80", "--num_processes=0", "--process_id=0"), r"from 0 to N-1"),
        (("--coordinator=host:80", "--num_processes=two", "--process_id=0"), r"two"),
    ],
)
def test_unfit_flags_of_several_processes(args: tuple[str, ...], words: str):
    with pytest.raises(UserError, match=words) as caught:
        parsed(*RECIPE, *args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--coordinator=auto",),
        ("--coordinator=host:80", *THIRD),
        ("--coordinator=[::1]:65535", "--num_processes=1", "--process_id=0"),
    ],
)
def test_fit_flags_of_several_processes(args: tuple[str, ...]):
    assert parsed(*RECIPE, *args)._RECIPE.name == "compact_tiny"


def passed_on(*args: str) -> mock.Mock:
    """Stands in for ``train.run``, and has been called by the command."""
    command = parsed(*args)
    with (
        mock.patch.object(parallel, "use_every_core"),
        mock.patch.object(train, "run") as run,
    ):
        command._train()
    return run


@pytest.mark.parametrize(("flags", "wanted"), [((), False), (("--tensorboard",), True)])
def test_tensorboard_is_passed_on(flags: tuple[str, ...], wanted: bool):
    run = passed_on(*RECIPE, *flags)
    expected = {"restart": False, "tensorboard": wanted, "started": jaxmnist.STARTED}
    assert run.call_args.kwargs == expected


def test_a_recipe_may_compute_with_numpy(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom jaxmnist.config import default_config\n\n\n"
        "def get_config():\n    config = default_config()\n"
        "    config.optimizer.learning_rate = 0.1 * np.sqrt(2)\n    return config\n"
    )
    run = passed_on(f"--config={tmp_path / 'mine.py'}")
    assert type(run.call_args.args[0].optimizer.learning_rate) is float
