"""A whole run: data, compilation, epochs, files, plots."""

import contextlib
import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmnist
from jaxmnist import data, published
from jaxmnist.config import Config, flatten, validate
from jaxmnist.errors import DivergenceError, Stopped, UserError
from jaxmnist.networks import analyze, models
from jaxmnist.runs import assemble, report
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch, Record
from jaxmnist.runs.signals import StopRequest
from jaxmnist.runs.workdir import Row, Workdir, spread, storage_errors
from jaxmnist.training import hosts, optim
from jaxmnist.training.engine import TrainState
from jaxmnist.training.programs import Programs


def run(config: Config, workdir: Path, *, restart: bool = False) -> dict[str, Any]:
    """Trains what ``config`` describes and leaves everything in ``workdir``.

    A workdir that holds the same run is taken up after its newest checkpoint; of a finished one
    only the summary is repeated.

    Args:
      config: see ``config.FIELDS``.
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints/ and plots.
      restart: begin anew, after moving what is in the workdir aside.

    Returns:
      The contents of summary.json.

    Raises:
      UserError: for a configuration, data set or workdir that cannot be used.
      DivergenceError: when the loss stops being finite; the epochs before that are on disk.
      StorageError: when the disk fails or is full; earlier checkpoints are still there.
      Stopped: after Ctrl-C or SIGTERM during the training, once everything is saved.
    """
    validate(config)
    train_data, eval_data = data.load(config.dataset, config.split)
    steps_per_epoch = assemble.steps_per_epoch(config, len(train_data))
    schedule = assemble.schedule(config, steps_per_epoch)
    mesh = assemble.mesh(config)
    layers = analyze.summarize(models.build(config.model))
    with contextlib.ExitStack() as stack:
        files = Workdir(workdir, config, restart=restart)
        stack.callback(files.close)
        checkpoints = Checkpoints(files.checkpoints, config.checkpoint.keep)
        stack.callback(checkpoints.close)
        _announce(config, files, checkpoints)
        publication = published.comparable(
            config.recipe, config.dataset, config.split, sum(layer.params for layer in layers)
        )
        if summary := _finished(config, files, checkpoints):
            report.say("finished already; --restart moves it aside and begins anew")
            report.say(report.summary_text(summary, publication))
            return summary
        report.say(report.run_header(config, layers, mesh, len(train_data), len(eval_data)))

        programs = assemble.programs([config], [schedule], mesh, train_data, eval_data)
        since_start = time.perf_counter() - jaxmnist.STARTED
        report.say(
            f"ready to train {since_start:.1f} s after the start, of which compilation took "
            f"{programs.compile_seconds:.1f} s\n"
        )

        states, rows = _fit(config, programs, schedule, files, checkpoints)

        summary = _summarize(config, layers, rows, programs.compile_seconds)
        predictions_SN = hosts.fetch(programs.evaluate(states).predictions_N)
        if hosts.is_first():
            curve = publication["epochs"] if publication else None
            with storage_errors(files.path):
                _draw(config, files.path, rows, curve, schedule, eval_data, predictions_SN[0])
        files.write_summary(summary)  # last: it says that the run has finished
        report.say(report.summary_text(summary, publication))
        report.say(f"everything is in {files.path}")
        return summary


def _announce(config: Config, files: Workdir, checkpoints: Checkpoints) -> None:
    """Says what has been done to the workdir."""
    if files.moved_to:
        report.say(f"moved the old {files.path} to {files.moved_to}")
    if files.grown_from:
        report.say(
            f"goes on to {config.num_epochs} epochs, {files.grown_from} before; the "
            f"{config.schedule.name} schedule of those stays what it was"
        )
    for line in checkpoints.damaged:
        report.say(line)


