"""Schedules against the published columns, optimizers against PyTorch's formulas in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import published
from jaxmnist.config import Config, default_config
from jaxmnist.runs import assemble
from jaxmnist.training import optim


def recipe(**fields) -> Config:
    config = default_config()
    config.update_from_flattened_dict(fields)
    return config


schedule_of = assemble.schedule

ONECYCLE = {
    "optimizer.learning_rate": 0.3,
    "schedule.name": "onecycle",
    "schedule.div_factor": 10.0,
    "schedule.final_div_factor": 100.0,
}
EFFICIENT = {
    "num_epochs": 20,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 2e-3,
    "schedule.name": "step",
    "schedule.step_size": 7,
    "schedule.gamma": 0.1,
}


@pytest.mark.parametrize(
    ("name", "fields", "steps_per_epoch", "decimals"),
    [
        ("model1", ONECYCLE, 469, 4),
        ("model2", ONECYCLE, 469, 4),
        ("model3", ONECYCLE, 469, 4),
        ("efficient", EFFICIENT, 391, 6),
    ],
)
def test_published_learning_rates_to_every_printed_decimal(name, fields, steps_per_epoch, decimals):
    schedule = schedule_of(recipe(**fields), steps_per_epoch)
    epochs = published.load_all()[name]["epochs"]
    after_epoch = [schedule.learning_rate_T1[e["epoch"] * steps_per_epoch] for e in epochs]
    assert np.round(after_epoch, decimals).tolist() == [e["learning_rate"] for e in epochs]


def test_onecycle_landmarks():
    schedule = schedule_of(recipe(**ONECYCLE), 469)
    total = 15 * 469
    peak = 0.2 * total - 1  # 1406: the phases end one step earlier than optax's
    assert len(schedule.learning_rate_T1) == len(schedule.momentum_T1) == total + 1
    for step, rate, momentum in (
        (0, 0.03, 0.95),
        (int(peak), 0.3, 0.85),
        (total - 1, 0.0003, 0.95),
    ):
        assert schedule.learning_rate_T1[step] == pytest.approx(rate, rel=1e-12)
        assert schedule.momentum_T1[step] == pytest.approx(momentum, rel=1e-12)
    # Halfway up a cosine is the mean of its ends; momentum mirrors the learning rate.
    assert schedule.learning_rate_T1[703] == pytest.approx(0.165, rel=1e-12)
    assert schedule.momentum_T1[703] == pytest.approx(0.9, rel=1e-12)
    assert schedule.learning_rate_T1.argmax() == schedule.momentum_T1.argmin() == 1406


def test_onecycle_divides_the_rate_as_torch_does():
    config = recipe(**{"optimizer.learning_rate": 0.005, "schedule.name": "onecycle"})
    schedule = schedule_of(config, 391)
    assert schedule.learning_rate_T1[0] == pytest.approx(0.005 / 25)
    assert schedule.learning_rate_T1[15 * 391 - 1] == pytest.approx(0.005 / 25 / 1e4)


@pytest.mark.parametrize("total", [1, 2, 5, 10])
def test_onecycle_of_very_short_runs_is_finite(total):
    schedule = schedule_of(recipe(**ONECYCLE, num_epochs=1), total)
    chex.assert_tree_all_finite(schedule)
    assert schedule.learning_rate_T1[total - 1] == pytest.approx(0.0003)


def test_cosine_changes_once_an_epoch():
    fields = {"optimizer.learning_rate": 1e-3, "schedule.name": "cosine", "num_epochs": 20}
    rates = schedule_of(recipe(**fields), 391).learning_rate_T1
    assert rates[0] == rates[390] == 1e-3
    assert rates[10 * 391] == pytest.approx(5e-4)
    assert rates[15 * 391] == pytest.approx(1e-3 * (1 - np.sqrt(0.5)) / 2)
    assert rates[20 * 391] == pytest.approx(0, abs=1e-18)
    assert len(np.unique(rates)) == 21


def test_step_and_constant():
    fields = {"optimizer.learning_rate": 1e-3, "schedule.name": "step", "num_epochs": 14}
    schedule = schedule_of(recipe(**fields), 469)
    epochs = schedule.learning_rate_T1[::469]
    np.testing.assert_allclose(epochs, [1e-3] * 5 + [5e-4] * 5 + [2.5e-4] * 5, rtol=1e-12)
    constant = schedule_of(recipe(**{"optimizer.momentum": 0.7}), 10)
    assert set(constant.learning_rate_T1) == {0.01}
    assert set(constant.momentum_T1) == {0.7}


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "onecycle"])
def test_more_epochs_change_only_schedules_that_span_them(name):
    """Where the table of a shorter run is the beginning of a longer one's, the run may grow."""
    short, long = (
        schedule_of(recipe(**{"schedule.name": name, "num_epochs": epochs}), 10)
        for epochs in (6, 9)
    )
    steps = 6 * 10
    same = np.array_equal(short.learning_rate_T1[:steps], long.learning_rate_T1[:steps])
    same &= np.array_equal(short.momentum_T1[:steps], long.momentum_T1[:steps])
    assert optim.spans_all_epochs(name) is not same


