"""A whole sweep: rounds of trials, trained as populations, and what they leave behind."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmnist import data
from jaxmnist.config import HOW, Config, flatten
from jaxmnist.errors import UserError
from jaxmnist.runs import report
from jaxmnist.runs.workdir import storage_errors
from jaxmnist.sweeps import recipe
from jaxmnist.sweeps.board import Board, best_first, went_through
from jaxmnist.sweeps.folder import SweepDir
from jaxmnist.sweeps.rounds import Options, Rounds, check, rungs_of
from jaxmnist.sweeps.sampling import SAMPLERS, Order
from jaxmnist.sweeps.search import Search
from jaxmnist.sweeps.space import Choices, Space, Value, configured
from jaxmnist.sweeps.storage import without_password
from jaxmnist.training import optim

_MOST_TRIALS = 10_000


def run(
    config: Config,
    space: Space,
    workdir: Path,
    options: Options,
    *,
    command: str,
    split: str,
) -> list[dict[str, Any]]:
    """Tries settings out of ``space`` and leaves everything in ``workdir``.

    A workdir that holds the same sweep is taken up where it stopped.

    Args:
      config: what is fixed, and how many seeds a trial has.
      space: what is varied.
      workdir: folder for trials.jsonl, best.py, sweep.png and the study.
      options: how.
      command: what was typed, for best.py.
      split: the recipe's own, for best.py.

    Returns:
      What trials.jsonl holds.

    Raises:
      UserError: for settings, data or a workdir that cannot be used.
      StorageError: when the disk fails or is full.
      Stopped: after Ctrl-C or SIGTERM during the training, once everything is saved.
    """
    _refuse_idle_fields(config, space)
    order = _order(config, space, options)
    train_data, eval_data = data.load(config.dataset, config.split)
    _check_points(config, space, order, options, len(train_data))
    description = _description(config, space, order, options)
    with contextlib.ExitStack() as stack:
        files = SweepDir(workdir, description)
        stack.callback(files.close)
        storage = options.storage or files.path / "study.db"
        title = f"{config.model}-{_digest(description)}"
        search = Search(storage, title, order, files.worker)
        before = search.records()
        if files.has_results() and not before:
            study, remedy = "its study.db", ""
            if options.storage:
                study = f"--storage {without_password(options.storage)}"
                remedy = "start in the folder where it began, "
            raise UserError(
                f"{files.path} holds results that {study} does not have: {remedy}bring the study "
                "back, or choose another --workdir"
            )
        board = Board(list(space.asked), config.num_epochs, order.trials, before)
        report.say(_header(config, space, order, options, len(train_data), len(eval_data)))
        if before:
            report.say(f"goes on: {len(before)} of {order.trials} trials are finished")

        def leave(records: Sequence[dict[str, Any]]) -> None:
            best = _best(config, records)
            typed = without_password(command)
            text = recipe.text(config, best, len(records), typed, split) if best else None
            files.write_results(records, text)

        rounds = Rounds(
            config, order, options, files, search, board, (train_data, eval_data), leave
        )
        try:
            with board:
                rounds.run()
        finally:
            if records := search.records():
                leave(records)
                _draw(files.path / "sweep.png", records, config, space)
        board.summary(records)
        if reasons := search.refused():
            report.say(f"{len(reasons)} settings were refused; the last: {reasons[-1]}")
        report.say(f"everything is in {files.path}")
        return records


def _refuse_idle_fields(config: Config, space: Space) -> None:
    """Raises a ``UserError`` where something is swept that no trial would depend on."""
    swept = space.dimensions.get("schedule.name")
    schedules = swept.values if isinstance(swept, Choices) else (config.schedule.name,)
    for field in space.asked:
        if not any(optim.uses(str(name), field) for name in schedules):
            reason = "it belongs to another schedule"
            if field == "optimizer.momentum":
                reason = "onecycle has its own, schedule.base_momentum and schedule.max_momentum"
            raise UserError(
                f"--sweep.{field} changes nothing with schedule.name="
                f"{','.join(map(str, schedules))}: {reason}"
            )


def _order(config: Config, space: Space, options: Options) -> Order:
    """What is wanted of the search.

    Raises:
      UserError: for options that do not fit each other or the space.
    """
    sampler = options.sampler or ("grid" if space.is_grid else "qmc")
    if sampler not in SAMPLERS:
        raise UserError(f"--sampler is {sampler!r}: it must be one of {', '.join(SAMPLERS)}")
    for name in ("trials", "parallel", "max_params"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be 1 or more")
    if options.halving is not None and options.halving < 2:
        raise UserError(f"--halving is {options.halving}: it must be 2 or more")
    if options.halving and "num_epochs" in space.asked:
        raise UserError("--halving: all trials need the same number of epochs, do not sweep them")
    trials = options.trials
    if sampler == "grid":
        if not space.is_grid:
            ranges = [n for n, d in space.dimensions.items() if not isinstance(d, Choices)]
            raise UserError(
                f"--sampler is 'grid': {ranges[0]} has a range, give choices or another sampler"
            )
        if trials not in (None, space.size):
            raise UserError(
                f"--trials is {trials}: the grid has {space.size:.0f} points, leave it out or "
                "choose another --sampler"
            )
        if space.size > _MOST_TRIALS:
            raise UserError(
                f"the grid has {space.size:,.0f} points, at most {_MOST_TRIALS:,} can be tried: "
                "choose another --sampler and --trials"
            )
        trials = int(space.size)
    if trials is None:
        raise UserError(f"--trials is missing: the sampler {sampler} needs to know how many")
    if trials > space.size:
        raise UserError(f"--trials is {trials}: there are only {space.size:.0f} different settings")
    if trials > _MOST_TRIALS:
        raise UserError(f"--trials is {trials}: at most {_MOST_TRIALS:,}")
    return Order(space, sampler, trials, config.seed)


def _check_points(
    config: Config, space: Space, order: Order, options: Options, train_size: int
) -> None:
    """Every point of a grid, or some of another space, before anything is written.

    Raises:
      UserError: where a point of the grid cannot be trained; elsewhere where none of them can.
    """
    points = space.probes()
    if order.is_grid:
        points = [space.settings(values) for values in space.points()]
    errors: list[tuple[UserError, dict[str, Value]]] = []
    for settings in points:
        try:
            # Too large networks are refused one by one: that is what the option is for.
            check(configured(config, settings), train_size, max_params=None)
        except UserError as error:
            errors.append((error, settings))
    if errors and (order.is_grid or len(errors) == len(points)):
        error, settings = errors[0]
        shown = ", ".join(f"{field}={value}" for field, value in settings.items())
        raise UserError(f"{error} (with {shown})") from error


def _description(config: Config, space: Space, order: Order, options: Options) -> dict[str, Any]:
    """What makes it this sweep: all that its results depend on but the number of trials."""
    fixed = {
        f"config.{field}": value
        for field, value in flatten(config).items()
        if field not in space.asked and not field.startswith(HOW)
    }
    varied = {f"--sweep.{field}": text for field, text in space.asked.items()}
    how = {"--sampler": order.sampler, "--halving": options.halving}
    how["--max_params"] = options.max_params
    if options.storage is not None:
        how["--storage"] = without_password(options.storage)
    return fixed | varied | {name: value for name, value in how.items() if value is not None}


def _digest(description: Mapping[str, Any]) -> str:
    same = {name: value for name, value in description.items() if name != "--storage"}
    text = json.dumps(same, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _header(
    config: Config, space: Space, order: Order, options: Options, train: int, evaluated: int
) -> str:
    seeds = f"{config.num_seeds} seeds each" if config.num_seeds > 1 else "one seed each"
    lines = [
        f"sweep of {order.trials} trials ({order.sampler}), {seeds}, on {config.dataset}, "
        f"{config.split}: {train:,} images to train, {evaluated:,} to evaluate",
        *(f"  {field}: {text}" for field, text in space.asked.items()),
    ]
    rungs = rungs_of(config.num_epochs, options.halving)
    if len(rungs) > 1:
        stops = ", ".join(str(epoch) for epoch in rungs[:-1])
        lines.append(f"  the best 1/{options.halving} go on after {stops} of {rungs[-1]} epochs")
    lines.append(f"on {report.device_name()}, jax {jax.__version__}")
    return "\n".join(lines)


def _best(config: Config, records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of those that have gone through all epochs."""
    ranked = best_first(records, config.num_epochs)
    return ranked[0] if ranked and went_through(ranked[0], config.num_epochs) else None


def _draw(path: Path, records: Sequence[dict[str, Any]], config: Config, space: Space) -> None:
    from jaxmnist.sweeps import plot  # matplotlib takes a second to import

    model = [] if "model" in space.asked else [config.model]
    title = ", ".join([*model, config.dataset, config.split])
    with storage_errors(path):
        plot.draw(path, records, space, config.num_epochs, title)
