"""Trains a population from where it stands up to an epoch: what runs and sweeps have in common."""

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from jaxmnist.errors import DivergenceError, Stopped
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch, Record
from jaxmnist.runs.cohort import Cohort
from jaxmnist.runs.signals import StopRequest
from jaxmnist.runs.workdir import Row
from jaxmnist.training import hosts
from jaxmnist.training.engine import TrainState
from jaxmnist.training.programs import Programs


class Progress(Protocol):
    """Hears of every segment that is done."""

    def update(self, epoch: int, step: int, images: int, loss: float, accuracy: float) -> None:
        """``images`` more; loss and accuracy (percent) are those of the epoch so far."""


class Stage(NamedTuple):
    """How far a population has come."""

    states: TrainState
    record: Record


def newest(
    cohort: Cohort,
    programs: Programs,
    checkpoints: Checkpoints,
    start: Callable[[], Stage] | None = None,
) -> Stage:
    """What to go on from: the newest checkpoint, or where there is none, ``start``.

    The default is the beginning of the training.
    """
    steps = checkpoints.steps()
    if steps:
        record = checkpoints.record(steps[-1])
        return Stage(checkpoints.restore(steps[-1], programs.abstract_states), record)
    return start() if start else Stage(programs.init(), Record(0, [], None, cohort.description))


def fit(
    cohort: Cohort,
    programs: Programs,
    checkpoints: Checkpoints,
    stage: Stage,
    progress: Progress,
    on_epoch: Callable[[Sequence[Row]], None],
    *,
    until: int | None = None,
    tolerant: bool = False,
    last: bool = True,
) -> Stage:
    """Trains on from ``stage``, with a checkpoint every ``checkpoint.every_epochs`` epochs.

    Args:
      cohort: who the members are.
      programs: those of the cohort.
      checkpoints: where the way is kept.
      stage: where it stands; its states are used up.
      progress: hears of every segment.
      on_epoch: gets the rows of each epoch, one a member, before they are saved.
      until: the last epoch; default: the last of the schedule.
      tolerant: whether a member whose loss is no longer finite trains on, with None in its rows.
      last: whether nothing else is trained after this; then a stop that is asked for when all is
        done comes too late.

    Raises:
      DivergenceError: when a loss stops being finite; earlier checkpoints are still there.
      StorageError: when the disk fails or is full; earlier checkpoints are still there.
      Stopped: after Ctrl-C or SIGTERM, once everything is saved.
    """
    states, record = stage
    rows = list(record.rows)
    until = until or cohort.num_epochs
    with StopRequest() as stop:
        for epoch in range(record.epoch + 1, until + 1):
            sums = _EpochSums(cohort, tolerant)
            if record.partial and epoch == record.epoch + 1:
                sums.take_up(record.partial)
            states = _train_epoch(programs, states, epoch, sums, progress, stop)
            step = (epoch - 1) * programs.steps_per_epoch + sums.steps
            if sums.steps < programs.steps_per_epoch and stop.cause:
                partial = sums.partial() if sums.steps else None
                kept = Record(epoch - 1, list(rows), partial, cohort.description)
                checkpoints.save(step, states, kept)
                # Between two epochs it is the one before that has been left.
                raise _stopped(cohort, stop.cause, step, epoch if partial else epoch - 1)
            new_rows = _rows(programs, states, epoch, sums)
            on_epoch(new_rows)
            rows += new_rows
            record = Record(epoch, list(rows), None, cohort.description)
            cause = hosts.largest(stop.cause or 0)
            if cause or epoch % cohort.every_epochs == 0 or epoch == until:
                checkpoints.save(step, states, record)
            if cause and (epoch < until or not last):
                raise _stopped(cohort, signal.Signals(cause), step, epoch)
        if stop.cause and not last:  # during the last save
            raise _stopped(cohort, stop.cause, until * programs.steps_per_epoch, until)
    return Stage(states, record)


def _stopped(cohort: Cohort, cause: signal.Signals, step: int, epoch: int) -> Stopped:
    return Stopped(
        cause,
        f"interrupted by {cause.name} after step {step} (epoch {epoch} of {cohort.num_epochs}), "
        "everything is saved; the same command goes on from there",
    )


