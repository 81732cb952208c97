"""What --sweep.FIELD=VALUES means, and what is refused."""

import math
import re

import pytest

from jaxmnist.config import default_config
from jaxmnist.errors import UserError
from jaxmnist.sweeps.space import Choices, Range, configured, parse


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("optimizer.learning_rate", "0.1,0.3", Choices((0.1, 0.3))),
        ("optimizer.learning_rate", "1", Choices((1.0,))),
        ("optimizer.learning_rate", "0.1..0.3", Range(0.1, 0.3)),
        ("optimizer.learning_rate", "log:1e-3..0.3", Range(1e-3, 0.3, True)),
        ("batch_size", "32..256", Range(32, 256)),
        ("batch_size", "log:32..256", Range(32, 256, True)),
        ("batch_size", "32, 64", Choices((32, 64))),
        ("optimizer.nesterov", "true,False", Choices((True, False))),
        ("schedule.name", "onecycle,cosine", Choices(("onecycle", "cosine"))),
        ("network.blocks", "8/16,8-8/16", Choices(("8/16", "8-8/16"))),
        ("augment.rotate_degrees", "0..15", Range(0.0, 15.0)),
    ],
)
def test_dimensions(field: str, text: str, expected: Choices | Range):
    space = parse({field: text})
    assert space.dimensions == {field: expected}
    assert space.is_grid == isinstance(expected, Choices)
    found = space.dimensions[field]
    if isinstance(found, Range) and isinstance(expected, Range):
        assert (found.whole, found.log) == (expected.whole, expected.log)
        assert found.whole == (field == "batch_size")


def test_a_pattern_has_a_dimension_for_each_range():
    space = parse({"network.blocks": "6..8-8/12..16/20", "label_smoothing": "0,0.1"})
    assert space.dimensions == {
        "network.blocks[0]": Range(6, 8),
        "network.blocks[1]": Range(12, 16),
        "label_smoothing": Choices((0.0, 0.1)),
    }
    values = {"network.blocks[0]": 7, "network.blocks[1]": 13, "label_smoothing": 0.1}
    settings = space.settings(values)
    assert settings == {"network.blocks": "7-8/13/20", "label_smoothing": 0.1}
    assert list(settings) == ["network.blocks", "label_smoothing"]
    assert space.size == 3 * 5 * 2
    assert not space.is_grid


def test_oriented_widths_go_in_steps():
    space = parse({"network.blocks": "8..24k5o/16..32do-8..9d/10"})
    assert space.dimensions == {
        "network.blocks[0]": Range(8, 24, step=8),
        "network.blocks[1]": Range(16, 32, step=8),
        "network.blocks[2]": Range(8, 9),
    }
    assert space.size == 3 * 3 * 2
    assert space.settings({f"network.blocks[{hole}]": 8 for hole in range(3)}) == {
        "network.blocks": "8k5o/8do-8d/10"
    }


def test_probes_see_each_choice_and_both_ends_continuous_ones_from_within():
    space = parse(
        {
            "optimizer.momentum": "0..0.9",
            "optimizer.name": "sgd,adam",
            "batch_size": "10..19",
            "optimizer.learning_rate": "log:0.01..1",
            "network.blocks": "8..24o/8",
        }
    )
    assert [tuple(settings.values()) for settings in space.probes()] == [
        (pytest.approx(0.009), "sgd", 10, pytest.approx(0.01 * 100**0.01), "8o/8"),
        (pytest.approx(0.891), "adam", 19, pytest.approx(1 / 100**0.01), "24o/8"),
        *((0.45, name, 14, pytest.approx(0.1), "16o/8") for name in ("sgd", "sgd", "adam")),
    ]


def test_points_of_a_finite_space():
    space = parse({"network.blocks": "8..16o/2..3", "dropout": "0,0.5"})
    assert [tuple(space.settings(values).values()) for values in space.points()] == [
        (blocks, dropout) for blocks in ("8o/2", "8o/3", "16o/2", "16o/3") for dropout in (0.0, 0.5)
    ]
    assert len(list(space.points())) == space.size


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"dropout": "0,0.1,0.2", "num_epochs": "3,4"}, 6),
        ({"batch_size": "10..19"}, 10),
        ({"dropout": "0..0.2"}, math.inf),
    ],
)
def test_size(asked: dict[str, str], size: float):
    assert parse(asked).size == size


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("lr", "1,2", "--sweep.lr: config.lr is unknown"),
        ("optimizer.learning_rat", "1", "did you mean config.optimizer.learning_rate?"),
        ("optimizer", "sgd", "config.optimizer is unknown"),
        ("optimizer.learning_rate", "0.3..0.1", "an empty range"),
        ("optimizer.learning_rate", "0.1..0.1", "an empty range"),
        ("optimizer.learning_rate", "nan..1", "must be above 0"),
        ("optimizer.learning_rate", "0..1", "has '0': it must be above 0"),
        ("optimizer.learning_rate", "0.1,fast", "has 'fast': it must be of type float"),
        ("optimizer.learning_rate", "0.1,0.10", "a choice comes twice"),
        ("optimizer.learning_rate", "0.1,", "has '': it must be of type float"),
        ("optimizer.learning_rate", "0.1..", "a range is low..high"),
        ("optimizer.learning_rate", "log:0.1,0.3", "a range is low..high or log:low..high"),
        ("dropout", "log:0..0.3", "must begin above 0"),
        ("batch_size", "1.5..3", "has '1.5': it must be of type int"),
        ("batch_size", "-4..3", "has '-4': it must be from 1"),
        ("model", "model1..model3", "is no number and has no ranges"),
        ("model", "model1,vgg", "has 'vgg': it must be one of"),
        ("optimizer.nesterov", "yes,no", "has 'yes': it must be of type bool"),
        ("optimizer.nesterov", "false..true", "has no ranges"),
        ("network.blocks", "8..6/16", "an empty range"),
        ("network.blocks", "8..16o/16..20do", "multiples of 8, not 16 or 20"),
        ("seed", "1,2", "cannot be swept: --config.num_seeds=N"),
        ("num_seeds", "1,2", "cannot be swept"),
        ("split", "train/val,train/test", "cannot be swept"),
        ("mesh.seed", "1,2", "cannot be swept: it changes nothing but the speed"),
        ("checkpoint.keep", "1,2", "cannot be swept"),
    ],
)
def test_what_cannot_be_swept(field: str, text: str, words: str):
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        parse({field: text})
    assert f"--sweep.{field}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_configured_leaves_the_recipe_alone():
    config = default_config()
    changed = configured(config, {"optimizer.learning_rate": 0.5, "num_epochs": 3})
    assert (changed.optimizer.learning_rate, changed.num_epochs) == (0.5, 3)
    assert config.to_json() == default_config().to_json()
