"""Optimizers and learning-rate schedules with PyTorch's exact semantics, out of optax parts.

A schedule is a table, computed once in float64 with PyTorch's own formulas: evaluated in float32
inside the step, the cosine at the end of one-cycle loses two digits to cancellation.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxmnist.errors import UserError

ADAM_BETA2 = 0.999
MAX_STEPS = 10_000_000

Number = float | jax.Array


class Schedule(NamedTuple):
    """What each optimizer step uses; T is the number of steps.

    Entry t belongs to step t, counted from 0; entry T is what the last scheduler step leaves.
    """

    learning_rate_T1: np.ndarray
    """float64 (T + 1,)."""
    momentum_T1: np.ndarray
    """float64 (T + 1,). SGD's momentum or Adam's beta1."""


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


_OF_ONE_SCHEDULE = {
    "schedule.step_size": "step",
    "schedule.gamma": "step",
    "schedule.pct_start": "onecycle",
    "schedule.div_factor": "onecycle",
    "schedule.final_div_factor": "onecycle",
    "schedule.base_momentum": "onecycle",
    "schedule.max_momentum": "onecycle",
}


def uses(name: str, field: str) -> bool:
    """Whether the schedule called ``name`` depends on a field of the configuration."""
    if field == "optimizer.momentum":
        return name != "onecycle"
    return _OF_ONE_SCHEDULE.get(field, name) == name


def spans_all_epochs(name: str) -> bool:
    """Whether the schedule depends on ``num_epochs``, so that more epochs make it another one."""
    return name in ("cosine", "onecycle")


def make_schedule(
    name: str,
    *,
    num_epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    momentum: float,
    step_size: int,
    gamma: float,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
    base_momentum: float,
    max_momentum: float,
) -> Schedule:
    """The schedule called ``name`` over ``num_epochs`` epochs; see ``config.FIELDS``.

    'step' is torch's ``StepLR``, 'cosine' its ``CosineAnnealingLR``, both stepped once an epoch.
    For 'onecycle', ``learning_rate`` is the peak (torch's ``max_lr``) and the momentum goes from
    ``max_momentum`` down to ``base_momentum`` and back (``cycle_momentum=True``); the others leave
    the momentum alone.

    Raises:
      UserError: where the steps are too many to tabulate, or the learning rate becomes infinite.
    """
    total_steps = num_epochs * steps_per_epoch
    if total_steps > MAX_STEPS:
        raise UserError(
            f"config.num_epochs is {num_epochs}: at {steps_per_epoch} steps each that makes "
            f"more than {MAX_STEPS:,} steps in total"
        )
    if name == "onecycle":
        first = learning_rate / div_factor
        wave = (total_steps, pct_start)
        return Schedule(
            _onecycle_wave(*wave, first, learning_rate, first / final_div_factor),
            _onecycle_wave(*wave, max_momentum, base_momentum, max_momentum),
        )
    epoch_T1 = np.arange(total_steps + 1) // steps_per_epoch
    with np.errstate(over="ignore"):
        factor_T1 = {
            "constant": lambda: np.ones(total_steps + 1),
            "step": lambda: gamma ** (epoch_T1 // step_size),
            "cosine": lambda: (1 + np.cos(np.pi * epoch_T1 / num_epochs)) / 2,
        }[name]()
        learning_rate_T1 = learning_rate * factor_T1
    if not np.isfinite(learning_rate_T1).all():
        raise UserError(
            f"config.schedule.gamma is {gamma}: the learning rate grows beyond all "
            "bounds, choose 1 or less"
        )
    return Schedule(learning_rate_T1, np.full(total_steps + 1, momentum))


def sgd(
    learning_rate: Number,
    momentum: Number,
    weight_decay: Number,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """``torch.optim.SGD`` with the numbers of one step, which may be traced."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum, nesterov=nesterov),
    )


def adam(
    learning_rate: Number, momentum: Number, weight_decay: Number
) -> optax.GradientTransformation:
    """``torch.optim.Adam`` with the numbers of one step, which may be traced.

    ``momentum`` is beta1; ``weight_decay`` is L2, not decoupled.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate, momentum, ADAM_BETA2),
    )