@dataclasses.dataclass
class _EpochSums:
    """What has been trained of an epoch, and what was measured, per member."""

    cohort: Cohort
    tolerant: bool
    steps: int = 0
    images: int = 0
    """Of one member."""
    seconds: float = 0.0
    loss_S: np.ndarray = dataclasses.field(init=False)
    """Sum over the images, each as it was when its batch was trained on."""
    correct_S: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        size = len(self.cohort)
        self.loss_S, self.correct_S = np.zeros(size), np.zeros(size)

    def take_up(self, partial: PartialEpoch) -> None:
        self.steps, self.images, self.seconds = partial.steps, partial.images, partial.seconds
        self.loss_S = np.array(partial.loss_S, float)  # None becomes NaN
        self.correct_S = np.array(partial.correct_S)

    def partial(self) -> PartialEpoch:
        sums = [_finite(value) for value in self.loss_S.tolist()], self.correct_S.tolist()
        return PartialEpoch(self.steps, self.images, self.seconds, *sums)

    def check_finite(self, step_loss_SK: np.ndarray, epoch: int, steps_before: int) -> None:
        bad = np.argwhere(~np.isfinite(step_loss_SK.T))
        if len(bad) and not self.tolerant:
            step, member = bad[0]
            rate = self.cohort.config_of(member).optimizer.learning_rate
            raise DivergenceError(
                f"the loss is {step_loss_SK[member, step]} at step {steps_before + step + 1} "
                f"(epoch {epoch}, seed {self.cohort.ids[member]['seed']}): try a smaller "
                f"config.optimizer.learning_rate (now {rate:g}) or config.precision=float32"
            )


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if np.isfinite(value) else None


def _train_epoch(
    programs: Programs,
    states: TrainState,
    epoch: int,
    sums: _EpochSums,
    progress: Progress,
    stop: StopRequest,
) -> TrainState:
    """Trains what ``sums`` lacks of an epoch (counted from 1), until its end or a request to stop.

    Uses up ``states``; adds to ``sums``, whose seconds are without compilation.
    """
    members = len(sums.loss_S)
    started = time.perf_counter() - sums.seconds - programs.compile_seconds
    order_SN = programs.epoch_order(epoch)
    for segment in programs.segments_after(sums.steps):
        # Several processes must agree where to stop: only at the end of an epoch.
        if stop.cause and jax.process_count() == 1:
            break
        states, metrics = programs.train(states, order_SN, segment)
        loss_SK, correct_SK = hosts.fetch(metrics)
        before = (epoch - 1) * programs.steps_per_epoch + sums.steps
        sums.check_finite(loss_SK.astype(np.float64), epoch, before)
        sums.loss_S += loss_SK.sum(1, dtype=np.float64) * segment.batch_size
        sums.correct_S += correct_SK.sum(1)
        sums.images += segment.images
        sums.steps += segment.steps
        sums.seconds = time.perf_counter() - started - programs.compile_seconds
        progress.update(
            epoch,
            sums.steps,
            segment.images * members,
            float(np.mean(sums.loss_S)) / sums.images,
            100 * float(np.mean(sums.correct_S)) / sums.images,
        )
    return states


def _rows(programs: Programs, states: TrainState, epoch: int, sums: _EpochSums) -> list[Row]:
    """Evaluates and puts an epoch's results together, one row a member."""
    cohort = sums.cohort
    evaluation = hosts.fetch(programs.evaluate(states))
    step = epoch * programs.steps_per_epoch
    sums.check_finite(evaluation.loss[:, None], epoch, step - 1)
    eval_size = evaluation.predictions_N.shape[1]
    return [
        {
            **ids,
            "epoch": epoch,
            "step": step,
            "learning_rate": float(cohort.schedule_of(index).learning_rate_T1[step]),
            "momentum": float(cohort.schedule_of(index).momentum_T1[step]),
            "train_loss": _finite(float(sums.loss_S[index]) / sums.images),
            "train_accuracy": 100 * float(sums.correct_S[index]) / sums.images,
            "eval_loss": _finite(float(evaluation.loss[index])),
            "eval_accuracy": 100 * int(evaluation.correct[index]) / eval_size,
            "seconds": sums.seconds,
            "images_per_second": sums.images * len(cohort) / sums.seconds,
        }
        for index, ids in enumerate(cohort.ids)
    ]
