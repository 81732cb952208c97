"""The rounds of a sweep: trials that are asked for together and trained as populations."""

import contextlib
import functools
import itertools
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmnist import data
from jaxmnist.config import Config, architecture, validate
from jaxmnist.errors import UserError
from jaxmnist.networks import analyze, models, target
from jaxmnist.runs import assemble, fit, scores
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.cohort import Cohort
from jaxmnist.runs.workdir import Row
from jaxmnist.sweeps.board import Board
from jaxmnist.sweeps.folder import SweepDir
from jaxmnist.sweeps.outcomes import Outcome, gathered
from jaxmnist.sweeps.sampling import Order
from jaxmnist.sweeps.search import Search, Trial
from jaxmnist.sweeps.space import configured
from jaxmnist.training.engine import Images
from jaxmnist.training.programs import Programs, on_devices

_MOST_REFUSED = 1000
_MOST_BARREN = 5
_LARGEST_ROUND = 100
_KEPT_PROGRAMS = 8
_BEAT = 30  # seconds


class Options(NamedTuple):
    """How a sweep goes about it; None for what suits."""

    trials: int | None = None
    sampler: str | None = None
    parallel: int | None = None
    """Trials in one program."""
    halving: int | None = None
    """Stop all but the best 1/R at 1/R² and 1/R of the epochs."""
    max_params: int | None = None
    storage: str | None = None
    """Optuna's address of a database that several sweeps share."""


def rungs_of(num_epochs: int, halving: int | None) -> list[int]:
    """The epochs after which the best are chosen; the last is the end."""
    parts = (halving**2, halving) if halving else ()
    return sorted({math.ceil(num_epochs / part) for part in parts} | {num_epochs})


Results = Sequence[dict[str, Any]]


