"""From a configuration to what training takes: what shapes a program, and what is only a number."""

import functools
import math
from collections.abc import Hashable

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxmnist.config import Config, architecture, flatten
from jaxmnist.errors import UserError
from jaxmnist.networks import analyze, models
from jaxmnist.networks.layers import BatchNorm
from jaxmnist.training import optim, parallel
from jaxmnist.training.augment import Bounds
from jaxmnist.training.engine import Engine
from jaxmnist.training.population import Member
from jaxmnist.training.programs import Batching, plan_epoch

_AUGMENT = tuple(f"augment.{name}" for name in Bounds._fields)
_NUMBERS = {
    "seed",
    "dropout",
    "label_smoothing",
    "optimizer.learning_rate",
    "optimizer.momentum",
    "optimizer.weight_decay",
    *_AUGMENT,
}
_OPTIONAL = ("dropout", "label_smoothing", *_AUGMENT)


def shape(config: Config) -> Hashable:
    """What shapes the programs: configurations of one shape can be members of one population."""
    flat = flatten(config)
    there = (bool(flat[name]) for name in _OPTIONAL)
    shaping = ((n, v) for n, v in flat.items() if n not in _NUMBERS and "schedule." not in n)
    return (*there, *sorted(shaping))


def engine(config: Config) -> Engine:
    """What trains ``config``, for batches that are not split."""
    optimizer = optim.adam
    if config.optimizer.name == "sgd":
        optimizer = functools.partial(optim.sgd, nesterov=config.optimizer.nesterov)
    dtype = jnp.dtype(config.precision)
    return Engine(functools.partial(models.build, architecture(config), dtype=dtype), optimizer)


def batching(config: Config) -> Batching:
    """How ``config`` cuts an epoch into batches."""
    return Batching(config.batch_size, config.drop_remainder, config.steps_per_epoch)


def steps_per_epoch(config: Config, train_size: int) -> int:
    """The optimizer steps of an epoch over ``train_size`` images.

    Raises:
      UserError: where the configuration asks for more than there are, or for none, or where a
        batch norm would have a single value to train with, which torch.nn refuses as well.
    """
    segments = plan_epoch(train_size, batching(config))
    if any(segment.batch_size == 1 for segment in segments) and _norms_single_values(config):
        raise UserError(
            f"config.batch_size is {config.batch_size}: {train_size:,} images leave a batch of one "
            "for the end, which a batch norm on maps of 1×1 cannot take; choose another, or set "
            "config.drop_remainder"
        )
    return sum(segment.steps for segment in segments)


def _norms_single_values(config: Config) -> bool:
    """Whether a batch norm of the network has one value of an image."""
    network = models.build(architecture(config))
    return any(
        isinstance(layer, BatchNorm) and not layer.oriented and math.prod(row.output_shape[1:]) == 1
        for layer, row in zip(network.layers, analyze.summarize(network), strict=True)
    )


def mesh(config: Config, members: int | None = None) -> Mesh:
    """The devices of ``members`` networks, by default those of a run."""
    size = config.num_seeds if members is None else members
    return parallel.make_mesh(size, config.batch_size, **config.mesh)


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
        augment=Bounds(**{name: bound or None for name, bound in config.augment.items()}),
    )
