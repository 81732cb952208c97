"""The files of a sweep: what it is, the round in work, and what it leaves behind."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from jaxmnist.errors import UserError
from jaxmnist.runs.workdir import lock, storage_errors, strangers, write_atomically

_SWEEP, _ROUND, _POPULATIONS = "sweep.json", "round.json", "populations"
_TRIALS = "trials.jsonl"


class SweepDir:
    """A sweep's folder. A folder that holds the same sweep is taken up, another one is refused.

    It is locked until ``close``, or until the process ends, however it ends.
    """

    worker: str
    """Who asks the study; the same after an interruption."""

    def __init__(self, path: Path, description: Mapping[str, Any]):
        """Creates the folder or checks the one that is there.

        Args:
          path: the folder.
          description: all that makes it this sweep and no other: names and values.

        Raises:
          UserError: where the folder cannot be used, is in use, or holds another sweep.
        """
        self.path = path = Path(os.path.abspath(path))
        self.populations = path / _POPULATIONS
        self._lock: filelock.BaseFileLock | None = None
        file = path / _SWEEP
        try:
            if path.exists() and not file.exists() and strangers(path, _SWEEP):
                raise UserError(f"--workdir {path} holds other things than a sweep: choose another")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
            there = self._read(file) if file.exists() else None
            self._refuse_another(there, description)
            self.worker = there["worker"] if there else uuid.uuid4().hex
            content = {"worker": self.worker, "sweep": dict(description)}
            write_atomically(file, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            self.close()
            raise UserError(
                f"--workdir {path}: {error.strerror or error}: choose a folder that can be written"
            ) from error
        except UserError:
            self.close()
            raise

    def close(self) -> None:
        """Lets other processes use the folder."""
        if self._lock:
            self._lock.release()

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            content = json.loads(file.read_text())
            if not isinstance(content["worker"], str) or not isinstance(content["sweep"], dict):
                raise ValueError(content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{file} is not a sweep's description: choose another --workdir"
            ) from error
        return content

    def _refuse_another(
        self, there: Mapping[str, Any] | None, description: Mapping[str, Any]
    ) -> None:
        if there is None:
            return
        before, now = there["sweep"], json.loads(json.dumps(dict(description)))
        reasons = [
            f"{name} is {_shown(before.get(name))} there and {_shown(now.get(name))} here"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if len(reasons) > 3:
            reasons = [*reasons[:3], f"and {len(reasons) - 3} more"]
        if reasons:
            raise UserError(
                f"{self.path} holds another sweep ({'; '.join(reasons)}): choose another --workdir"
            )

    def read_round(self) -> dict[str, Any] | None:
        """The round in work; None where there is none that can be read."""
        try:
            found = json.loads((self.path / _ROUND).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and {"trials", "parallel"} <= set(found) else None

    def begin_round(self, content: Mapping[str, Any]) -> None:
        """Notes the round in work; what an earlier one left is removed."""
        with storage_errors(self.path):
            shutil.rmtree(self.populations, ignore_errors=True)
            self.populations.mkdir()
            write_atomically(self.path / _ROUND, json.dumps(dict(content)) + "\n")

    def end_round(self) -> None:
        """Removes what only the round in work needed."""
        with storage_errors(self.path):
            (self.path / _ROUND).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.populations)

    def has_results(self) -> bool:
        """Whether a trial has been finished."""
        file = self.path / _TRIALS
        return file.exists() and file.stat().st_size > 0

    def write_results(self, records: Sequence[Mapping[str, Any]], best: str | None) -> None:
        """Leaves trials.jsonl and, where a trial has gone through all epochs, best.py."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with storage_errors(self.path):
            write_atomically(self.path / _TRIALS, lines)
            if best is not None:
                write_atomically(self.path / "best.py", best)


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)
