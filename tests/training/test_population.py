"""Members and populations: what is a number, and what shapes a program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist.training import population
from jaxmnist.training.augment import Bounds
from jaxmnist.training.optim import Schedule
from jaxmnist.training.population import Member

RATES_T1, MOMENTA_T1 = np.linspace(0.1, 0, 4), np.full(4, 0.9)


def member(seed: int, **numbers: Any) -> Member:
    return Member(seed, Schedule(RATES_T1 * (seed + 1), MOMENTA_T1), **numbers)


def test_stack():
    stacked = population.stack(
        [member(seed, weight_decay=seed / 10, dropout=0.1) for seed in (0, 2)]
    )
    np.testing.assert_array_equal(stacked.seed, np.array([0, 2], np.uint32))
    np.testing.assert_allclose(stacked.schedule.learning_rate_T1, [RATES_T1, 3 * RATES_T1])
    np.testing.assert_allclose(stacked.weight_decay, [0, 0.2])
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(stacked)} == {
        np.dtype(np.uint32),
        np.dtype(np.float32),
    }
    assert len(jax.tree.leaves(stacked)) == 5  # seed, learning rate, momentum, decay, dropout


def test_large_seeds_stay_what_they_are():
    stacked = population.stack([member(2**31 - 1), member(2**31 - 2)])
    assert np.asarray(stacked.seed).tolist() == [2**31 - 1, 2**31 - 2]


def test_numbers_are_as_wide_as_jax_makes_them():
    with jax.enable_x64(True):
        stacked = population.stack([member(0)])
    assert np.asarray(stacked.schedule.learning_rate_T1).dtype == np.float64
    assert jnp.asarray(stacked.weight_decay).dtype == np.float32  # without x64


@pytest.mark.parametrize(
    "fields",
    [
        {"label_smoothing": 0.1},
        {"dropout": 0.1},
        *({"augment": Bounds(**{name: 0.1})} for name in Bounds._fields),
    ],
    ids=str,
)
def test_members_that_lack_something_else_share_no_program(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"None|structure"):
        population.stack([member(0), member(1, **fields)])
    alone = population.stack([member(0)])
    assert alone.label_smoothing is alone.dropout is None
    assert alone.augment == Bounds()
