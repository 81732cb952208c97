"""A whole run: data, compilation, epochs, files, plots."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmnist import data, published
from jaxmnist.config import Config, architecture, flatten, validate
from jaxmnist.errors import UserError
from jaxmnist.networks import analyze, models
from jaxmnist.runs import fit, report, scores
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.cohort import Cohort
from jaxmnist.runs.tensorboard import EventFiles
from jaxmnist.runs.workdir import Row, Workdir, storage_errors
from jaxmnist.training import hosts
from jaxmnist.training.programs import Programs


def run(
    config: Config,
    workdir: Path,
    *,
    restart: bool = False,
    tensorboard: bool = False,
    keep: bool = True,
    started: float | None = None,
) -> dict[str, Any]:
    """Trains what ``config`` describes and leaves everything in ``workdir``.

    A workdir that holds the same run is taken up after its newest checkpoint; of a finished one
    only the summary is repeated.

    Args:
      config: see ``config.FIELDS``.
      workdir: folder for config.json, metrics.jsonl, summary.json, checkpoints/ and plots.
      restart: start over, after moving what is in the workdir aside.
      tensorboard: also write tensorboard/, for TensorBoard.
      keep: whether the workdir stays; one that does not is not named.
      started: when what leads here began, by ``time.perf_counter``; default: now.

    Returns:
      The contents of summary.json.

    Raises:
      UserError: for a configuration, data set or workdir that cannot be used; where tensorboardX
        is wanted and missing.
      DivergenceError: when the loss stops being finite; earlier checkpoints are still there.
      StorageError: when the disk fails or is full; earlier checkpoints are still there.
      Stopped: after Ctrl-C or SIGTERM during the training, once everything is saved.
    """
    started = started or time.perf_counter()
    hosts.on_each(lambda: validate(config))
    _refuse_differences(config)
    train_data, eval_data = _load(config)
    cohort = Cohort.of([config], len(train_data))
    mesh = cohort.mesh()
    layers = analyze.summarize(models.build(architecture(config)))
    seeds = range(config.seed, config.seed + config.num_seeds)
    events = EventFiles(workdir, seeds, wanted=tensorboard)
    with contextlib.ExitStack() as stack:
        files = Workdir(workdir, config, restart=restart)
        stack.callback(files.close)
        checkpoints = Checkpoints(files.checkpoints, config.checkpoint.keep)
        stack.callback(checkpoints.close)
        _announce(config, files, checkpoints)
        publication = published.comparable(
            config.recipe, config.dataset, config.split, sum(layer.params for layer in layers)
        )
        if summary := _finished(config, files, checkpoints, events):
            report.say("finished already; --restart moves it aside and starts over")
            report.say(report.summary_text(summary, publication))
            return summary
        report.say(report.run_header(config, layers, mesh, len(train_data), len(eval_data)))

        programs = cohort.programs(mesh, train_data, eval_data)
        report.say(
            f"ready to train {time.perf_counter() - started:.1f} s after the start, of which "
            f"compilation took {programs.compile_seconds:.1f} s\n"
        )

        stage = _go_on(config, cohort, programs, files, checkpoints, events)

        rows = stage.record.rows
        summary = _summarize(config, layers, rows, programs.compile_seconds)
        predictions_SN = hosts.fetch(programs.evaluate(stage.states).predictions_N)
        if hosts.is_first():
            curve = publication["epochs"] if publication else None
            with storage_errors(files.path):
                _draw(config, files.path, rows, curve, cohort, eval_data, predictions_SN[0])
        events.add_figures()
        files.write_summary(summary)  # last: it says that the run has finished
        report.say(report.summary_text(summary, publication))
        if keep:
            report.say(f"everything is in {files.path}")
        return summary


def _refuse_differences(config: Config) -> None:
    """All processes of a run must have the same configuration.

    JAX would not notice: rates and seeds are data of a program, and each process has its own.
    """
    first, own = json.loads(hosts.of_first(json.dumps(flatten(config)))), flatten(config)

    def compare() -> None:
        for name, value in own.items():
            if value != first[name]:
                raise UserError(
                    f"config.{name} is {first[name]!r} in the first process of the run and "
                    f"{value!r} in another: start all of them with the same settings"
                )

    hosts.on_each(compare)


def _load(config: Config) -> tuple[data.Dataset, data.Dataset]:
    """The data sets, the same in all processes."""
    datasets = hosts.on_each(lambda: data.load(config.dataset, config.split))
    if jax.process_count() > 1:
        arrays = [array for part in datasets for array in (part.images_NHW, part.labels_N)]
        digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
        if hosts.largest(hosts.of_first(digest) != digest):
            raise UserError(
                f"config.dataset is {config.dataset!r}, where not all processes of the run find "
                "the same images: give them the same files"
            )
    return datasets


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


def _finished(
    config: Config, files: Workdir, checkpoints: Checkpoints, events: EventFiles
) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do."""
    summary, steps = files.read_summary(), checkpoints.steps()
    if summary is None:
        return None
    if not steps:
        raise UserError(
            f"{files.path} holds a finished run without any intact checkpoint: choose another "
            "--workdir, or --restart to move it aside and train anew"
        )
    record, whole = checkpoints.record(steps[-1]), False
    if record.epoch == config.num_epochs == summary.get("num_epochs"):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged one is made again
            report.summary_text(summary, None)
            whole = True
    if whole:
        files.write_metrics(record.rows)
        events.write(record.rows)
        events.add_figures()
    return summary if whole else None