class Rounds:
    """The rounds of a sweep, one after the other."""

    def __init__(
        self,
        config: Config,
        order: Order,
        options: Options,
        files: SweepDir,
        search: Search,
        board: Board,
        datasets: tuple[data.Dataset, data.Dataset],
        leave: Callable[[Results], None],
    ):
        """``leave`` gets all results whenever there is another one."""
        if options.halving and not config.mesh.data:
            # Members that are left alone must not have their batches split: that would round anew,
            # as the kernels for GPUs do, whose sums are cut otherwise for one network.
            config = configured(config, {"mesh.data": 1})
        self._config, self._space, self._order, self._options = config, order.space, order, options
        self._files, self._search, self._board = files, search, board
        self._data, self._leave = datasets, leave
        self._programs: dict[Any, Programs] = {}
        self._placed: dict[Any, tuple[Images, Images]] = {}
        self._refused, self._exhausted = 0, False
        self._beaten = time.monotonic()

    def run(self) -> None:
        if unfinished := self._files.read_round():
            trials = [Trial(number, values) for number, values in unfinished["trials"]]
            # Another worker may have been given some in the meantime.
            trials = [trial for trial in trials if self._search.still_wanted(trial)]
            # As many as there were may have been too many for the memory.
            in_program = self._options.parallel or self._suitable()
            self._train_round(trials, min(in_program, unfinished["parallel"]))
        self._files.end_round()
        while trials := self._next_round():
            in_program = self._options.parallel or self._suitable()
            content = {"trials": [list(trial) for trial in trials], "parallel": in_program}
            self._files.begin_round(content)
            self._train_round(trials, in_program)

    def _suitable(self) -> int:
        """Trials in one program that keep the devices busy."""
        size = max(1, target.current().members * jax.device_count() // self._config.num_seeds)
        # What learns from its trials must not ask for all of them before it has seen any.
        return min(size, max(1, self._order.trials // 4)) if self._order.sampler == "tpe" else size

    def _next_round(self) -> list[Trial]:
        """The trials to train next; none when the sweep is at its end."""
        size = self._options.parallel or self._suitable()
        if halving := self._options.halving:
            size = max(size, halving**2)
        if self._order.sampler != "tpe" and self._options.storage is None:
            size = min(self._order.trials, _LARGEST_ROUND)  # so that those of one shape meet
        trials = [trial for trial in self._search.mine() if self._is_allowed(trial)]
        barren = 0
        while len(trials) < size and not self._exhausted and barren < _MOST_BARREN:
            asked = self._search.ask(size - len(trials))
            trials += [trial for trial in asked if self._is_allowed(trial)]
            if not asked:
                if trials:
                    break
                self._board.begin("waiting for the other workers of this sweep")
                if not self._search.wait_for_others():
                    break
                barren += 1
        used_up = not trials and self._search.is_used_up()
        if self._exhausted or barren == _MOST_BARREN or used_up:
            self._board.say("no further settings were found that can be trained and are new")
        idle = not trials and not self._search.records() and not self._search.others_train()
        if idle and (reasons := self._search.refused()):
            raise UserError(
                f"none of {len(reasons)} settings can be trained; the last: {reasons[-1]}"
            )
        return trials

    def _is_allowed(self, trial: Trial) -> bool:
        """Whether it is to be trained; otherwise it is refused."""
        try:
            check(self._configured(trial), len(self._data[0]), self._options.max_params)
        except UserError as error:
            self._search.refuse(trial.number, str(error))
            self._refused += 1
            # A grid has an end of its own.
            self._exhausted |= not self._order.is_grid and self._refused >= _MOST_REFUSED
            return False
        self._refused = 0
        return True

    def _configured(self, trial: Trial) -> Config:
        return configured(self._config, self._space.settings(trial.values))

    def _train_round(self, trials: Sequence[Trial], in_program: int) -> None:
        """Trains all of them, or with halving the better ones of them, to the end."""
        by_number = {trial.number: trial for trial in sorted(trials)}
        alive, outcomes = list(by_number), {}
        rungs = rungs_of(self._config.num_epochs, self._options.halving)
        if not self._options.halving:
            rungs = [0]  # the end, which may differ from trial to trial
        for rung in rungs:
            last = rung == rungs[-1]
            outcomes_before, outcomes = outcomes, {}
            for group in self._groups([by_number[number] for number in alive], in_program):
                found = self._train(group, rung, outcomes_before)
                outcomes |= found
                if last:
                    for trial in group:
                        self._finish(trial, found[trial.number], halved=False)
            if not last:
                ranking = sorted(alive, key=lambda number: (-outcomes[number].accuracy, number))
                chosen = math.ceil(len(ranking) / (self._options.halving or 1))
                alive, stopped = sorted(ranking[:chosen]), sorted(ranking[chosen:])
                for number in stopped:
                    self._finish(by_number[number], outcomes[number], halved=True)
        self._files.end_round()

    def _groups(self, trials: Sequence[Trial], in_program: int) -> list[list[Trial]]:
        """Trials that can share a program, at most ``in_program`` together."""
        by_shape: dict[Any, list[Trial]] = {}
        for trial in trials:
            by_shape.setdefault(assemble.shape(self._configured(trial)), []).append(trial)
        return [
            same[start : start + in_program]
            for same in by_shape.values()
            for start in range(0, len(same), in_program)
        ]

    def _train(
        self, group: Sequence[Trial], until: int, before: Mapping[int, Outcome]
    ) -> dict[int, Outcome]:
        """Trains a population from its newest checkpoint, or from where ``before`` ends."""
        numbers = [trial.number for trial in group]
        configs = [self._configured(trial) for trial in group]
        cohort = Cohort.of(configs, len(self._data[0]), numbers)
        until = until or cohort.num_epochs
        digest = zlib.crc32(repr(numbers).encode())
        folder = self._files.populations / f"{numbers[0]}-{digest:08x}-to-{until}"
        names = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {_listed(numbers)}"
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            steps = checkpoints.steps()
            record = checkpoints.record(steps[-1]) if steps else None
            if record is None or record.epoch < until:
                self._board.begin(f"{names}: compiling")
                self._search.beat()
                programs = self._programs_of(cohort)
                self._board.begin(names)
                start = functools.partial(gathered, cohort, programs, before) if before else None
                stage = fit.newest(cohort, programs, checkpoints, start)
                record = fit.fit(
                    cohort,
                    programs,
                    checkpoints,
                    stage,
                    self,
                    self._hear,
                    until=until,
                    tolerant=True,
                    last=False,
                ).record
        outcomes = {}
        for place, number in enumerate(numbers):
            rows = [row for row in record.rows if row["trial"] == number]
            earlier = before.get(number)
            seconds = earlier.seconds if earlier else 0.0
            begun = earlier.rows[-1]["epoch"] if earlier else 0
            first_seed = (row for row in rows if row["seed"] == rows[0]["seed"])
            seconds += sum(r["seconds"] for r in first_seed if r["epoch"] > begun) / len(numbers)
            outcomes[number] = Outcome(rows, cohort, folder, place, seconds)
        return outcomes

    def update(self, epoch: int, step: int, images: int, loss: float, accuracy: float) -> None:
        """As ``fit.Progress``; says now and then that this worker lives."""
        self._board.update(epoch, step, images, loss, accuracy)
        if time.monotonic() - self._beaten > _BEAT:
            self._search.beat()
            self._beaten = time.monotonic()

    def _hear(self, rows: Sequence[Row]) -> None:
        """Passes the accuracies of an epoch on."""
        for number, of_trial in itertools.groupby(rows, key=lambda row: row["trial"]):
            accuracies = list(of_trial)
            accuracy = float(np.mean([row["eval_accuracy"] for row in accuracies]))
            self._search.report(number, accuracies[0]["epoch"], accuracy)

    def _programs_of(self, cohort: Cohort) -> Programs:
        """Compiled once for each shape and size, unless too many others came in between."""
        mesh = cohort.mesh()
        key = assemble.shape(cohort.configs[0]), len(cohort)
        if key in self._programs:
            programs = self._programs.pop(key)
            programs.populate(cohort.members())
        else:
            while len(self._programs) >= _KEPT_PROGRAMS:
                del self._programs[next(iter(self._programs))]
                jax.clear_caches()  # what was traced for them
            if mesh not in self._placed:
                train_data, eval_data = self._data
                self._placed[mesh] = on_devices(train_data, mesh), on_devices(eval_data, mesh)
            programs = cohort.programs(mesh, *self._placed[mesh])
        self._programs[key] = programs  # the newest last
        return programs

    def _finish(self, trial: Trial, outcome: Outcome, *, halved: bool) -> None:
        """Tells a trial's result."""
        config = self._configured(trial)
        params, receptive_field = _size(config)
        rows = outcome.rows
        seeds = range(config.seed, config.seed + config.num_seeds)
        record = {
            "trial": trial.number,
            "settings": self._space.settings(trial.values),
            "params": params,
            "receptive_field": receptive_field,
            **scores.of_seeds(rows, seeds),
            "epochs": rows[-1]["epoch"],
            "seconds": outcome.seconds,
        }
        if self._search.finish(trial.number, record, halved=halved):
            records = self._search.records()
            self._leave(records)
            self._board.finished(record, records)


def check(config: Config, train_size: int, max_params: int | None) -> None:
    """Whether ``config`` can be trained as a trial.

    Raises:
      UserError: where it cannot.
    """
    validate(config)
    Cohort.of([config], train_size, [0]).mesh()
    if max_params and (params := _size(config)[0]) > max_params:
        raise UserError(f"{params:,} parameters are more than --max_params {max_params:,}")


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"{shown}… ({len(numbers)})" if len(numbers) > 4 else shown


def _size(config: Config) -> tuple[int, int]:
    """Parameters and receptive field of the network."""
    layers = analyze.summarize(models.build(architecture(config)))
    return sum(layer.params for layer in layers), layers[-1].receptive_field