def _finished(config: Config, files: Workdir, checkpoints: Checkpoints) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do."""
    summary, steps = files.read_summary(), checkpoints.steps()
    if summary is None:
        return None
    if not steps:
        raise UserError(
            f"{files.path} holds a finished run without any intact checkpoint: choose another "
            "--workdir, or --restart to move it aside and train anew"
        )
    record = checkpoints.record(steps[-1])
    if record.epoch == config.num_epochs == summary.get("num_epochs"):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged one is made again
            report.summary_text(summary, None)
            files.write_metrics(record.rows)
            return summary
    return None


def _fit(
    config: Config,
    programs: Programs,
    schedule: optim.Schedule,
    files: Workdir,
    checkpoints: Checkpoints,
) -> tuple[TrainState, list[Row]]:
    """Trains from the newest checkpoint to the last epoch; the states and all rows."""
    states, done = _newest(config, programs, checkpoints)
    rows = list(done.rows)
    if files.write_metrics(rows):
        report.say("metrics.jsonl lacked epochs that the checkpoint has: written again")

    report.say(report.epoch_header())
    with StopRequest() as stop, report.Progress(config, programs, done) as progress:
        for epoch in range(done.epoch + 1, config.num_epochs + 1):
            sums = _EpochSums(config.num_seeds)
            if done.partial and epoch == done.epoch + 1:
                sums.take_up(done.partial)
            states = _train_epoch(config, programs, states, epoch, sums, progress, stop)
            step = (epoch - 1) * programs.steps_per_epoch + sums.steps
            if sums.steps < programs.steps_per_epoch and stop.cause:
                partial = sums.partial() if sums.steps else None
                record = Record(epoch - 1, list(rows), partial, flatten(config))
                checkpoints.save(step, states, record)
                raise _stopped(config, stop.cause, step, epoch)
            new_rows = _rows(config, programs, schedule, states, epoch, sums)
            files.append_metrics(new_rows)
            report.say(report.epoch_line(new_rows))
            rows += new_rows
            cause = hosts.largest(stop.cause or 0)
            if cause or epoch % config.checkpoint.every_epochs == 0 or epoch == config.num_epochs:
                checkpoints.save(step, states, Record(epoch, list(rows), None, flatten(config)))
            if cause and epoch < config.num_epochs:
                raise _stopped(config, signal.Signals(cause), step, epoch)
    return states, rows


def _newest(
    config: Config, programs: Programs, checkpoints: Checkpoints
) -> tuple[TrainState, Record]:
    """The states to go on from, and what belongs to them."""
    steps = checkpoints.steps()
    if not steps:
        return programs.init(), Record(0, [], None, flatten(config))
    record = checkpoints.record(steps[-1])
    where = f"after epoch {record.epoch} of {config.num_epochs}"
    if record.partial:
        where = (
            f"in epoch {record.epoch + 1} of {config.num_epochs}, after {record.partial.steps} of "
            f"{programs.steps_per_epoch} steps"
        )
    states = checkpoints.restore(steps[-1], programs.abstract_states)
    report.say(f"resumed {where}")
    return states, record


def _stopped(config: Config, cause: signal.Signals, step: int, epoch: int) -> Stopped:
    return Stopped(
        cause,
        f"interrupted by {cause.name} after step {step} (epoch {epoch} of {config.num_epochs}), "
        "everything is saved; the same command goes on from there",
    )


@dataclasses.dataclass
class _EpochSums:
    """What has been trained of an epoch, and what was measured, per seed."""

    num_seeds: dataclasses.InitVar[int]
    steps: int = 0
    images: int = 0
    """Of one seed."""
    seconds: float = 0.0
    loss_S: np.ndarray = dataclasses.field(init=False)
    """Sum over the images, each as it was when its batch was trained on."""
    correct_S: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self, num_seeds: int) -> None:
        self.loss_S, self.correct_S = np.zeros(num_seeds), np.zeros(num_seeds)

    def take_up(self, partial: PartialEpoch) -> None:
        self.steps, self.images, self.seconds = partial.steps, partial.images, partial.seconds
        self.loss_S, self.correct_S = np.array(partial.loss_S), np.array(partial.correct_S)

    def partial(self) -> PartialEpoch:
        sums = self.loss_S.tolist(), self.correct_S.tolist()
        return PartialEpoch(self.steps, self.images, self.seconds, *sums)


def _train_epoch(
    config: Config,
    programs: Programs,
    states: TrainState,
    epoch: int,
    sums: _EpochSums,
    progress: report.Progress,
    stop: StopRequest,
) -> TrainState:
    """Trains what ``sums`` lacks of an epoch (counted from 1), until its end or a request to stop.

    Uses up ``states``; adds to ``sums``, whose seconds are without compilation.
    """
    started = time.perf_counter() - sums.seconds - programs.compile_seconds
    order_SN = programs.epoch_order(epoch)
    for segment in programs.segments_after(sums.steps):
        # Several processes must agree where to stop: only at the end of an epoch.
        if stop.cause and jax.process_count() == 1:
            break
        states, metrics = programs.train(states, order_SN, segment)
        loss_SK, correct_SK = hosts.fetch(metrics)
        before = (epoch - 1) * programs.steps_per_epoch + sums.steps
        _check_finite(config, loss_SK.astype(np.float64), epoch, before)
        sums.loss_S += loss_SK.sum(1, dtype=np.float64) * segment.batch_size
        sums.correct_S += correct_SK.sum(1)
        sums.images += segment.images
        sums.steps += segment.steps
        sums.seconds = time.perf_counter() - started - programs.compile_seconds
        progress.update(
            epoch,
            sums.steps,
            segment.images * config.num_seeds,
            float(np.mean(sums.loss_S)) / sums.images,
            100 * float(np.mean(sums.correct_S)) / sums.images,
        )
    return states


def _check_finite(config: Config, step_loss_SK: np.ndarray, epoch: int, steps_before: int) -> None:
    bad = np.argwhere(~np.isfinite(step_loss_SK.T))
    if len(bad):
        step, seed = bad[0]
        raise DivergenceError(
            f"the loss is {step_loss_SK[seed, step]} at step {steps_before + step + 1} (epoch "
            f"{epoch}, seed {config.seed + seed}): try a smaller config.optimizer.learning_rate "
            f"(now {config.optimizer.learning_rate:g}) or config.precision=float32"
        )


def _rows(
    config: Config,
    programs: Programs,
    schedule: optim.Schedule,
    states: TrainState,
    epoch: int,
    sums: _EpochSums,
) -> list[Row]:
    """Evaluates and puts an epoch's results together, one row a seed."""
    evaluation = hosts.fetch(programs.evaluate(states))
    _check_finite(config, evaluation.loss[:, None], epoch, epoch * programs.steps_per_epoch - 1)
    eval_size = evaluation.predictions_N.shape[1]
    step = epoch * programs.steps_per_epoch
    return [
        {
            "seed": config.seed + index,
            "epoch": epoch,
            "step": step,
            "learning_rate": float(schedule.learning_rate_T1[step]),
            "momentum": float(schedule.momentum_T1[step]),
            "train_loss": float(sums.loss_S[index]) / sums.images,
            "train_accuracy": 100 * float(sums.correct_S[index]) / sums.images,
            "eval_loss": float(evaluation.loss[index]),
            "eval_accuracy": 100 * int(evaluation.correct[index]) / eval_size,
            "seconds": sums.seconds,
            "images_per_second": sums.images * config.num_seeds / sums.seconds,
        }
        for index in range(config.num_seeds)
    ]


