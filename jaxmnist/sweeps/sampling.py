"""Which settings come next: Optuna's samplers, and what they have left of a space."""

import random
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from jaxmnist.sweeps.space import Choices, Space, Value

SAMPLERS = ("grid", "random", "qmc", "tpe")
REFUSED = "refused"  # the attribute of a trial that says why it is not to be trained
_FEW = 10_000  # points


class Order(NamedTuple):
    """What is wanted of a search."""

    space: Space
    sampler: str
    trials: int
    seed: int
    """Of the sampler."""

    @property
    def is_grid(self) -> bool:
        return self.sampler == "grid"

    @property
    def is_small(self) -> bool:
        """Whether all points can be listed that a sampler draws from; a grid's are anyway."""
        return not self.is_grid and self.space.size <= _FEW

    def make_sampler(self, beginning: int) -> optuna.samplers.BaseSampler:
        """The sampler; where it would draw the same again, another at each ``beginning``."""
        if self.sampler == "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.QMCSampler(scramble=True, seed=self.seed)
        seed = (self.seed + beginning) % 2**31
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def is_cut_short(self, trial: FrozenTrial) -> bool:
        """Whether it has not got all its values: it is being asked for, or whoever asked died."""
        return trial.params.keys() != self.space.dimensions.keys()

    def settings(self, trial: FrozenTrial) -> dict[str, Value] | None:
        """Its values; None for one that was cut short before it had them all."""
        if not self.is_cut_short(trial):
            return trial.params
        return trial.system_attrs.get("fixed_params")

    def is_too_much(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Whether one with a lower number has the same values, or there are enough of those."""
        before = [t for t in trials if t.number < trial.number]
        if any(_counts(t) and self.settings(t) == trial.params for t in before):
            return True
        begun = [t for t in before if t.state not in (TrialState.FAIL, TrialState.WAITING)]
        return not self.is_grid and len(begun) >= self.trials

    def lacks(self, live: Sequence[FrozenTrial]) -> int:
        """How many more are to be drawn than are ``live``; a grid's points are not drawn."""
        return 0 if self.is_grid else max(0, self.trials - len(live))

    def untried(self, trials: Sequence[FrozenTrial]) -> list[dict[str, Value]]:
        """The points of a finite space that no trial has; a grid's in order, others shuffled."""

        def key(settings: Mapping[str, Value]) -> tuple[Value, ...]:
            return tuple(settings[name] for name in self.space.dimensions)

        there = {
            key(settings)
            for trial in trials
            if _counts(trial)
            if (settings := self.settings(trial))
        }
        points = [values for values in self.space.points() if key(values) not in there]
        if not self.is_grid:
            random.Random(len(trials)).shuffle(points)
        return points


def suggest(handle: optuna.trial.Trial, space: Space) -> None:
    """Gets a trial the values that it lacks."""
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Choices):
            handle.suggest_categorical(name, dimension.values)
        elif dimension.whole:
            low, high = int(dimension.low), int(dimension.high)
            handle.suggest_int(name, low, high, step=dimension.step, log=dimension.log)
        else:
            handle.suggest_float(name, dimension.low, dimension.high, log=dimension.log)


def _counts(trial: FrozenTrial) -> bool:
    """Whether nobody is to try its settings again."""
    return trial.state != TrialState.FAIL or REFUSED in trial.user_attrs
