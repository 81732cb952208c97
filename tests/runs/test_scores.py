"""What is said of several seeds, by hand."""

import json
import math

import pytest

from jaxmnist.runs.scores import of_seeds, summary


def test_the_last_epoch_and_the_best_of_each_seed():
    """Whatever the order of the rows; another seed's do not count."""
    curves = {3: [98.0, 99.0, 98.5], 4: [97.0, 96.0, 97.5], 5: [1.0, 2.0, 3.0]}
    rows = [
        {"seed": seed, "epoch": epoch + 1, "eval_accuracy": curve[epoch]}
        for epoch in range(3)
        for seed, curve in curves.items()
    ]
    found = of_seeds(rows, range(3, 5))
    assert found == {
        "final_accuracy": summary([98.5, 97.5]),
        "best_accuracy": summary([99.0, 97.5]),
    }
    assert found["best_accuracy"]["mean"] == 98.25


def test_summary_by_hand():
    # Deviations -2, -1, 3: sum of squares 14, variance 7; t quantile 0.975 with 2 degrees 4.302653.
    assert summary([1.0, 2.0, 6.0]) == {
        "mean": pytest.approx(3.0, abs=1e-12),
        "sd": pytest.approx(math.sqrt(7), abs=1e-12),
        "min": 1.0,
        "max": 6.0,
        "ci95": pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6),
    }


def test_summary_of_two():
    result = summary([1.0, 2.0])
    assert result["sd"] == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert result["ci95"] == pytest.approx(12.706205 / 2, rel=1e-6)


def test_summary_of_one_knows_no_deviation():
    assert summary([99.5]) == {"mean": 99.5, "sd": None, "min": 99.5, "max": 99.5, "ci95": None}


def test_summary_of_equal_values_is_zero():
    assert summary([98.0] * 4) == {"mean": 98.0, "sd": 0.0, "min": 98.0, "max": 98.0, "ci95": 0.0}


def test_summary_is_plain_json():
    assert json.loads(json.dumps(summary([1, 2, 3])))["mean"] == 2.0
    assert all(type(value) is float for value in summary([1, 2, 3]).values())
