"""How far a sweep's trials have come, and how their states get from one population to the next."""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxmnist.runs import assemble, fit
from jaxmnist.runs.checkpoint import Checkpoints, Record
from jaxmnist.runs.cohort import Cohort
from jaxmnist.runs.workdir import Row
from jaxmnist.training import hosts
from jaxmnist.training.engine import TrainState, over_members
from jaxmnist.training.programs import Programs


class Outcome(NamedTuple):
    """How far a trial has come, and where its states lie."""

    rows: list[Row]
    cohort: Cohort
    folder: Path
    place: int
    """Among the trials of the cohort."""
    seconds: float
    """Its share of the training."""

    @property
    def accuracy(self) -> float:
        """Percent, mean over the seeds, after the newest epoch."""
        newest = self.rows[-1]["epoch"]
        return float(np.mean([r["eval_accuracy"] for r in self.rows if r["epoch"] == newest]))


def gathered(cohort: Cohort, programs: Programs, before: Mapping[int, Outcome]) -> fit.Stage:
    """The states of the cohort's trials out of the populations they were in before."""
    seeds = cohort.configs[0].num_seeds
    outcomes = [before[number] for number in cohort.trials or ()]
    parts: dict[int, TrainState] = {}
    for folder, same in itertools.groupby(
        sorted(enumerate(outcomes), key=lambda entry: str(entry[1].folder)),
        key=lambda entry: entry[1].folder,
    ):
        population = list(same)
        states = _states_in(population[0][1].cohort, folder)
        for place, outcome in population:
            first = outcome.place * seeds
            parts[place] = jax.tree.map(lambda leaf, at=first: leaf[at : at + seeds].copy(), states)
    rows = [row for outcome in outcomes for row in outcome.rows]
    joined = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *(part for _, part in sorted(parts.items()))
    )
    states = jax.tree.map(
        lambda leaf, abstract: hosts.place(leaf, abstract.sharding),
        joined,
        programs.abstract_states,
    )
    rows.sort(key=lambda row: row["epoch"])  # as if they had always been together
    return fit.Stage(states, Record(rows[-1]["epoch"], rows, None, cohort.description))


def _states_in(cohort: Cohort, folder: Path) -> TrainState:
    """The newest states of a population, in host memory."""
    engine = assemble.engine(cohort.configs[0])
    abstract_states = jax.eval_shape(over_members(engine.init), cohort.members())
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        return hosts.fetch(checkpoints.restore(checkpoints.steps()[-1], abstract_states))
