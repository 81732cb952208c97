"""A population as a run or a sweep knows it: configurations that differ in numbers only."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

from jax.sharding import Mesh

from jaxmnist import data
from jaxmnist.config import Config, flatten
from jaxmnist.runs import assemble
from jaxmnist.training import optim, population
from jaxmnist.training.engine import Images
from jaxmnist.training.population import Member
from jaxmnist.training.programs import Programs, on_devices


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Who trains side by side: the seeds of the first configuration, those of the second…

    All have the same ``num_seeds`` and the same ``assemble.shape``.
    """

    configs: tuple[Config, ...]
    schedules: tuple[optim.Schedule, ...]
    trials: tuple[int, ...] | None = None
    """The numbers of a sweep's trials, one a configuration; None for a plain run."""

    @classmethod
    def of(
        cls, configs: Sequence[Config], train_size: int, trials: Sequence[int] | None = None
    ) -> Self:
        """Those of ``configs`` on ``train_size`` images.

        Raises:
          UserError: for schedules that cannot be tabulated, and batches that cannot be made.
        """
        steps = assemble.steps_per_epoch(configs[0], train_size)
        schedules = tuple(assemble.schedule(config, steps) for config in configs)
        return cls(tuple(configs), schedules, None if trials is None else tuple(trials))

    def __len__(self) -> int:
        """The number of members."""
        return len(self.configs) * self._seeds

    @property
    def _seeds(self) -> int:
        return self.configs[0].num_seeds

    @property
    def num_epochs(self) -> int:
        return self.configs[0].num_epochs

    @property
    def every_epochs(self) -> int:
        """Epochs between checkpoints."""
        return self.configs[0].checkpoint.every_epochs

    @functools.cached_property
    def ids(self) -> tuple[dict[str, int], ...]:
        """What each member's rows begin with: its seed, in a sweep after the trial's number."""
        trials = self.trials or (None,) * len(self.configs)
        return tuple(
            ({} if trial is None else {"trial": trial}) | {"seed": config.seed + index}
            for trial, config in zip(trials, self.configs, strict=True)
            for index in range(self._seeds)
        )

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint says that it belongs to."""
        if self.trials is None:
            return flatten(self.configs[0])
        numbered = zip(self.trials, self.configs, strict=True)
        return {str(trial): flatten(config) for trial, config in numbered}

    def config_of(self, member: int) -> Config:
        return self.configs[member // self._seeds]

    def schedule_of(self, member: int) -> optim.Schedule:
        return self.schedules[member // self._seeds]

    def members(self) -> Member:
        """Their numbers, in host memory."""
        return population.stack(
            [
                assemble.member(self.config_of(index), self.schedule_of(index), ids["seed"])
                for index, ids in enumerate(self.ids)
            ]
        )

    def mesh(self) -> Mesh:
        """The devices they train on; those of a sweep need not share ``mesh.seed`` of them evenly.

        Raises:
          UserError: where the devices are too few, or cannot share members or batch evenly.
        """
        config = self.configs[0]
        if self.trials is not None and config.mesh.seed:
            config = config.copy_and_resolve_references()
            config.mesh.seed = math.gcd(config.mesh.seed, len(self))
        return assemble.mesh(config, len(self))

    def programs(
        self, mesh: Mesh, train_set: data.Dataset | Images, eval_set: data.Dataset | Images
    ) -> Programs:
        """Their programs; the images are brought to the devices unless they are there."""
        config = self.configs[0]
        sets = (on_devices(images, mesh) for images in (train_set, eval_set))
        batching = assemble.batching(config)
        return Programs(assemble.engine(config), self.members(), batching, mesh, *sets)