def _summarize(
    config: Config,
    layers: list[analyze.LayerSummary],
    rows: list[Row],
    compile_seconds: float,
) -> dict[str, Any]:
    seeds = range(config.seed, config.seed + config.num_seeds)
    accuracies = [[row["eval_accuracy"] for row in rows if row["seed"] == seed] for seed in seeds]
    one_seed = [row for row in rows if row["seed"] == config.seed]
    train_seconds = sum(row["seconds"] for row in one_seed)
    images = sum(row["seconds"] * row["images_per_second"] for row in one_seed)
    return {
        "model": config.model,
        "params": sum(layer.params for layer in layers),
        "receptive_field": layers[-1].receptive_field,
        "num_seeds": config.num_seeds,
        "num_epochs": config.num_epochs,
        "final_accuracy": spread([per_epoch[-1] for per_epoch in accuracies]),
        "best_accuracy": spread([max(per_epoch) for per_epoch in accuracies]),
        "compile_seconds": compile_seconds,
        "train_seconds": train_seconds,
        "images_per_second": images / train_seconds,
        "backend": jax.default_backend(),
        "device": report.device_name(),
        "jax_version": jax.__version__,
    }


def _draw(
    config: Config,
    folder: Path,
    rows: list[Row],
    published_curve: list[Row] | None,
    schedule: optim.Schedule,
    eval_data: data.Dataset,
    predictions_N: np.ndarray,
) -> None:
    """Writes the plots; those of single images show the first seed."""
    from jaxmnist.runs import plots

    title = f"{config.model}, {config.dataset}"
    first = f"{title}, seed {config.seed}"
    plots.learning_curves(folder / "learning_curves.png", rows, published_curve, title)
    plots.schedule(
        folder / "schedule.png",
        schedule.learning_rate_T1[:-1],
        schedule.momentum_T1[:-1],
        rows[0]["step"],
        title,
    )
    labels_N = eval_data.labels_N
    plots.confusion_matrix(folder / "confusion_matrix.png", labels_N, predictions_N, first)
    plots.misclassified(
        folder / "misclassified.png", eval_data.images_NHW, labels_N, predictions_N, first
    )
