"""The peers that the speed benchmarks run side by side; PyTorch's are in torch_peers.py.

All train the same network on the same images in memory, in an order that is shuffled beforehand,
with the recipe's augmentation, dropout, optimizer and batch size. Each is a function that prepares
everything and returns another one, which runs so many steps and waits for the last.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from machine import hardware
from torch_peers import A_SEED_EACH, ALONE, ONE_NETWORK, Run

from jaxmnist import data
from jaxmnist.config import Config
from jaxmnist.networks import layers, models, prng
from jaxmnist.runs import assemble
from jaxmnist.runs.cohort import Cohort
from jaxmnist.training import augment

__all__ = ["ALONE", "A_SEED_EACH", "ONE_NETWORK", "Run", "flax", "hardware", "jaxmnist"]


# jaxmnist.


def other_settings(config: Config, count: int) -> list[Config]:
    """As many runs, of one seed each, in which all numbers differ."""
    configs = []
    for number in range(count):
        config = config.copy_and_resolve_references()
        config.num_seeds, config.seed = 1, number
        config.optimizer.learning_rate *= 0.99
        config.label_smoothing *= 0.99
        config.augment.rotate_degrees *= 0.99
        configs.append(config)
    return configs


def jaxmnist(configs: Config | list[Config], train: data.Dataset, steps: int) -> Run:
    """The programs of ``jaxmnist.main``, for all seeds of a run, or of a sweep's population."""
    configs = configs if isinstance(configs, list) else [configs]
    for config in configs:
        config.steps_per_epoch = steps
    cohort = Cohort.of(configs, len(train))
    evaluation = data.Dataset(train.images_NHW[:1], train.labels_N[:1])  # never used
    programs = cohort.programs(cohort.mesh(), train, evaluation)
    states = programs.init()
    order_SN = programs.epoch_order(0)

    def run() -> None:
        nonlocal states
        for segment in programs.segments:
            states, metrics = programs.train(states, order_SN, segment)
            np.asarray(metrics.loss)

    return run


# Stock Flax.


class _StockNetwork(nn.Module):
    """The network out of flax.linen's own layers, NHWC."""

    layers: tuple[layers.Layer, ...]

    @nn.compact
    def __call__(self, images_NHW: jax.Array) -> jax.Array:
        x = ((images_NHW.astype(jnp.float32) / 255 - models.MEAN) / models.STD)[..., None]
        for layer in self.layers:
            match layer:
                case layers.Conv(features=features, kernel_size=k, padding=p, use_bias=use_bias):
                    x = nn.Conv(features, (k, k), padding=p, use_bias=use_bias)(x)
                case layers.BatchNorm():
                    x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
                case layers.Relu():
                    x = nn.relu(x)
                case layers.Dropout(rate=float(rate), whole_channels=whole):
                    shared = (1, 2) if whole else ()
                    x = nn.Dropout(rate, broadcast_dims=shared, deterministic=False)(x)
                case layers.MaxPool():
                    x = nn.max_pool(x, (2, 2), (2, 2))
                case layers.GlobalAvgPool():
                    x = x.mean((1, 2), keepdims=True)
                case layers.GlobalAvgMaxPool():
                    x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
                case layers.Flatten():
                    x = x.reshape(len(x), -1)
                case layers.Linear(features=features, use_bias=use_bias):
                    x = nn.Dense(features, use_bias=use_bias)(x)
                case _:
                    raise TypeError(layer)
        return x


def flax(config: Config, train: data.Dataset, steps: int) -> Run:
    """flax.linen as everyone writes it: one jitted step, called from Python.

    That is its fastest form on a CPU, where XLA's convolutions are slow inside ``lax.scan``.
    Optimizer, random numbers and augmentation are jaxmnist's.
    """
    network = _StockNetwork(models.NETWORKS[config.model](config.dropout))
    engine, schedule = assemble.engine(config), assemble.schedule(config, 10**4)
    member = assemble.member(config, schedule, seed=0)
    images_NHW, labels_N = jnp.asarray(train.images_NHW), jnp.asarray(train.labels_N)
    root = prng.key(0)
    variables = jax.jit(network.init)({"params": root, "dropout": root}, images_NHW[:2])
    variables["params"] = dict(variables["params"])

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: Any, order_N: jax.Array, step: jax.Array) -> tuple[Any, jax.Array]:
        variables, opt_state = state
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(root, step))
        index_B = jax.lax.dynamic_slice(order_N, (step * config.batch_size,), (config.batch_size,))
        pixel_HWB = None
        if any(bound is not None for bound in member.augment):
            drawn = augment.random_transforms(augment_key, len(index_B), member.augment)
            pixel_HWB = augment.source_pixels(drawn)
        batch_HWB = augment.gather(images_NHW, index_B, pixel_HWB)

        def loss_fn(params):
            logits_BK, updates = network.apply(
                {**variables, "params": params},
                batch_HWB.transpose(2, 0, 1),
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            targets_BK = optax.smooth_labels(
                jax.nn.one_hot(labels_N[index_B], 10), config.label_smoothing
            )
            return optax.softmax_cross_entropy(logits_BK, targets_BK).mean(), updates

        (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        optimizer = engine.optimizer(member, step)
        changes, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], changes)
        return ({"params": params, **updates}, opt_state), loss

    state = variables, engine.optimizer(member).init(variables["params"])
    order_N = jax.random.permutation(root, len(images_NHW))

    def run() -> None:
        nonlocal state
        loss = jnp.zeros(())
        for step in range(steps):
            state, loss = train_step(state, order_N, jnp.int32(step))
        loss.block_until_ready()

    return run
