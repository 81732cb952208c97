"""An Optuna study that is asked and told, by one process or by many.

A trial belongs to the worker that asked for it, a workdir. Whoever finds a worker dead hands its
trials to the next who asks. Of equal trials, and of more than were ordered, the one with the lower
number counts.
"""

import contextlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from jaxmnist.sweeps import liveness
from jaxmnist.sweeps.sampling import REFUSED, Order, suggest
from jaxmnist.sweeps.space import Value
from jaxmnist.sweeps.storage import database_errors, opened

_POLL = 2.0
_MOST_REPEATS = 200
_PATIENCE = 20  # repeats, before what is left of a space is looked up
_WORKER, _RECORD = "worker", "record"

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Trial(NamedTuple):
    """Settings that are being tried."""

    number: int
    values: dict[str, Value]
    """Of all dimensions of the space."""


class Search:
    """A study and this worker's part in it."""

    def __init__(self, storage: str | Path, name: str, order: Order, worker: str):
        """Opens the study or makes it.

        Args:
          storage: a file of this worker's own; or, for a study that others share, an address as
            Optuna takes it or the path of a journal file, as text.
          name: of the study.
          order: what is wanted.
          worker: who asks; the same after an interruption.

        Raises:
          UserError: where the storage cannot be used.
          StorageError: where there is no room for it.
        """
        self._order, self._worker = order, worker
        self._shared = isinstance(storage, str)
        self._ids: dict[int, int] = {}
        self._in_vain: set[int] = set()  # trials whose values were waited for
        self._storage, self._study, self._told = opened(storage, name)
        with database_errors():
            # Begun anew, and by another worker, the same seed would draw the same again.
            beginning = 1000 * len(self._trials()) + zlib.crc32(worker.encode()) * self._shared
            self._study.sampler = order.make_sampler(beginning)
            self._clear_up()
            self.beat()

    def _trials(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        self._ids |= {trial.number: trial._trial_id for trial in trials}
        return trials

    def _live(self) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.state != TrialState.FAIL]

    def _trial(self, number: int) -> FrozenTrial:
        """One of which this worker knows, without reading all."""
        return self._storage.get_trial(self._ids[number])

    def _clear_up(self) -> None:
        """Gets what this worker asked for the values that it lacks, and orders the grid."""
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and self._is_mine(trial):
                # Unless another worker ends it meanwhile, and hands it on.
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._valued(optuna.trial.Trial(self._study, trial._trial_id))
        if self._order.is_grid:
            self._queue(self._untried())

    def _untried(self) -> list[dict[str, Value]]:
        return self._order.untried(self._trials())

    def _queue(self, points: Sequence[dict[str, Value]]) -> None:
        """Lets them wait to be asked for."""
        for values in points:
            self._study.enqueue_trial(values)

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return not self._shared or trial.user_attrs.get(_WORKER) == self._worker

    def _hand_back(self, trial: FrozenTrial) -> None:
        """Ends a trial without a result; its settings wait for the next who asks."""
        if self._end(trial.number) and (settings := self._order.settings(trial)):
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
        with database_errors():
            return [
                Trial(trial.number, dict(trial.params))
                for trial in self._trials()
                if trial.state == TrialState.RUNNING and self._is_mine(trial)
            ]

    def still_wanted(self, trial: Trial) -> bool:
        """Whether the study knows it, and has not given it to another worker."""
        with database_errors():
            known = next((t for t in self._live() if t.number == trial.number), None)
            return known is not None and known.params == trial.values and self._is_mine(known)

    def ask(self, count: int) -> list[Trial]:
        """Up to ``count`` further trials; fewer where no more are wanted or there are none."""
        asked: list[Trial] = []
        repeats = 0
        with database_errors():
            while len(asked) < count and repeats < _MOST_REPEATS:
                live = self._live()
                waiting = any(trial.state == TrialState.WAITING for trial in live)
                if not waiting and not self._order.lacks(live):
                    break
                handle = self._study.ask()
                handle.set_user_attr(_WORKER, self._worker)
                trial = self._valued(handle)
                repeats = 0 if trial else repeats + 1
                asked += [trial] if trial else []
                if repeats and repeats % _PATIENCE == 0 and self._order.is_small:
                    # tpe would ask for one of the best again and again.
                    if not (points := self._untried()):
                        break
                    lacking = self._order.lacks(self._live())
                    self._queue(points[: min(count - len(asked), lacking)])
        return asked

    def _valued(self, handle: optuna.trial.Trial) -> Trial | None:
        """A trial with the values that it has and, of those that it lacks, new ones.

        None for one that is too much: it ends.
        """
        suggest(handle, self._order.space)
        self._await_those_before(handle.number)
        trials = self._trials()
        trial = trials[handle.number]
        if self._order.is_too_much(trial, trials):
            self._end(trial.number)
            return None
        return Trial(trial.number, dict(trial.params))

    def _await_those_before(self, number: int) -> None:
        """Lets other workers get the values of what they have asked for before ``number``."""
        if not self._shared:
            return
        unfinished = set()
        for _ in range(100):
            unfinished = {
                trial.number
                for trial in self._trials()[:number]
                if trial.state == TrialState.RUNNING and self._order.is_cut_short(trial)
            }
            if unfinished <= self._in_vain:
                return
            time.sleep(0.05)
        self._in_vain |= unfinished  # whoever asked for them died, or is too slow

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """Notes the accuracy (percent) of a trial after ``epoch``."""
        with database_errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial = self._trial(number)
            if not trial.state.is_finished() and epoch not in trial.intermediate_values:
                optuna.trial.Trial(self._study, trial._trial_id).report(accuracy, epoch)

    def finish(self, number: int, record: Mapping[str, Any], *, halved: bool) -> bool:
        """Tells the result of a trial, unless it is told already or another's by now.

        ``halved`` trials were stopped before the last epoch.

        Returns:
          Whether it was told.
        """
        with database_errors():
            trial = self._trial(number)
            if trial.state.is_finished():
                return False
            text = json.dumps(record, allow_nan=False)
            try:
                optuna.trial.Trial(self._study, trial._trial_id).set_user_attr(_RECORD, text)
                if halved:
                    self._told.tell(number, state=TrialState.PRUNED)
                else:
                    self._told.tell(number, record["final_accuracy"]["mean"])
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                return False
            return True

    def refuse(self, number: int, reason: str) -> None:
        """Ends a trial that is not to be trained; another one takes its place."""
        with database_errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial = optuna.trial.Trial(self._study, self._trial(number)._trial_id)
            trial.set_user_attr(REFUSED, reason)
            self._end(number)

    def refused(self) -> list[str]:
        """Why trials were refused, one by one."""
        with database_errors():
            return [
                trial.user_attrs[REFUSED] for trial in self._trials() if REFUSED in trial.user_attrs
            ]

    def records(self) -> list[dict[str, Any]]:
        """What was told of each finished trial, by number."""
        with database_errors():
            return [
                json.loads(trial.user_attrs[_RECORD])
                for trial in self._live()
                if trial.state.is_finished() and _RECORD in trial.user_attrs
            ]

    def beat(self) -> None:
        """Says that this worker lives; to be done every now and then."""
        if self._shared:
            with database_errors():
                self._study.set_user_attr(f"alive:{self._worker}", liveness.sign())

    def others_train(self) -> bool:
        """Whether another worker has a trial that it has not told yet."""
        with database_errors():
            return bool(self._others(self._live()))

    def _others(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those that another worker has not told yet."""
        return [t for t in trials if t.state == TrialState.RUNNING and not self._is_mine(t)]

    def is_used_up(self) -> bool:
        """Whether more trials are wanted than the space has points that can be trained."""
        with database_errors():
            return bool(self._order.lacks(self._live())) and not self._points_are_left()

    def _points_are_left(self) -> bool:
        """Whether there is something to draw; of a large space there always may be."""
        return not self._order.is_small or bool(self._untried())

    def wait_for_others(self) -> bool:
        """Waits until there is something to ask for again, or no other worker has a trial left.

        Trials of workers that died are handed to the next who asks.

        Returns:
          Whether there may be something to ask for.
        """
        watch = liveness.Watch()
        while True:
            with database_errors():
                live = self._live()
                if any(trial.state == TrialState.WAITING for trial in live):
                    return True
                if self._order.lacks(live) and self._points_are_left():
                    return True
                running = self._others(live)
                if not running:
                    # Where a worker died between ending a trial and handing it on, a point lacks.
                    lost = self._untried() if self._order.is_grid else []
                    self._queue(lost)
                    return bool(lost)
                for trial in running:
                    worker = trial.user_attrs.get(_WORKER, "")
                    if watch.is_dead(worker, self._study.user_attrs.get(f"alive:{worker}")):
                        self._hand_back(trial)
            self.beat()
            time.sleep(_POLL)
