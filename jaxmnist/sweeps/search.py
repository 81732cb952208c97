"""What to try next: an Optuna study that is asked and told, by one process or by many.

A trial belongs to the worker that asked for it, a workdir. Whoever finds a worker dead hands its
trials to the next who asks. Of equal trials, and of more than were ordered, the one with the lower
number counts.
"""

import contextlib
import itertools
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import sqlalchemy.exc
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jaxmnist.errors import StorageError, UserError
from jaxmnist.sweeps.space import Choices, Dimension, Space, Value

SAMPLERS = ("grid", "random", "qmc", "tpe")
PATIENCE = 300  # seconds: a worker that is silent for so long, on another host, is given up
_POLL = 2.0
_MOST_REPEATS = 200
_WORKER, _RECORD = "worker", "record"

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Trial(NamedTuple):
    """Settings that are being tried."""

    number: int
    values: dict[str, Value]
    """Of all dimensions of the space."""


class Order(NamedTuple):
    """What is wanted of a search."""

    space: Space
    sampler: str
    trials: int
    seed: int
    """Of the sampler."""


class Search:
    """A study and this worker's part in it."""

    def __init__(self, storage: str, name: str, order: Order, worker: str, *, shared: bool):
        """Opens the study or makes it.

        Args:
          storage: an address as Optuna takes it, or the path of a journal file.
          name: of the study.
          order: what is wanted.
          worker: who asks; the same after an interruption.
          shared: whether others may ask, too; otherwise all trials are this worker's.

        Raises:
          UserError: where the storage cannot be used.
        """
        self._order, self._worker, self._shared = order, worker, shared
        self._distributions = {
            name: _distribution(dimension) for name, dimension in order.space.dimensions.items()
        }
        try:
            self._storage = _open(storage)
            options: dict[str, Any] = {"storage": self._storage, "study_name": name}
            self._study = optuna.create_study(**options, direction="maximize", load_if_exists=True)
            self._study.sampler = self._sampler(self._trials())
            # Samplers of Optuna's own loop would stop it when they are told the last trial.
            self._told = optuna.load_study(**options, sampler=optuna.samplers.RandomSampler())
        except Exception as error:  # whatever the database's driver raises
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
            raise UserError(
                f"--storage {storage}: {reason}: name one as Optuna takes it, for example "
                "sqlite:///sweep.db"
            ) from error
        with _storage_errors():
            self._clear_up()
            self.beat()

    def _sampler(self, before: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
        seed = self._order.seed
        if self._order.sampler == "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.QMCSampler(scramble=True, seed=seed)
        # Begun anew, the same seed would draw the same again.
        later = (seed + 1000 * len(before)) % 2**31
        if self._order.sampler == "tpe":
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=later)
        return optuna.samplers.RandomSampler(seed=later)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _live(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state != TrialState.FAIL]

    def _settings(self, trial: FrozenTrial) -> dict[str, Value] | None:
        """Its values; None for one that was cut short before it had them all."""
        values = trial.params if trial.params.keys() == self._distributions.keys() else None
        return values or trial.system_attrs.get("fixed_params")

    def _clear_up(self) -> None:
        """Gives back what this worker asked for and did not get, and orders the grid."""
        for trial in self._trials():
            cut_short = trial.params.keys() != self._distributions.keys()
            if trial.state == TrialState.RUNNING and self._is_mine(trial) and cut_short:
                self._hand_back(trial)
        if self._order.sampler == "grid":
            self._order_grid()

    def _order_grid(self) -> None:
        there = [self._settings(trial) for trial in self._live()]
        dimensions = self._order.space.dimensions
        choices = [d.values for d in dimensions.values() if isinstance(d, Choices)]
        for values in itertools.product(*choices):
            point = dict(zip(dimensions, values, strict=True))
            if point not in there:
                self._study.enqueue_trial(point)

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return not self._shared or trial.user_attrs.get(_WORKER) == self._worker

    def _hand_back(self, trial: FrozenTrial) -> None:
        """Ends a trial without a result; its settings wait for the next who asks."""
        if self._end(trial.number) and (settings := self._settings(trial)):
            self._study.enqueue_trial(settings, user_attrs={"again": trial.number})

    def _end(self, number: int) -> bool:
        """Ends a trial without a result; False where another worker was faster."""
        try:
            self._told.tell(number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def mine(self) -> list[Trial]:
        """What this worker has asked for and not told yet."""
        with _storage_errors():
            return [
                Trial(trial.number, dict(trial.params))
                for trial in self._trials()
                if trial.state == TrialState.RUNNING and self._is_mine(trial)
            ]

    def ask(self, count: int) -> list[Trial]:
        """Up to ``count`` further trials; fewer where no more are wanted or there are none."""
        asked: list[Trial] = []
        repeats = 0
        with _storage_errors():
            while len(asked) < count and repeats < _MOST_REPEATS:
                live = self._live()
                waiting = any(trial.state == TrialState.WAITING for trial in live)
                if not waiting and len(live) >= self._order.trials:
                    break
                trial = self._study.ask(self._distributions)
                trial.set_user_attr(_WORKER, self._worker)
                before = [t for t in self._live() if t.number < trial.number]
                if any(self._settings(t) == trial.params for t in before):
                    repeats += 1
                    self._end(trial.number)
                elif sum(t.state != TrialState.WAITING for t in before) >= self._order.trials:
                    self._end(trial.number)
                else:
                    repeats = 0
                    asked.append(Trial(trial.number, dict(trial.params)))
        return asked

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """Notes the accuracy (percent) of a trial after ``epoch``."""
        with _storage_errors():
            trial = self._trials()[number]
            if not trial.state.is_finished() and epoch not in trial.intermediate_values:
                optuna.trial.Trial(self._study, trial._trial_id).report(accuracy, epoch)

    def finish(self, number: int, record: Mapping[str, Any], *, halved: bool) -> bool:
        """Tells the result of a trial, unless it is told already or another's by now.

        ``halved`` trials were stopped before the last epoch.

        Returns:
          Whether it was told.
        """
        with _storage_errors():
            trial = self._trials()[number]
            if trial.state.is_finished():
                return False
            try:
                handle = optuna.trial.Trial(self._study, trial._trial_id)
                handle.set_user_attr(_RECORD, json.dumps(record, allow_nan=False))
                if halved:
                    self._told.tell(number, state=TrialState.PRUNED)
                else:
                    self._told.tell(number, record["final_accuracy"]["mean"])
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
            return True

    def refuse(self, number: int, reason: str) -> None:
        """Ends a trial that is not to be trained; another one takes its place."""
        with _storage_errors():
            trial = optuna.trial.Trial(self._study, self._trials()[number]._trial_id)
            trial.set_user_attr("refused", reason)
            self._end(number)

    def records(self) -> list[dict[str, Any]]:
        """What was told of each finished trial, by number."""
        with _storage_errors():
            return [
                json.loads(trial.user_attrs[_RECORD])
                for trial in self._live()
                if trial.state.is_finished() and _RECORD in trial.user_attrs
            ]

    def beat(self) -> None:
        """Says that this worker lives."""
        if self._shared:
            sign = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
            with _storage_errors():
                self._study.set_user_attr(f"alive:{self._worker}", sign)

    def wait_for_others(self) -> bool:
        """Waits until there is something to ask for again, or no other worker has a trial left.

        Trials of workers that died are handed to the next who asks.

        Returns:
          Whether there may be something to ask for.
        """
        seen: dict[str, tuple[Any, float]] = {}
        while True:
            with _storage_errors():
                live = self._live()
                running = [
                    t for t in live if t.state == TrialState.RUNNING and not self._is_mine(t)
                ]
                if any(t.state == TrialState.WAITING for t in live):
                    return True
                if self._order.sampler != "grid" and len(live) < self._order.trials:
                    return True
                if not running:
                    return False
                for trial in running:
                    worker = trial.user_attrs.get(_WORKER, "")
                    sign = self._study.user_attrs.get(f"alive:{worker}")
                    if worker not in seen or seen[worker][0] != sign:
                        seen[worker] = sign, time.monotonic()
                    silent = time.monotonic() - seen[worker][1]
                    if _is_dead_here(sign) or silent > PATIENCE:
                        self._hand_back(trial)
            self.beat()
            time.sleep(_POLL)


def _is_dead_here(sign: Any) -> bool:
    """Whether a worker ran on this host and its process is gone."""
    if not isinstance(sign, Mapping) or sign.get("host") != socket.gethostname():
        return False
    try:
        os.kill(sign["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _open(storage: str) -> optuna.storages.BaseStorage:
    if "://" not in storage:
        return optuna.storages.JournalStorage(JournalFileBackend(storage))
    if storage.startswith("sqlite"):
        patient = {"connect_args": {"timeout": 60}}  # others may be writing
        return optuna.storages.RDBStorage(storage, engine_kwargs=patient)
    return optuna.storages.get_storage(storage)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choices):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Turns what the study's storage refuses into a ``StorageError``."""
    try:
        yield
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
        raise StorageError(
            f"the sweep's storage failed ({reason}): see that the disk has room, then start again; "
            "the sweep goes on from there"
        ) from error