def torch_sgd(gradients, schedule, weight_decay, nesterov):
    """``torch.optim.SGD`` as its documentation writes it, in float64."""
    parameter, buffer = 1.0, None
    for step, gradient in enumerate(gradients):
        momentum = schedule.momentum_T1[step]
        gradient = gradient + weight_decay * parameter
        buffer = gradient if buffer is None else momentum * buffer + gradient
        update = gradient + momentum * buffer if nesterov else buffer
        parameter -= schedule.learning_rate_T1[step] * update
        yield parameter


def torch_adam(gradients, schedule, weight_decay, _):
    """``torch.optim.Adam`` with ``amsgrad=False``, in float64."""
    parameter, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate(gradients):
        beta1, beta2 = schedule.momentum_T1[step], 0.999
        gradient = gradient + weight_decay * parameter
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient**2
        mean_hat = mean / (1 - beta1 ** (step + 1))
        square_hat = square / (1 - beta2 ** (step + 1))
        parameter -= schedule.learning_rate_T1[step] * mean_hat / (np.sqrt(square_hat) + 1e-8)
        yield parameter


@pytest.mark.parametrize("schedule_name", ["constant", "onecycle"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "nesterov", "reference"),
    [("sgd", False, torch_sgd), ("sgd", True, torch_sgd), ("adam", False, torch_adam)],
)
def test_optimizers_follow_torch(name, nesterov, reference, weight_decay, schedule_name):
    steps = 30
    config = recipe(
        **{
            "num_epochs": 1,
            "optimizer.name": name,
            "optimizer.nesterov": nesterov,
            "optimizer.weight_decay": weight_decay,
            "schedule.name": schedule_name,
        }
    )
    schedule = schedule_of(config, steps)
    make = assemble.engine(config).make_optimizer
    gradients = np.random.RandomState(0).normal(size=steps)

    @jax.jit
    def update(parameter, state, gradient, *numbers):
        optimizer = make(*numbers, weight_decay)
        change, state = optimizer.update(gradient, state, parameter)
        return optax.apply_updates(parameter, change), state

    parameter = jnp.float32(1)
    state = make(0.1, 0.9, weight_decay).init(parameter)
    expected_T = reference(gradients, schedule, weight_decay, nesterov)
    for step, (gradient, expected) in enumerate(zip(gradients, expected_T, strict=True)):
        numbers = (jnp.float32(table_T1[step]) for table_T1 in schedule)
        parameter, state = update(parameter, state, jnp.float32(gradient), *numbers)
        chex.assert_trees_all_close(parameter, expected, rtol=2e-6, atol=1e-6)
