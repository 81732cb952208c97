"""A whole run: data, compilation, epochs, files, plots."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmnist
from jaxmnist import analyze, data, models, optim, parallel, published, report
from jaxmnist.checkpoint import Checkpoints
from jaxmnist.config import Config, validate
from jaxmnist.engine import TrainState
from jaxmnist.errors import DivergenceError
from jaxmnist.programs import Programs, plan_epoch
from jaxmnist.workdir import Row, Workdir, spread


def run(config: Config, workdir: Path, *, restart: bool = False) -> dict[str, Any]:
    """Trains what ``config`` describes and leaves everything in ``workdir``.

    A workdir that holds the same run, finished or not, is taken up after its newest checkpoint.

    Args:
      config: see ``config.FIELDS``.
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints/ and plots.
      restart: begin anew, after moving what is in the workdir aside.

    Returns:
      The contents of summary.json.

    Raises:
      UserError: for a configuration, data set or workdir that cannot be used.
      DivergenceError: when the loss stops being finite; the epochs before that are on disk.
    """
    validate(config)
    train_data, eval_data = data.load(config.dataset, config.split)
    steps_per_epoch = sum(segment.steps for segment in plan_epoch(len(train_data), config))
    schedule = optim.make_schedule(config, steps_per_epoch)
    mesh = parallel.make_mesh(config)
    layers = analyze.summarize(models.build(config.model, config.dropout))
    files = Workdir(workdir, config, restart=restart)
    if files.moved_to:
        report.say(f"moved the old {files.path} to {files.moved_to}")
    report.say(report.run_header(config, layers, mesh, len(train_data), len(eval_data)))

    started = time.perf_counter()
    programs = Programs(config, schedule, mesh, train_data, eval_data)
    compile_seconds = time.perf_counter() - started
    since_start = time.perf_counter() - jaxmnist.STARTED
    report.say(f"compiled in {compile_seconds:.1f} s, {since_start:.1f} s after the start\n")

    with contextlib.closing(Checkpoints(files.checkpoints, config.checkpoint.keep)) as checkpoints:
        states, rows = _fit(config, programs, schedule, files, checkpoints)

    summary = _summarize(config, layers, rows, compile_seconds)
    files.write_summary(summary)
    publication = published.comparable(
        config.recipe, config.dataset, config.split, summary["params"]
    )
    first_seed_predictions_N = np.asarray(programs.evaluate(states).predictions_N)[0]
    curve = publication["epochs"] if publication else None
    _draw(config, files.path, rows, curve, schedule, eval_data, first_seed_predictions_N)
    report.say(report.summary_text(summary, publication))
    report.say(f"everything is in {files.path}")
    return summary


def _fit(
    config: Config,
    programs: Programs,
    schedule: optim.Schedule,
    files: Workdir,
    checkpoints: Checkpoints,
) -> tuple[TrainState, list[Row]]:
    """Trains from the newest checkpoint to the last epoch; the states and all rows."""
    newest = checkpoints.latest_epoch()
    if newest is None:
        states = programs.init()
    else:
        states = checkpoints.restore(newest, programs.abstract_states)
        report.say(f"resumed after epoch {newest} of {config.num_epochs}")
    done = newest or 0
    rows = files.read_metrics(done)

    report.say(report.epoch_header())
    with report.Progress(config, programs, done) as progress:
        for epoch in range(done + 1, config.num_epochs + 1):
            states, trained = _train_epoch(config, programs, states, epoch, progress)
            new_rows = _rows(config, programs, schedule, states, epoch, trained)
            files.append_metrics(new_rows)
            report.say(report.epoch_line(new_rows))
            rows += new_rows
            if epoch % config.checkpoint.every_epochs == 0 or epoch == config.num_epochs:
                accuracy = float(np.mean([row["eval_accuracy"] for row in new_rows]))
                checkpoints.save(epoch, states, accuracy)
    return states, rows


class EpochTraining(NamedTuple):
    """What the training part of an epoch measured, per seed."""

    loss_S: np.ndarray
    """Mean over the images, each as it was when its batch was trained on."""
    accuracy_S: np.ndarray
    """Percent, likewise."""
    seconds: float
    images_per_second: float
    """Of all seeds together."""


def _train_epoch(
    config: Config,
    programs: Programs,
    states: TrainState,
    epoch: int,
    progress: report.Progress,
) -> tuple[TrainState, EpochTraining]:
    """Trains one epoch (counted from 1); uses up ``states``."""
    loss_S, correct_S = np.zeros(config.num_seeds), np.zeros(config.num_seeds)
    images, step = 0, 0
    started = time.perf_counter()
    order_SN = programs.epoch_order(states, epoch)
    for segment in programs.segments:
        states, metrics = programs.train(states, order_SN, segment)
        step_loss_SK = np.asarray(metrics.loss, np.float64)
        _check_finite(config, step_loss_SK, epoch, (epoch - 1) * programs.steps_per_epoch + step)
        loss_S += step_loss_SK.sum(1) * segment.batch_size
        correct_S += np.asarray(metrics.correct).sum(1)
        images += segment.images
        step += segment.steps
        progress.update(
            epoch,
            step,
            segment.images * config.num_seeds,
            float(np.mean(loss_S)) / images,
            100 * float(np.mean(correct_S)) / images,
        )
    seconds = time.perf_counter() - started
    rate = images * config.num_seeds / seconds
    return states, EpochTraining(loss_S / images, 100 * correct_S / images, seconds, rate)


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
    trained: EpochTraining,
) -> list[Row]:
    """Evaluates and puts an epoch's results together, one row a seed."""
    evaluation = jax.device_get(programs.evaluate(states))
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
            "train_loss": float(trained.loss_S[index]),
            "train_accuracy": float(trained.accuracy_S[index]),
            "eval_loss": float(evaluation.loss[index]),
            "eval_accuracy": 100 * int(evaluation.correct[index]) / eval_size,
            "seconds": trained.seconds,
            "images_per_second": trained.images_per_second,
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
    from jaxmnist import plots  # matplotlib takes a second to import: after the training

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
