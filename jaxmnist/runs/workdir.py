"""The files of a run: config.json, metrics.jsonl, summary.json and where the rest goes."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from jaxmnist.config import HOW, Config, flatten, from_json, validate
from jaxmnist.errors import StorageError, UserError
from jaxmnist.training import hosts, optim

Row = dict[str, Any]

CHECKPOINTS = "checkpoints"
_CONFIG = "config.json"
_LOCK = ".lock"


class Workdir:
    """A run's folder. A folder that holds the same run is taken up, another one is refused.

    It is locked until ``close``, or until the process ends, however it ends. Where several
    processes make up the run, only the first of them writes.
    """

    def __init__(self, path: Path, config: Config, *, restart: bool = False):
        """Creates the folder or checks the one that is there.

        Args:
          path: the folder.
          config: the run's configuration.
          restart: move a folder that exists out of the way, to a name with a number appended.

        Raises:
          UserError: where the folder cannot be used, is in use, or holds a run with other settings.
        """
        path = Path(os.path.abspath(path))  # "." must stay what it is when it is moved aside
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.moved_to: Path | None = None
        self.grown_from: int | None = None
        """The number of epochs of a run that goes on for more than it was meant to."""
        self._lock: filelock.BaseFileLock | None = None
        try:
            hosts.on_first(lambda: self._prepare(path, config, restart))
        except UserError:
            self.close()
            raise
        if hosts.largest(not self.config_file.exists()):
            raise UserError(f"--workdir {path} is not the same folder for all processes of the run")

    def _prepare(self, path: Path, config: Config, restart: bool) -> None:
        try:
            if path.exists() and not self.config_file.exists() and strangers(path, _CONFIG):
                raise UserError(f"--workdir {path} holds other things than a run: choose another")
            folder = path.resolve() if path.is_symlink() else path
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
            if restart and self.config_file.exists():
                self.moved_to = free_name(folder)
                folder.rename(self.moved_to)
                self._lock.release()
                folder.mkdir()
                self._lock = lock(path)
            if self.config_file.exists():
                self._refuse_other_run(config)
            write_atomically(self.config_file, config.to_json(indent=1))
        except OSError as error:
            raise UserError(
                f"--workdir {path}: {error.strerror or error}: choose a folder that can be written"
            ) from error

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock:
            self._lock.release()

    @property
    def config_file(self) -> Path:
        return self.path / _CONFIG

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _summary_file(self) -> Path:
        return self.path / "summary.json"

    def _refuse_other_run(self, config: Config) -> None:
        remedy = "choose another --workdir, or --restart to move the old run aside"
        there = flatten(_read_config(self.config_file, remedy))
        here = flatten(config)
        differing = {
            name: f"config.{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in sorted(
                there.keys() | here.keys(), key=lambda name: (name not in there, name)
            )
            if there.get(name) != here.get(name) and not name.startswith(HOW)
        }
        if "num_epochs" in differing:
            if optim.spans_all_epochs(config.schedule.name):
                differing["num_epochs"] += f", and the {config.schedule.name} schedule spans them"
            elif type(old := there.get("num_epochs")) is int and old < here["num_epochs"]:
                self.grown_from = old
                del differing["num_epochs"]
        reasons = list(differing.values())
        if len(reasons) > 3:
            reasons = [*reasons[:3], f"and {len(reasons) - 3} more"]
        if reasons:
            raise UserError(f"{self.path} holds another run ({'; '.join(reasons)}): {remedy}")

    def write_metrics(self, rows: Sequence[Row]) -> bool:
        """Makes the file hold ``rows`` alone: later ones, or half a line, are removed.

        Returns:
          Whether it lacked some of them.
        """
        if not hosts.is_first():
            return False
        text = "".join(map(_line, rows))
        with storage_errors(self._metrics_file):
            file = self._metrics_file
            before = file.read_text(errors="replace") if file.exists() else ""
            write_atomically(file, text)
        return not before.startswith(text)

    def append_metrics(self, rows: Sequence[Row]) -> None:
        """Adds one line a row."""
        if not hosts.is_first():
            return
        with storage_errors(self._metrics_file), self._metrics_file.open("a") as file:
            file.write("".join(map(_line, rows)))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Leaves summary.json, the last file of a run."""
        if not hosts.is_first():
            return
        with storage_errors(self._summary_file):
            write_atomically(self._summary_file, json.dumps(summary, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of a run that has finished; None where there is none that can be read."""
        try:
            summary = json.loads(self._summary_file.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return summary if isinstance(summary, dict) else None


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what a disk refuses during a run into a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or path}: {error.strerror or error}: see that the disk has room, "
            "then start again; the run goes on from its newest checkpoint"
        ) from error


def strangers(path: Path, first: str) -> list[Path]:
    """What is in the folder besides the traces of one that had just begun to write ``first``."""
    return [inside for inside in path.iterdir() if inside.name not in (_LOCK, _partial(first))]


def lock(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / _LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"--workdir {path} is in use by another process: wait for it or choose another"
        ) from error
    return lock


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def read_config(path: Path) -> Config:
    """The configuration of the run in the folder ``path``, checked.

    Raises:
      UserError: where there is no run, or its configuration is damaged.
    """
    if not os.path.isfile(path / _CONFIG):  # pathlib raises where a name is too long
        raise UserError(f"{path} holds no run: name a folder that has a {_CONFIG}")
    config = _read_config(path / _CONFIG, "correct it or name another run")
    validate(config)
    return config


def _read_config(file: Path, remedy: str) -> Config:
    try:
        return from_json(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a run's configuration: {remedy}") from error


def free_name(path: Path) -> Path:
    """``path`` with the first number appended that makes a name nothing has yet."""
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def _partial(name: str) -> str:
    return name + ".partial"


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(_partial(path.name))
    partial.write_text(text, encoding="utf-8", errors="replace")
    os.replace(partial, path)
