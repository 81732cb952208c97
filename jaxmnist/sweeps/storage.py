"""Where a sweep's study is kept: a file of its own, or a database that many processes share."""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.exc
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event

from jaxmnist.errors import StorageError, UserError

_OPENINGS = 8
# What a database says whose tables others are making at this moment.
_BEING_MADE = ("already exists", "UNIQUE constraint", "no such table", "is locked", "version")


def without_password(text: str) -> str:
    """``text``, in which addresses of databases have PASSWORD for theirs."""
    text = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:PASSWORD@", text)
    return re.sub(r"([?&](?:password|passwd|pwd)=)[^&\s'\"]*", r"\1PASSWORD", text)


def opened(
    storage: str | Path, name: str
) -> tuple[optuna.storages.BaseStorage, optuna.Study, optuna.Study]:
    """The storage, the study to ask and the study to tell; made where there is none.

    Args:
      storage: a file of this process alone; or, of a study that others share, an address as Optuna
        takes it or the path of a journal file, as text.
      name: of the study.

    Raises:
      UserError: where the storage cannot be used.
      StorageError: where there is no room for it.
    """
    shown = without_password(str(storage))
    for attempt in range(1, _OPENINGS + 1):
        try:
            there = _open(storage)
            options: dict[str, Any] = {"storage": there, "study_name": name}
            study = optuna.create_study(**options, direction="maximize", load_if_exists=True)
            # Samplers of Optuna's own loop would stop it when they are told the last trial.
            told = optuna.load_study(**options, sampler=optuna.samplers.RandomSampler())
            return there, study, told
        except Exception as error:  # whatever the database's driver raises
            cause = getattr(error, "orig", None) or error
            reason = without_password(" ".join(str(cause).split()))[:200]
            if isinstance(cause, OSError):  # whose words may be those of a path
                being_made, no_room = False, cause.errno == errno.ENOSPC
            else:
                being_made = any(words in reason for words in _BEING_MADE)
                no_room = "full" in reason
            if being_made and attempt < _OPENINGS:
                time.sleep(0.3 * attempt)
                continue
            if no_room:
                raise StorageError(f"{shown}: {reason}: see that the disk has room") from error
            if isinstance(storage, Path):
                raise UserError(
                    f"{shown}: {reason}: choose another --workdir, or move it away to start over"
                ) from error
            raise UserError(
                f"--storage {shown}: {reason}: name one as Optuna takes it, for example "
                "sqlite:///sweep.db"
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _open(storage: str | Path) -> optuna.storages.BaseStorage:
    if isinstance(storage, Path):
        # Optuna fills in its version between braces, SQLAlchemy options after a question mark.
        if set("{}?%") & set(str(storage)):
            raise ValueError("a database cannot lie in a folder with ?, %, { or } in its name")
        storage = f"sqlite:///{storage}"
    elif "://" not in storage:
        return optuna.storages.JournalStorage(JournalFileBackend(os.path.expanduser(storage)))
    if not storage.startswith("sqlite"):
        return optuna.storages.get_storage(storage)
    patient = {"connect_args": {"timeout": 60}}  # others may be writing
    there = optuna.storages.RDBStorage(storage, engine_kwargs=patient)
    _take_turns(there.engine)
    return there


def _take_turns(engine: sqlalchemy.Engine) -> None:
    """Makes SQLite's transactions begin with the lock for writing.

    SQLite has no SELECT … FOR UPDATE: two workers would find the same trial waiting, and both have
    it.
    """

    @event.listens_for(engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # otherwise Python begins by itself, and later

    @event.listens_for(engine, "begin")
    def _(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections that have not heard of it


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turns what the study's storage refuses into a ``StorageError``."""
    try:
        yield
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        json.JSONDecodeError,
        OSError,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
        raise StorageError(
            f"the sweep's storage failed ({reason}): see that the disk has room, then start again; "
            "the sweep goes on from there"
        ) from error
