"""Checkpoints of a run: the states, written by Orbax, and a record that seals them.

A checkpoint is a folder named after the optimizer step. Orbax makes it appear whole or not at all;
``record.json`` in it is written last and holds a digest of every other file. A folder whose digests
do not agree is damaged: it is never read, and moved aside, not deleted.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmnist.errors import OneLineError, StorageError, UserError
from jaxmnist.runs import signals
from jaxmnist.runs.workdir import Row, free_name
from jaxmnist.training import hosts
from jaxmnist.training.engine import TrainState

_RECORD = "record.json"
_UNWANTED = ".removing"
_MOMENT = 0.5  # seconds; a record is written within a tenth of it


class PartialEpoch(NamedTuple):
    """The sums over an epoch that is not finished, per seed."""

    steps: int
    images: int
    seconds: float
    loss_S: list[float | None]
    """None where it is not finite any more."""
    correct_S: list[float]


class Record(NamedTuple):
    """What a checkpoint holds beside the states."""

    epoch: int
    """Epochs that are finished."""
    rows: list[Row]
    """Their metrics."""
    partial: PartialEpoch | None
    """The epoch after these, if some of its steps are done."""
    config: dict[str, Any]

    @property
    def eval_accuracy(self) -> float | None:
        """Percent, on average over the seeds; None within an epoch and for imported weights."""
        accuracies = [row["eval_accuracy"] for row in self.rows if row["epoch"] == self.epoch]
        return None if self.partial or not accuracies else float(np.mean(accuracies))


class Checkpoints:
    """The newest ``keep`` checkpoints of a run and the best one, in ``folder``.

    The best one is that with the highest evaluation accuracy, on average over the seeds; the
    latest of several.
    """

    def __init__(self, folder: Path, keep: int = 1, *, read_only: bool = False):
        """Finds the checkpoints there are and moves damaged ones aside, unless ``read_only``.

        Raises:
          UserError: where ``folder`` is no folder, or cannot be used.
        """
        self._folder, self._keep = folder.absolute(), keep
        self.damaged: list[str]
        """A line about each checkpoint that cannot be used."""
        tidied = None if read_only else hosts.on_first(lambda: _tidy(self._folder))
        if tidied:
            self._records, self.damaged = tidied
        else:
            self._records, damaged = _read_records(self._folder)
            if damaged:  # or written or removed at this moment, by a run that goes on
                time.sleep(_MOMENT)
                self._records, damaged = _read_records(self._folder)
            self.damaged = [f"checkpoint {n} is damaged ({why})" for n, why in damaged.items()]
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """The steps there are intact checkpoints of, in order."""
        return sorted(self._records)

    def record(self, step: int) -> Record:
        """What the checkpoint after ``step`` steps holds beside the states."""
        return self._records[step]

    def best(self) -> int | None:
        """The step of the best checkpoint; None where there is none with an accuracy."""
        scored = [
            (record.eval_accuracy, step)
            for step, record in self._records.items()
            if record.eval_accuracy is not None
        ]
        return max(scored)[1] if scored else None

    def save(self, step: int, states: TrainState, record: Record) -> None:
        """Writes the states after ``step`` steps; what is on disk is complete or not seen.

        Raises:
          StorageError: where it cannot be written; earlier checkpoints are still there.
        """
        if step in self._records:
            return
        path = self._folder / str(step)
        try:
            # From host memory: of arrays on devices, Orbax cuts out each device's part, one by one.
            self._orbax.save(path, args=ocp.args.StandardSave(hosts.fetch(states)))
            if hosts.is_first():
                _write_record(path, record)
            self._records[step] = record
            self._drop_all_but_newest_and_best()
        except jax.errors.JaxRuntimeError:
            raise  # of the training, which is waited for here
        except Exception as error:  # Orbax fails with whatever lies below
            reason = " ".join(str(error).split())[:200]
            raise StorageError(
                f"{path} could not be written ({reason}): see that the disk has room, then start "
                "again; the run goes on from the checkpoint before"
            ) from error

    def _drop_all_but_newest_and_best(self) -> None:
        for step in set(self._records) - {*self.steps()[-self._keep :], self.best()}:
            del self._records[step]
            if hosts.is_first():
                # Renamed first: half a folder would look like a damaged checkpoint.
                unwanted = self._folder / f"{step}{_UNWANTED}"
                (self._folder / str(step)).rename(unwanted)
                # What stays, like a file on NFS that somebody reads, goes at a later start.
                shutil.rmtree(unwanted, ignore_errors=True)

    def restore(self, step: int, abstract_states: TrainState) -> TrainState:
        """The states after ``step`` steps, shaped and placed as ``abstract_states``.

        Those that name no sharding come to the first device, whatever devices wrote them.

        Raises:
          UserError: where they are not what ``abstract_states`` describes.
        """
        path, args = self._folder / str(step), ocp.args.StandardRestore(_placed(abstract_states))
        with _readable(path):
            return self._orbax.restore(path, args=args)

    def restore_networks(self, step: int, abstract_states: TrainState) -> TrainState:
        """As ``restore``, but without reading the state of the optimizer, which becomes None."""
        path, networks = self._folder / str(step), _placed(abstract_states.replace(opt_state=None))
        fields = {name: getattr(networks, name) for name in ("step", "params", "batch_stats")}
        restore_args = ocp.checkpoint_utils.construct_restore_args(fields)
        args = ocp.args.PyTreeRestore(fields, restore_args, partial_restore=True)
        with (
            contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as orbax,
            _readable(path),
        ):
            there: Any = orbax.metadata(path).item_metadata
            for name, expected in fields.items():
                if _shapes(there[name]) != _shapes(expected):
                    raise ValueError(f"other shapes in {name}")
            return networks.replace(**orbax.restore(path, args=args))

    def close(self) -> None:
        self._orbax.close()


class _DamagedError(OneLineError):
    """A checkpoint is not what was written."""


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what Orbax says of a checkpoint that does not fit into a ``UserError``."""
    try:
        # Of a KeyboardInterrupt Orbax makes other exceptions, or waits for ever.
        with signals.held_back():
            yield
    except jax.errors.JaxRuntimeError:
        raise  # a device without memory, not the checkpoint
    except Exception as error:  # Orbax fails with whatever lies below
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it may come from another version of "
            "jaxmnist; move it away to go on from the one before, or --restart to start over"
        ) from error


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _placed(abstract_states: TrainState) -> TrainState:
    """Those that name no sharding are meant for the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or first),
        abstract_states,
    )


def _is_number(name: str) -> bool:
    """Whether it is one as we write them: without leading zeros, in ASCII."""
    return name.isdecimal() and name == str(int(name))


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: --restart to move the run aside") from error


def _read_records(folder: Path) -> tuple[dict[int, Record], dict[int, str]]:
    """By step: the records of intact checkpoints, and what is wrong with the others."""
    records, damaged = {}, {}
    for path in _inside(folder):
        if _is_number(path.name):
            try:
                records[int(path.name)] = _read_record(path)
            except _DamagedError as error:
                damaged[int(path.name)] = str(error)
    return records, damaged


def _tidy(folder: Path) -> tuple[dict[int, Record], list[str]]:
    """Removes what saves and removals left that were cut short, moves damaged checkpoints aside.

    Returns:
      The records of intact checkpoints by step, and a line about each damaged one.
    """
    messages = []
    records, damaged = _read_records(folder)
    try:
        for path in _inside(folder):
            if path.name.endswith(_UNWANTED):
                shutil.rmtree(path, ignore_errors=True)
            elif ".orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif _is_number(path.name) and (why := damaged.get(int(path.name))):
                aside = free_name(path.with_name(f"{path.name}.damaged"))
                path.rename(aside)
                messages.append(f"checkpoint {path} is damaged ({why}): moved to {aside.name}")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}: make it writable") from error
    return records, messages


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in ``folder`` but the record."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _RECORD:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _write_record(folder: Path, record: Record) -> None:
    body = json.dumps({"record": record._asdict(), "files": _digests(folder)}, allow_nan=False)
    partial = folder.with_name(folder.name + ".record.orbax-checkpoint-tmp")
    partial.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n")
    os.replace(partial, folder / _RECORD)


def _read_record(folder: Path) -> Record:
    """The record of a checkpoint, every file of which has been checked.

    Raises:
      _DamagedError: where something in it is not what was written.
      UserError: where this user may not read it.
    """
    try:
        digest, _, body = (folder / _RECORD).read_text().partition("\n")
        body = body.removesuffix("\n")
        if hashlib.sha256(body.encode()).hexdigest() != digest:
            raise _DamagedError(f"{_RECORD} has changed")
        content = json.loads(body)
        found, expected = _digests(folder), content["files"]
        if changed := sorted(found.items() ^ expected.items()):
            name = changed[0][0]
            what = "has changed" if name in found and name in expected else "is missing"
            raise _DamagedError(f"{name} {what if name in expected else 'does not belong there'}")
        record = Record(**content["record"])
        record = record._replace(partial=record.partial and PartialEpoch(*record.partial))
        if not isinstance(record.epoch, int):
            raise _DamagedError(f"its epoch is {record.epoch!r}")
        _ = record.eval_accuracy  # which looks at the rows
        return record
    except FileNotFoundError as error:
        raise _DamagedError(f"{_RECORD} is missing") from error
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}: make it readable") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
