"""Faults survived, by real processes: kills, signals, damaged files, full disks, rival processes.

Each fault befalls the ordinary command; the same command, started again, must then end with exactly
what a run that nothing befell has: metrics, final state and accuracies, bit for bit.
"""

import contextlib
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from workdirs import AT_ONCE, PATIENCE, files_below, rows_of, wait_for, without_timing

from jaxmnist import data
from jaxmnist.runs import saved_run
from jaxmnist.runs.checkpoint import Checkpoints

CONFIG = Path(__file__).parents[1] / "configs" / "compact_tiny.py"
TRAIN_SIZE, EVAL_SIZE, BATCH = 4000, 1000, 40
STEPS = 100  # an epoch, in segments of 25
TOO_SMALL = 10_000  # bytes for a file of a checkpoint: one of its kernels alone has 18,432
SOON = 0.001  # seconds between two looks at what lasts for milliseconds only

# Where it would be luck to hit from outside: a process that stops itself, as at Ctrl-Z.
HALTS = """
import functools, importlib, os, runpy, signal, sys

module, names, number = sys.argv.pop(1).split(":")
*owners, name = names.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
function, calls = getattr(owner, name), 0

def halt(*args, **options):
    global calls
    calls += 1
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGSTOP)
    return function(*args, **options)

setattr(owner, name, halt)
runpy.run_module("jaxmnist.main", run_name="__main__", alter_sys=True)
"""
# Places where it does, as ``halting`` takes them; of saves the second, so that each start gets on.
COMPILES = "jaxmnist.runs.cohort:Cohort.programs:1"
READS = "orbax.checkpoint._src.serialization.serialization:_read_shard:1"
SAVES = "orbax.checkpoint:StandardCheckpointHandler.save:2"
SEALS = "jaxmnist.runs.checkpoint:_write_record:2"


def segment(number: int) -> str:
    """Where a process begins to train its segment of this number, counted from 1."""
    return f"jaxmnist.training.programs:Programs.train:{number}"


def halting(args: Sequence[str], place: str) -> list[str]:
    """The command as one that halts at ``place``: module:function:number of the call."""
    python, _, _, *flags = args
    return [python, "-c", HALTS, place, *flags]


class Recipe(NamedTuple):
    """A run that takes seconds."""

    epochs: int
    seeds: int = 1
    every: int = 1
    """Epochs between checkpoints."""
    steps: int = STEPS

    def command(self, images: Path, workdir: Path, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "jaxmnist.main", f"--config={CONFIG}", f"--workdir={workdir}"),
            *(f"--config.dataset={images}", "--config.split=train/test"),
            *(f"--config.batch_size={BATCH}", f"--config.steps_per_epoch={self.steps}"),
            *(f"--config.num_epochs={self.epochs}", f"--config.num_seeds={self.seeds}"),
            f"--config.checkpoint.every_epochs={self.every}",
            *more,
        ]


LONG = Recipe(epochs=16)
SHORT = Recipe(epochs=6)
SEEDS = Recipe(epochs=8, seeds=3, every=2, steps=30)  # in segments of 10

PREPARED = "4,000 images to train"
COMPILED = "ready to train"
TRAINS = "train loss"


class Run:
    """A process, and what it has said so far."""

    def __init__(self, args: Sequence[str], environment: dict[str, str]):
        # As users compile them: here few programs, from the cache, run for thousands of steps.
        # For one CPU: on other devices an epoch has fewer segments.
        inherited = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
        self.process = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | environment,
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said += line

    def wait_for(self, happened: Callable[[], Any], pause: float = 0.01) -> None:
        try:
            wait_for(self.process, lambda: bool(happened()), pause)
        except AssertionError as error:
            error.add_note(f"{self.said}{self.end(signal.SIGKILL)}")
            raise

    def has_halted(self) -> bool:
        state = None
        with contextlib.suppress(ChildProcessError):  # it has ended
            flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
            state = os.waitid(os.P_PID, self.process.pid, flags)
        return state is not None

    def wait_until_halted(self) -> None:
        self.wait_for(self.has_halted)

    def go_on(self, *signals: signal.Signals) -> None:
        """Sends ``signals``; a process that has halted hears them as it goes on."""
        for number in (*signals, signal.SIGCONT):
            self.process.send_signal(number)

    def end(self, *signals: signal.Signals) -> tuple[int, str]:
        """The exit code and stderr, after ``signals``."""
        self.go_on(*signals)
        code = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stderr
        return code, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()


