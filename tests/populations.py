"""What several tests train: members and programs of a configuration."""

from jaxmnist import data
from jaxmnist.config import Config
from jaxmnist.runs import assemble
from jaxmnist.runs.cohort import Cohort
from jaxmnist.training.population import Member
from jaxmnist.training.programs import Programs


def member_of(config: Config, seed: int | None = None, steps_per_epoch: int = 100) -> Member:
    """The numbers of one of the run's seeds, the first by default."""
    schedule = assemble.schedule(config, steps_per_epoch)
    return assemble.member(config, schedule, config.seed if seed is None else seed)


def members_of(config: Config, steps_per_epoch: int = 100) -> Member:
    """The numbers of all seeds of the run."""
    return Cohort((config,), (assemble.schedule(config, steps_per_epoch),)).members()


def programs_of(config: Config, train_set: data.Dataset, eval_set: data.Dataset) -> Programs:
    """The programs of a run on these images."""
    cohort = Cohort.of([config], len(train_set))
    return cohort.programs(cohort.mesh(), train_set, eval_set)