def _go_on(
    config: Config,
    cohort: Cohort,
    programs: Programs,
    files: Workdir,
    checkpoints: Checkpoints,
    events: EventFiles,
) -> fit.Stage:
    """Trains from the newest checkpoint to the last epoch."""
    stage = fit.newest(cohort, programs, checkpoints)
    done = stage.record
    if checkpoints.steps():
        where = f"after epoch {done.epoch} of {config.num_epochs}"
        if done.partial:
            where = (
                f"in epoch {done.epoch + 1} of {config.num_epochs}, after {done.partial.steps} of "
                f"{programs.steps_per_epoch} steps"
            )
        report.say(f"resumed {where}")
    if files.write_metrics(done.rows):
        report.say("metrics.jsonl lacked epochs that the checkpoint has: written again")
    events.write(done.rows)

    def on_epoch(rows: Sequence[Row]) -> None:
        files.append_metrics(rows)
        events.append(rows)
        report.say(report.epoch_line(rows))

    report.say(report.epoch_header())
    with report.Progress(config, programs, done) as progress:
        return fit.fit(cohort, programs, checkpoints, stage, progress, on_epoch)


def _summarize(
    config: Config,
    layers: list[analyze.LayerSummary],
    rows: list[Row],
    compile_seconds: float,
) -> dict[str, Any]:
    seeds = range(config.seed, config.seed + config.num_seeds)
    one_seed = [row for row in rows if row["seed"] == config.seed]
    train_seconds = sum(row["seconds"] for row in one_seed)
    images = sum(row["seconds"] * row["images_per_second"] for row in one_seed)
    return {
        "model": config.model,
        "params": sum(layer.params for layer in layers),
        "receptive_field": layers[-1].receptive_field,
        "num_seeds": config.num_seeds,
        "num_epochs": config.num_epochs,
        **scores.of_seeds(rows, seeds),
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
    cohort: Cohort,
    eval_data: data.Dataset,
    predictions_N: np.ndarray,
) -> None:
    """Writes the plots; those of single images show the first seed."""
    from jaxmnist.runs import plots

    title = f"{config.model}, {config.dataset}"
    first = f"{title}, seed {config.seed}"
    plots.learning_curves(folder / "learning_curves.png", rows, published_curve, title)
    schedule = cohort.schedules[0]
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