def started(args: Sequence[str], **environment: str) -> contextlib.closing[Run]:
    return contextlib.closing(Run(args, environment))


def checkpoint_names(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return os.listdir(folder) if folder.exists() else []


def half_saved(workdir: Path) -> list[str]:
    return [name for name in checkpoint_names(workdir) if ".orbax-checkpoint-tmp" in name]


def unsealed(workdir: Path) -> set[int]:
    """The steps of checkpoints that have their name already and lack their record."""
    steps = {int(name) for name in checkpoint_names(workdir) if name.isdecimal()}
    return {s for s in steps if not (workdir / "checkpoints" / str(s) / "record.json").exists()}


def sealed(workdir: Path) -> int:
    """The step of the newest checkpoint that is complete, 0 where there is none."""
    steps = {int(name) for name in checkpoint_names(workdir) if name.isdecimal()}
    return max(steps - unsealed(workdir), default=0)


def newest_epoch(workdir: Path) -> int:
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        return checkpoints.record(steps[-1]).epoch if steps else 0


def names_in(workdir: Path) -> set[str]:
    """Everything but checkpoints that were moved aside, and what is in checkpoints."""
    checkpoints = {f"checkpoints/{path.name}" for path in (workdir / "checkpoints").iterdir()}
    names = {path.name for path in workdir.iterdir()} | checkpoints
    return {name for name in names if ".damaged." not in name}


def assert_same_end(workdir: Path, reference: Path, seeds: int = 1) -> None:
    text = (workdir / "metrics.jsonl").read_text()
    rows, expected = rows_of(workdir), rows_of(reference)
    assert text.endswith("\n")
    assert text.count("\n") == len(rows) == len(expected)
    assert without_timing(rows) == without_timing(expected)
    for seed in range(seeds):
        leaves, others = (
            jax.tree.leaves(jax.device_get(saved_run.load(place, seed=seed).state))
            for place in (workdir, reference)
        )
        assert len(leaves) > 10
        for leaf, other in zip(leaves, others, strict=True):
            np.testing.assert_array_equal(leaf, other)
    summaries = [json.loads((place / "summary.json").read_text()) for place in (workdir, reference)]
    for name in ("model", "num_seeds", "num_epochs", "final_accuracy", "best_accuracy"):
        assert summaries[0][name] == summaries[1][name]


def assert_one_line(complaint: str, *words: str) -> None:
    assert complaint.startswith("error: ")
    assert complaint.endswith("\n")
    assert complaint.count("\n") == 1
    for word in words:
        assert word in complaint


class Lab:
    """What the faults have in common; each part is made when it is first asked for."""

    def __init__(self, base: Path, images: Path):
        self.base, self.images = base, images
        self._locks = {name: threading.Lock() for name in (LONG, SHORT, SEEDS, "stopped")}
        self._stop: tuple[int, str] | None = None

    def folder(self, name: str) -> Path:
        folder = self.base / re.sub(r"\W+", "_", name)
        folder.mkdir()
        return folder

    def reference(self, recipe: Recipe) -> Path:
        """A finished run that nothing befell."""
        workdir = self.base / f"reference_{recipe.epochs}_{recipe.seeds}"
        with self._locks[recipe]:
            if not workdir.exists():
                with started(recipe.command(self.images, workdir)) as run:
                    assert run.end() == (0, "")
        assert len(rows_of(workdir)) == recipe.epochs * recipe.seeds
        return workdir

    def stopped(self) -> tuple[Path, int, str]:
        """A short run that SIGTERM ended within its fourth epoch; its exit code and stderr."""
        workdir = self.base / "stopped"
        with self._locks["stopped"]:
            if not self._stop:
                with started(halting(SHORT.command(self.images, workdir), segment(14))) as run:
                    run.wait_until_halted()
                    self._stop = run.end(signal.SIGTERM)
        return workdir, *self._stop

    def copy_of_stopped(self, folder: Path) -> Path:
        workdir = folder / "run"
        shutil.copytree(self.stopped()[0], workdir)
        return workdir

    def finish(self, workdir: Path, recipe: Recipe = SHORT) -> str:
        """Starts again, without a fault, and compares the end; what was said."""
        with started(recipe.command(self.images, workdir)) as run:
            assert run.end() == (0, "")
            assert_same_end(workdir, self.reference(recipe), recipe.seeds)
            return run.said


def write_images(folder: Path, mnist: Sequence[data.Dataset]) -> None:
    sizes = (("train", TRAIN_SIZE), ("t10k", EVAL_SIZE))
    for (prefix, size), part in zip(sizes, mnist, strict=True):
        header = np.array([0x803, size, 28, 28], ">u4").tobytes()
        images = header + part.images_NHW[:size].tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = np.array([0x801, size], ">u4").tobytes() + part.labels_N[:size].tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


# Kills


class Moment(NamedTuple):
    """To kill at: some seconds, drawn between two bounds, after it has come."""

    has_come: Callable[[Run], Any]
    least: float = 0
    most: float = 0
    place: str | None = None
    """Where the run halts for it."""


def moments(recipe: Recipe, workdir: Path, epoch: float) -> dict[str, Moment]:
    """Moments of the start that is to follow; ``epoch`` is how long one takes."""
    before, end = sealed(workdir), recipe.epochs * recipe.steps

    def saved(_: Run) -> bool:
        return sealed(workdir) > before

    return {
        "begun": Moment(lambda _: workdir.exists()),
        "importing": Moment(lambda _: True, most=1.5),
        "compiling": Moment(lambda run: PREPARED in run.said, most=1.0),
        "restoring": Moment(lambda run: COMPILED in run.said, most=0.1),
        "first epoch": Moment(lambda run: TRAINS in run.said, 0.2 * epoch, 0.9 * epoch),
        "later epoch": Moment(saved, 0.1 * epoch, 1.2 * epoch),  # or its evaluation
        "after an epoch without a save": Moment(Run.has_halted, place=segment(5)),  # of 3 an epoch
        "start of a save": Moment(Run.has_halted, place=SAVES),
        "save": Moment(lambda run: saved(run) and half_saved(workdir), most=0.05),
        "sealing": Moment(Run.has_halted, place=SEALS),
        "plots": Moment(lambda run: TRAINS in run.said and sealed(workdir) == end, 0.1, 0.5),
    }


def phase_of(run: Run, workdir: Path, recipe: Recipe) -> str:
    """Where a run was when it was killed, by the traces it left."""
    if PREPARED not in run.said:
        return "importing"
    if COMPILED not in run.said:
        return "compiling"
    if half_saved(workdir):
        return "saving"
    if unsealed(workdir):
        return "sealing"
    if sealed(workdir) == recipe.epochs * recipe.steps:
        return "plotting"
    return "training"


def killed(
    lab: Lab, recipe: Recipe, plan: Sequence[str], rng: random.Random, folder: Path
) -> Counter[str]:
    """Kills one run at each moment of ``plan``, lets it finish; how often which phase was hit."""
    workdir, newest, reference = folder / "run", 0, lab.reference(recipe)
    expected = without_timing(rows_of(reference))
    epoch = statistics.median(row["seconds"] for row in rows_of(reference))
    hit: Counter[str] = Counter()
    for name in plan:
        moment = moments(recipe, workdir, epoch)[name]
        args = recipe.command(lab.images, workdir)
        with started(halting(args, moment.place) if moment.place else args) as run:
            run.wait_for(functools.partial(moment.has_come, run), SOON)
            time.sleep(rng.uniform(moment.least, moment.most))
            assert run.end(signal.SIGKILL) == (-signal.SIGKILL, ""), name
        hit[phase_of(run, workdir, recipe)] += 1
        rows = rows_of(workdir)
        assert without_timing(rows) == expected[: len(rows)]
        assert newest_epoch(workdir) >= max(newest, len(rows) // recipe.seeds - recipe.every)
        newest = newest_epoch(workdir)
    lab.finish(workdir, recipe)
    assert names_in(workdir) >= names_in(reference)
    assert not half_saved(workdir)
    assert not unsealed(workdir)
    return hit


def killed_20_times(lab: Lab, folder: Path) -> None:
    rng = random.Random(20)
    later = ["importing", "compiling", "later epoch", "save"] * 3
    later += ["start of a save", "sealing", "restoring"]
    rng.shuffle(later)
    plan = ["begun", "compiling", "first epoch", *later, "plots", "plots"]
    hit = killed(lab, LONG, plan, rng, folder)
    assert {"importing", "compiling", "training", "saving", "sealing", "plotting"} == set(hit)


def killed_twice(lab: Lab, folder: Path) -> None:
    plan = ["after an epoch without a save", "start of a save"]
    hit = killed(lab, SEEDS, plan, random.Random(2), folder)
    assert hit == {"training": 1, "saving": 1}


def killed_with_three_seeds(lab: Lab, folder: Path) -> None:
    unsaved = "after an epoch without a save"
    plan = [unsaved, "start of a save", "later epoch", unsaved]
    hit = killed(lab, SEEDS, plan, random.Random(3), folder)
    assert hit["training"] >= 2
    assert hit["saving"] >= 1


# Signals


def stopped_after(number: signal.Signals, step: int) -> str:
    """What a short run says that was stopped within an epoch."""
    return (
        f"error: interrupted by {number.name} after step {step} (epoch {step // STEPS + 1} of 6), "
        "everything is saved; the same command goes on from there\n"
    )


def stopped_within_an_epoch(lab: Lab, folder: Path) -> None:
    workdir, code, complaint = lab.stopped()
    assert code == 128 + signal.SIGTERM
    assert complaint == stopped_after(signal.SIGTERM, 350)
    assert sealed(workdir) == 350
    said = lab.finish(lab.copy_of_stopped(folder))
    assert "resumed in epoch 4 of 6, after 50 of 100 steps\n" in said


def stopped_again_and_again(lab: Lab, folder: Path) -> None:
    """Ctrl-C and SIGTERM at every stage of one run; it gets on all the same."""
    workdir = folder / "run"
    args = SHORT.command(lab.images, workdir)
    with started(args) as run:
        time.sleep(0.5)
        assert run.end(signal.SIGTERM)[0] != 0
        assert run.said == ""
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(halting(args, COMPILES)) as run:
            run.wait_until_halted()
            code, complaint = run.end(number)
        assert PREPARED in run.said
        assert COMPILED not in run.said
        assert code in (-number, 128 + number)
        assert complaint.count("\n") <= 1
    assert rows_of(workdir) == []

    with started(halting(args, segment(10))) as run:
        run.wait_until_halted()
        code, complaint = run.end(signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert complaint == stopped_after(signal.SIGINT, 250)

    with started(halting(args, segment(8))) as run:
        run.wait_until_halted()
        run.go_on(signal.SIGTERM)
        while run.process.poll() is None and not half_saved(workdir):
            time.sleep(SOON)
        code, complaint = run.end(signal.SIGTERM)
    assert "resumed in epoch 3 of 6, after 50 of 100 steps\n" in run.said
    assert code in (-signal.SIGTERM, 128 + signal.SIGTERM)  # as the second is early or late
    assert complaint in ("", stopped_after(signal.SIGTERM, 450))
    resumed = r"resumed (after epoch 4 of 6|in epoch 5 of 6, after 50 of 100 steps)\n"
    assert re.search(resumed, lab.finish(workdir))


def ctrl_c_while_restoring(lab: Lab, folder: Path) -> tuple[int, str]:
    """Returns the exit code and stderr."""
    workdir = lab.copy_of_stopped(folder)
    before = files_below(workdir)
    with started(halting(SHORT.command(lab.images, workdir), READS)) as run:
        run.wait_until_halted()
        code, complaint = run.end(signal.SIGINT)
    assert COMPILED in run.said
    assert "resumed" not in run.said
    assert files_below(workdir) == before
    return code, complaint


def ctrl_c_while_libraries_load(delays: Sequence[float], lab: Lab, folder: Path) -> None:
    for delay in delays:
        with started(SHORT.command(lab.images, folder / "run")) as run:
            maps = Path(f"/proc/{run.process.pid}/maps")
            run.wait_for(lambda maps=maps: "jaxlib" in maps.read_text())
            time.sleep(delay)
            code, complaint = run.end(signal.SIGINT)
        assert code in (-signal.SIGINT, 128 + signal.SIGINT)
        assert complaint.count("\n") <= 1
        assert "Traceback" not in complaint


# Damaged files


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def largest(checkpoint: Path) -> Path:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def damaged_checkpoint(damage: Callable[[Path], None], name: str, lab: Lab, folder: Path) -> None:
    """``name`` is that of a file, '' for the largest one."""
    workdir = lab.copy_of_stopped(folder)
    step = sealed(workdir)
    checkpoint = workdir / "checkpoints" / str(step)
    file = checkpoint / name if name else largest(checkpoint)
    damage(file)
    damaged = files_below(checkpoint)
    why = "has changed" if file.exists() else "is missing"
    said = lab.finish(workdir)
    why = f"is damaged ({file.relative_to(checkpoint)} {why})"
    assert f"checkpoint {checkpoint} {why}: moved to {step}.damaged.1\n" in said
    assert files_below(workdir / "checkpoints" / f"{step}.damaged.1") == damaged
    assert "resumed after epoch 3 of 6\n" in said


def all_checkpoints_damaged(lab: Lab, folder: Path) -> None:
    workdir = lab.copy_of_stopped(folder)
    checkpoints = sorted((workdir / "checkpoints").iterdir())
    for checkpoint in checkpoints:
        truncate(largest(checkpoint))
    said = lab.finish(workdir)
    assert said.count(" is damaged (") == len(checkpoints) >= 2
    assert "resumed" not in said
    for checkpoint in checkpoints:
        assert checkpoint.with_name(f"{checkpoint.name}.damaged.1").is_dir()


def add_half_a_line(file: Path) -> None:
    with file.open("a") as lines:
        lines.write('{"seed": 0, "epo')


def duplicate_and_add_garbage(file: Path) -> None:
    file.write_bytes(b"\xff\x00garbage\n" + 2 * file.read_bytes() + b"null\n\n{}\n")


def damaged_metrics(damage: Callable[[Path], None], lab: Lab, folder: Path) -> None:
    workdir = lab.copy_of_stopped(folder)
    file = workdir / "metrics.jsonl"
    intact = file.read_text()
    damage(file)
    lacking = not file.exists() or not file.read_text(errors="replace").startswith(intact)
    said = lab.finish(workdir)
    assert ("metrics.jsonl lacked epochs" in said) == lacking
    assert "resumed in epoch 4 of 6, after 50 of 100 steps\n" in said


def configuration_deleted(lab: Lab, folder: Path) -> None:
    workdir = lab.copy_of_stopped(folder)
    (workdir / "config.json").unlink()
    before = files_below(workdir)
    for more in ((), ("--restart",)):
        with started(SHORT.command(lab.images, workdir, *more)) as run:
            code, complaint = run.end()
        assert code == 2
        assert re.fullmatch(r"error: .*run holds other things than a run.*\n", complaint)
        assert files_below(workdir) == before
    assert [path.name for path in folder.iterdir()] == ["run"]


# Disks that refuse


def limit_files(run: Run, size: int) -> None:
    """From now on the process cannot make any file larger than ``size`` bytes."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux limits a process that runs already")
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, size))


def no_room_again_and_again(lab: Lab, folder: Path) -> None:
    """One run that finds no room for its files, kind by kind; it gets on all the same."""
    workdir = folder / "run"
    args = SHORT.command(lab.images, workdir)
    metrics, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    remedy = "see that the disk has room, then start again; the run goes on from"

    with started(args) as run:  # config.json
        limit_files(run, 100)
        code, complaint = run.end()
    assert code == 2
    assert_one_line(complaint, f"--workdir {workdir}: ", "choose a folder that can be written")

    with started(halting(args, segment(5))) as run:  # the second epoch's line
        run.wait_until_halted()
        limit = metrics.stat().st_size + 100
        limit_files(run, limit)
        code, complaint = run.end()
    assert code == 1
    assert_one_line(complaint, f"{metrics}: ", remedy)
    assert metrics.stat().st_size == limit
    assert newest_epoch(workdir) == len(rows_of(workdir)) == 1

    with started(halting(args, segment(6))) as run:  # a checkpoint at the end of an epoch
        run.wait_until_halted()
        limit_files(run, TOO_SMALL)
        code, complaint = run.end()
    assert "resumed after epoch 1 of 6\n" in run.said
    assert code == 1
    assert_one_line(complaint, f"{checkpoints / '300'} could not be written", remedy)
    assert (newest_epoch(workdir), len(rows_of(workdir))) == (2, 3)

    with started(halting(args, segment(10))) as run:  # a checkpoint within an epoch
        run.wait_until_halted()
        limit_files(run, TOO_SMALL)
        code, complaint = run.end(signal.SIGTERM)
    assert "resumed after epoch 2 of 6\n" in run.said
    assert code == 1
    assert_one_line(complaint, f"{checkpoints / '450'} could not be written", remedy)
    assert newest_epoch(workdir) == len(rows_of(workdir)) == 4

    with started(args) as run:  # the plots, the largest of which exceed any checkpoint
        limit_files(run, 70_000)
        code, complaint = run.end()
    assert code == 1
    assert_one_line(complaint, f"{workdir}: ", remedy)
    assert newest_epoch(workdir) == len(rows_of(workdir)) == 6
    assert not (workdir / "summary.json").exists()

    assert "resumed after epoch 6 of 6\n" in lab.finish(workdir)


class Disk:
    """A file system of its own, in memory; only ``path`` leads there."""

    def __init__(self, folder: Path, size: str):
        try:
            self._shell = subprocess.Popen(
                ["unshare", "--map-root-user", "--mount", "sh"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except FileNotFoundError:
            pytest.skip("there is no unshare to mount a file system with")
        self._folder = folder
        self.path = Path(f"/proc/{self._shell.pid}/root{folder}")
        try:
            self._execute(f"mount -t tmpfs -o size={size} none {folder}")
        except BaseException:
            self.close()
            raise

    def _execute(self, command: str) -> None:
        assert self._shell.stdin
        assert self._shell.stdout
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(f"{command}; echo $?\n")
            self._shell.stdin.flush()
        if self._shell.stdout.readline() != "0\n":
            pytest.skip(f"this machine does not allow: {command}")

    def remount(self, options: str) -> None:
        self._execute(f"mount -o remount,{options} {self._folder}")

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()


def full_disk(lab: Lab, folder: Path) -> None:
    """Room for one checkpoint and half of the next."""
    # Of two that were there the first may go, for a better one, before there is a third.
    checkpoint = lab.reference(SHORT) / "checkpoints" / str(SHORT.epochs * STEPS)
    page = os.sysconf("SC_PAGE_SIZE")
    pages = sum(-(-len(content) // page) for content in files_below(checkpoint).values())
    with contextlib.closing(Disk(folder, str(3 * pages * page // 2))) as disk:
        workdir = disk.path / "run"
        with started(SHORT.command(lab.images, workdir)) as run:
            code, complaint = run.end()
        assert code == 1
        assert_one_line(
            complaint,
            f"{workdir / 'checkpoints' / '200'} could not be written",
            "see that the disk has room, then start again",
        )
        assert (newest_epoch(workdir), len(rows_of(workdir))) == (1, 2)
        disk.remount("size=64m")
        assert "resumed after epoch 1 of 6\n" in lab.finish(workdir)


def read_only_disk(lab: Lab, folder: Path) -> None:
    """Neither a run that is there nor a new one can be written."""
    with contextlib.closing(Disk(folder, "64m")) as disk:
        workdir = lab.copy_of_stopped(disk.path)
        disk.remount("ro")
        before = files_below(disk.path)
        with started(SHORT.command(lab.images, workdir)) as run:
            code, complaint = run.end()
        assert code in (1, 2)  # at the latest where something is to be written
        assert_one_line(complaint, str(workdir), "Read-only file system")
        refused(lab, disk.path / "new" / "run", "Read-only file system")
        assert files_below(disk.path) == before


def without_root(args: Sequence[str]) -> list[str]:
    """The command as one that file modes bind, also where root runs it."""
    if os.geteuid():
        return list(args)
    if not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to forgo that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *args]


def read_only_folder(lab: Lab, folder: Path) -> None:
    workdir = lab.copy_of_stopped(folder)
    before = files_below(workdir / "checkpoints")
    for place in (workdir, workdir / "checkpoints"):
        place.chmod(0o555)
    with started(without_root(SHORT.command(lab.images, workdir))) as run:
        code, complaint = run.end()
    for place in (workdir, workdir / "checkpoints"):
        place.chmod(0o755)
    assert code in (1, 2)
    assert_one_line(complaint, str(workdir), "Permission denied")
    assert files_below(workdir / "checkpoints") == before


def no_folder_possible(lab: Lab, folder: Path) -> None:
    (folder / "file").write_text("precious")
    refused(lab, folder / "file" / "run", "Not a directory")
    if sys.platform == "linux":
        refused(lab, Path("/proc/jaxmnist"), "")
    assert files_below(folder) == {"file": b"precious"}


def refused(lab: Lab, workdir: Path, why: str) -> None:
    with started(SHORT.command(lab.images, workdir)) as run:
        code, complaint = run.end()
    assert code == 2
    assert_one_line(complaint, f"--workdir {workdir}: {why}", "choose a folder that can be written")


def half_compiled_programs(lab: Lab, folder: Path) -> tuple[str, str]:
    """A full disk, or a kill, leaves half of what JAX writes to its cache of programs.

    Returns what a run said on stderr whose disk is full, and one that finds such halves.
    """
    workdir = folder / "run"
    args = SHORT.command(lab.images, workdir)
    with started(args, JAX_COMPILATION_CACHE_DIR=str(folder / "cache")) as run:
        limit_files(run, TOO_SMALL)
        code, full = run.end()
    assert code == 1
    programs = list((folder / "cache").iterdir())
    assert programs
    for program in programs:
        truncate(program)
    with started(args, JAX_COMPILATION_CACHE_DIR=str(folder / "cache")) as run:
        code, half = run.end()
    assert code == 0
    assert_same_end(workdir, lab.reference(SHORT))
    return full, half


def full_disk_for_stdout(lab: Lab, folder: Path) -> str:
    """As where stdout goes to a log on a disk that is full; returns what stderr says."""
    workdir = lab.copy_of_stopped(folder)
    newest, args = sealed(workdir), SHORT.command(lab.images, workdir)
    with started(["sh", "-c", 'exec "$@" >/dev/full', "sh", *args]) as run:
        code, complaint = run.end()
    assert code == 1
    assert sealed(workdir) >= newest
    return complaint


def unreadable(place: str, lab: Lab, folder: Path) -> tuple[int, str]:
    """A folder or file below the workdir; returns the exit code and stderr."""
    workdir = lab.copy_of_stopped(folder)
    before = files_below(workdir)
    path = workdir / place.format(newest=sealed(workdir))
    mode = path.stat().st_mode
    path.chmod(0)
    with started(without_root(SHORT.command(lab.images, workdir))) as run:
        code, complaint = run.end()
    path.chmod(mode)
    assert files_below(workdir) == before
    return code, complaint


# Rivals


def two_on_one_workdir(lab: Lab, folder: Path) -> None:
    workdir = folder / "run"
    args = SHORT.command(lab.images, workdir)
    with started(halting(args, COMPILES)) as first:  # or it may end before the others have begun
        first.wait_until_halted()
        with started(args) as second, started([*args, "--restart"]) as third:
            for rival in (second, third):
                code, complaint = rival.end()
                assert code == 2
                assert_one_line(complaint, f"--workdir {workdir} is in use by another process")
                assert rival.said == ""
        assert first.end() == (0, "")
    assert_same_end(workdir, lab.reference(SHORT))
    assert [path.name for path in folder.iterdir()] == ["run"]


Fault = Callable[[Lab, Path], Any]
Outcome = Callable[[str], Any]
FAULTS: dict[str, Fault] = {  # the longest first, so that none runs alone at the end
    "killed 20 times": killed_20_times,
    "killed, three seeds": killed_with_three_seeds,
    "killed twice": killed_twice,
    "stopped again and again": stopped_again_and_again,
    "no room again and again": no_room_again_and_again,
    "half compiled programs": half_compiled_programs,
    "two on one workdir": two_on_one_workdir,
    "read-only disk": read_only_disk,
    "full disk": full_disk,
    "full disk for stdout": full_disk_for_stdout,
    "all checkpoints damaged": all_checkpoints_damaged,
    "largest file truncated": functools.partial(damaged_checkpoint, truncate, ""),
    "record deleted": functools.partial(damaged_checkpoint, Path.unlink, "record.json"),
    **{
        f"bit flipped in {name or 'the largest file'}": functools.partial(
            damaged_checkpoint, flip_a_bit, name
        )
        for name in ("", "record.json", "_METADATA")
    },
    "metrics deleted": functools.partial(damaged_metrics, Path.unlink),
    "metrics with half a line": functools.partial(damaged_metrics, add_half_a_line),
    "metrics twice, with garbage": functools.partial(damaged_metrics, duplicate_and_add_garbage),
    "stopped within an epoch": stopped_within_an_epoch,
    "configuration deleted": configuration_deleted,
    "no folder possible": no_folder_possible,
    "read-only folder": read_only_folder,
    "Ctrl-C while restoring": ctrl_c_while_restoring,
    "Ctrl-C while libraries load": functools.partial(ctrl_c_while_libraries_load, [0.5]),
    "Ctrl-C again and again while libraries load": functools.partial(
        ctrl_c_while_libraries_load, [0, 0.2, 1, 1.5]
    ),
    "unreadable checkpoints": functools.partial(unreadable, "checkpoints"),
    "unreadable file": functools.partial(unreadable, "checkpoints/{newest}/_METADATA"),
}
MORE_OF_A_KIND = {
    "killed 20 times",
    "killed, three seeds",
    "stopped again and again",
    "no room again and again",
    "read-only disk",
    "all checkpoints damaged",
    "largest file truncated",
    "record deleted",
    "bit flipped in record.json",
    "bit flipped in _METADATA",
    "Ctrl-C again and again while libraries load",
    "metrics deleted",
    "metrics twice, with garbage",
    "unreadable checkpoints",
}


def faults(*names: str) -> pytest.MarkDecorator:
    """The named faults; one of each kind is no long test."""
    long = pytest.mark.long
    return pytest.mark.parametrize(
        "fault", [pytest.param(n, marks=long if n in MORE_OF_A_KIND else ()) for n in names]
    )


@pytest.fixture(scope="module")
def outcome(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    mnist: tuple[data.Dataset, data.Dataset],
) -> Iterator[Outcome]:
    """What came of a fault, by name; all that are asked for befall side by side."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    asked = {call.params.get("fault") for call in calls if call}
    images = tmp_path_factory.mktemp("images")
    write_images(images, mnist)
    lab = Lab(tmp_path_factory.mktemp("faults"), images)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[str, Future] = {
            name: pool.submit(fault, lab, lab.folder(name))
            for name, fault in FAULTS.items()
            if name in asked
        }
        yield lambda name: futures[name].result()
        for future in futures.values():
            future.cancel()


@faults(*FAULTS)
def test_survived(fault: str, outcome: Outcome):
    outcome(fault)


@faults("half compiled programs")
@pytest.mark.parametrize("when", ["written", "read"])
def test_half_compiled_programs_are_no_news(fault: str, when: str, outcome: Outcome):
    full, half = outcome(fault)
    if when == "written":
        assert_one_line(full, "checkpoints", "see that the disk has room, then start again")
    else:
        assert half == ""


@faults("full disk for stdout")
def test_full_disk_for_stdout_is_one_line(fault: str, outcome: Outcome):
    assert_one_line(outcome(fault))


@faults("unreadable checkpoints", "unreadable file")
def test_unreadable_checkpoints_are_one_line(fault: str, outcome: Outcome):
    code, complaint = outcome(fault)
    assert code == 2
    name = "checkpoints" if fault == "unreadable checkpoints" else "_METADATA"
    assert_one_line(complaint, f"{name}: Permission denied")


@faults("Ctrl-C while restoring")
def test_ctrl_c_while_restoring_damns_no_checkpoint(fault: str, outcome: Outcome):
    code, complaint = outcome(fault)
    assert code == 128 + signal.SIGINT
    assert_one_line(complaint, "interrupted; the same command goes on from the newest checkpoint")
