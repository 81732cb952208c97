"""Optimizers and learning-rate schedules with PyTorch's exact semantics, out of optax parts.

A schedule is a table, computed once in float64 with PyTorch's own formulas: evaluated in float32
inside the step, the cosine at the end of one-cycle loses two digits to cancellation.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.config import Config
from jaxmnist.errors import UserError

ADAM_BETA2 = 0.999
MAX_STEPS = 10_000_000


class Schedule(NamedTuple):
    """What each optimizer step uses; T is the number of steps.

    Entry t belongs to step t, counted from 0; entry T is what the last scheduler step leaves.
    """

    learning_rate_T1: np.ndarray
    """float64 (T + 1,)."""
    momentum_T1: np.ndarray
    """float64 (T + 1,). SGD's momentum or Adam's beta1."""


def _constant(config: Config, epoch_T1: np.ndarray) -> np.ndarray:
    return np.full(len(epoch_T1), config.optimizer.learning_rate)


def _step(config: Config, epoch_T1: np.ndarray) -> np.ndarray:
    """``StepLR``, stepped once an epoch."""
    decays_T1 = epoch_T1 // config.schedule.step_size
    return config.optimizer.learning_rate * config.schedule.gamma**decays_T1


def _cosine(config: Config, epoch_T1: np.ndarray) -> np.ndarray:
    """``CosineAnnealingLR(T_max=num_epochs)``, stepped once an epoch."""
    phase_T1 = np.pi * epoch_T1 / config.num_epochs
    return config.optimizer.learning_rate * (1 + np.cos(phase_T1)) / 2


_PER_EPOCH: dict[str, Callable[[Config, np.ndarray], np.ndarray]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
}


def _onecycle_wave(total_steps: int, pct_start: float, low: float, high: float, last: float):
    """``OneCycleLR``'s two cosine phases low → high → last; they end at pct_start·T - 1 and T - 1.

    optax.cosine_onecycle_schedule ends them one step later and is not used for that reason.
    """
    peak, end = pct_start * total_steps - 1, total_steps - 1

    def anneal(start: float, stop: float, progress: float) -> float:
        return stop + (start - stop) / 2 * (1 + math.cos(math.pi * progress))

    def value(step: int) -> float:
        if step < peak:
            return anneal(low, high, step / peak)
        return anneal(high, last, (step - peak) / (end - peak))

    return np.array([value(step) for step in range(total_steps + 1)])


def spans_all_epochs(config: Config) -> bool:
    """Whether the schedule depends on ``num_epochs``, so that more epochs make it another one."""
    return config.schedule.name in ("cosine", "onecycle")


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """The schedule that ``config`` names, over ``config.num_epochs`` epochs.

    For 'onecycle', ``optimizer.learning_rate`` is the peak (torch's ``max_lr``) and the momentum
    goes from ``max_momentum`` down to ``base_momentum`` and back (``cycle_momentum=True``); the
    other schedules change once an epoch and leave the momentum alone.

    Raises:
      UserError: where the steps are too many to tabulate, or the learning rate becomes infinite.
    """
    total_steps = config.num_epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise UserError(
            f"config.num_epochs is {config.num_epochs}: at {steps_per_epoch} steps each that makes "
            f"more than {MAX_STEPS:,} steps in total"
        )
    if config.schedule.name == "onecycle":
        s, peak = config.schedule, config.optimizer.learning_rate
        first = peak / s.div_factor
        wave = (total_steps, s.pct_start)
        return Schedule(
            _onecycle_wave(*wave, first, peak, first / s.final_div_factor),
            _onecycle_wave(*wave, s.max_momentum, s.base_momentum, s.max_momentum),
        )
    epoch_T1 = np.arange(total_steps + 1) // steps_per_epoch
    with np.errstate(over="ignore"):
        learning_rate_T1 = _PER_EPOCH[config.schedule.name](config, epoch_T1)
    if not np.isfinite(learning_rate_T1).all():
        raise UserError(
            f"config.schedule.gamma is {config.schedule.gamma}: the learning rate grows beyond all "
            "bounds, choose 1 or less"
        )
    return Schedule(learning_rate_T1, np.full(total_steps + 1, config.optimizer.momentum))


def make_optimizer(config: Config, schedule: Schedule) -> optax.GradientTransformation:
    """``torch.optim.SGD`` or ``torch.optim.Adam`` with ``weight_decay`` as L2, not decoupled."""
    hyperparams = {
        "learning_rate": _lookup(schedule.learning_rate_T1),
        "b1" if config.optimizer.name == "adam" else "momentum": _lookup(schedule.momentum_T1),
    }
    if config.optimizer.name == "adam":
        optimizer = optax.inject_hyperparams(optax.adam)(**hyperparams, b2=ADAM_BETA2)
    else:
        static = {"nesterov": config.optimizer.nesterov}
        optimizer = optax.inject_hyperparams(optax.sgd, tuple(static))(**hyperparams, **static)
    return optax.chain(optax.add_decayed_weights(config.optimizer.weight_decay), optimizer)


def _lookup(table: np.ndarray) -> optax.Schedule:
    def schedule(count):
        return jnp.asarray(table)[count]

    return schedule
