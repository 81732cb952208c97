"""From a configuration to what training takes: what shapes a program, and what is only a number."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmnist import data
from jaxmnist.config import Config
from jaxmnist.networks import models
from jaxmnist.training import optim, parallel, population
from jaxmnist.training.engine import Engine
from jaxmnist.training.population import Member
from jaxmnist.training.programs import Batching, Programs, plan_epoch


def engine(config: Config) -> Engine:
    """What trains ``config``, for batches that are not split."""
    optimizer = optim.adam
    if config.optimizer.name == "sgd":
        optimizer = functools.partial(optim.sgd, nesterov=config.optimizer.nesterov)
    dtype = jnp.dtype(config.precision)
    return Engine(functools.partial(models.build, config.model, dtype=dtype), optimizer)


def batching(config: Config) -> Batching:
    """How ``config`` cuts an epoch into batches."""
    return Batching(config.batch_size, config.drop_remainder, config.steps_per_epoch)


def steps_per_epoch(config: Config, train_size: int) -> int:
    """The optimizer steps of an epoch over ``train_size`` images.

    Raises:
      UserError: where the configuration asks for more than there are, or for none.
    """
    return sum(segment.steps for segment in plan_epoch(train_size, batching(config)))


def mesh(config: Config) -> Mesh:
    """The devices of a run."""
    return parallel.make_mesh(config.num_seeds, config.batch_size, **config.mesh)


def schedule(config: Config, steps_per_epoch: int) -> optim.Schedule:
    """The schedule of ``config``, with ``optimizer.learning_rate`` and ``optimizer.momentum``."""
    return optim.make_schedule(
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        learning_rate=config.optimizer.learning_rate,
        momentum=config.optimizer.momentum,
        **config.schedule,
    )


def member(config: Config, schedule: optim.Schedule, seed: int) -> Member:
    """The numbers of ``config``'s run with ``seed``."""
    return Member(
        seed,
        schedule,
        weight_decay=config.optimizer.weight_decay,
        label_smoothing=config.label_smoothing or None,
        dropout=config.dropout or None,
        rotate_degrees=config.augment.rotate_degrees or None,
        translate=config.augment.translate or None,
    )


def members(configs: Sequence[Config], schedules: Sequence[optim.Schedule]) -> Member:
    """A population: the seeds of the first configuration, those of the second…"""
    return population.stack(
        [
            member(config, schedule, config.seed + index)
            for config, schedule in zip(configs, schedules, strict=True)
            for index in range(config.num_seeds)
        ]
    )


def programs(
    configs: Sequence[Config],
    schedules: Sequence[optim.Schedule],
    mesh: Mesh,
    train_set: data.Dataset,
    eval_set: data.Dataset,
) -> Programs:
    """The programs of the population of ``configs``, which differ in numbers only."""
    first = configs[0]
    population = members(configs, schedules)
    return Programs(engine(first), population, batching(first), mesh, train_set, eval_set)
