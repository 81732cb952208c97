"""What is left of a space, by trials in every state."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from jaxmnist.sweeps.sampling import Order, suggest
from jaxmnist.sweeps.space import Space, parse

SPACE = parse({"batch_size": "16..18", "optimizer.nesterov": "true,false"})


def point(size: int, nesterov: bool) -> dict[str, Any]:
    return {"batch_size": size, "optimizer.nesterov": nesterov}


@pytest.fixture
def trials() -> list[FrozenTrial]:
    """Two that run, one refused, one that failed, one without values, and one that waits."""
    study = optuna.create_study(direction="maximize")
    for size, nesterov in ((16, True), (16, True), (17, True), (18, True)):
        study.enqueue_trial(point(size, nesterov))
        suggest(study.ask(), SPACE)
    study._storage.set_trial_user_attr(study.trials[2]._trial_id, "refused", "too large")
    for number in (2, 3):
        study.tell(number, state=TrialState.FAIL)
    study.ask()
    study.enqueue_trial(point(18, False))
    return study.trials


def test_what_is_untried(trials: list[FrozenTrial]):
    left = [point(16, False), point(17, False), point(18, True)]
    assert Order(SPACE, "grid", 6, 0).untried(trials) == left
    shuffled = Order(SPACE, "tpe", 6, 0).untried(trials)
    assert sorted(map(str, shuffled)) == sorted(map(str, left))


@pytest.mark.parametrize(
    ("sampler", "wanted", "expected"),
    [
        ("grid", 6, [False, True, False, False]),
        ("random", 6, [False, True, False, False]),
        ("random", 2, [False, True, True, True]),
    ],
)
def test_which_are_too_much(
    sampler: str, wanted: int, expected: list[bool], trials: list[FrozenTrial]
):
    """The same values again; and the third one of two, whatever became of it."""
    order = Order(SPACE, sampler, wanted, 0)
    assert [order.is_too_much(trial, trials) for trial in trials[:4]] == expected


def test_values_of_those_that_wait_are_known(trials: list[FrozenTrial]):
    order = Order(SPACE, "grid", 6, 0)
    assert [order.settings(t) for t in trials[3:]] == [point(18, True), None, point(18, False)]
    assert [order.is_cut_short(t) for t in trials[3:]] == [False, True, True]


@pytest.mark.parametrize(
    ("sampler", "space", "small", "lacking"),
    [
        ("grid", SPACE, False, 0),
        ("tpe", SPACE, True, 1),
        ("tpe", parse({"batch_size": "1..10001"}), False, 1),
        ("random", parse({"dropout": "0..0.5"}), False, 1),
    ],
)
def test_what_is_lacking(
    sampler: str, space: Space, small: bool, lacking: int, trials: list[FrozenTrial]
):
    order = Order(space, sampler, len(trials) + 1, 0)
    assert order.is_small is small
    assert order.lacks(trials) == lacking
    assert order.lacks([*trials, *trials]) == 0
