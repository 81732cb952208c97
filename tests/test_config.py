"""The configuration's checks: what is accepted, what is refused and in which words."""

import math
import re
from typing import Any

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_dict

from jaxmnist.config import (
    FIELDS,
    Config,
    architecture,
    default_config,
    did_you_mean,
    flatten,
    from_json,
    help_text,
    normalized,
    validate,
)
from jaxmnist.errors import UserError
from jaxmnist.networks.blocks import Blocks, Unit

BAD_VALUES = {
    "recipe": ["vgg", "Model3"],
    "model": ["vgg", "", "Model3"],
    "network.blocks": ["", "8-", "/8", "0/8", "8,8", "8-08", "1000", "8..9", "a"],
    "network.padding": ["", "2", "-1", "0-0", "0/", "same"],
    "network.head": ["mlp", ""],
    "network.activation": ["tanh", ""],
    "dropout": [-0.1, 1.0, 1, math.nan, math.inf],
    "split": ["test", ""],
    "num_epochs": [0, -1, 10**9, 10**20],  # the tables of the schedule would fill the memory
    "batch_size": [0, -128],
    "steps_per_epoch": [-1],
    "seed": [-1, 2**31],
    "num_seeds": [0, -1, 10**6],
    "label_smoothing": [-0.1, 1.0, math.nan],
    "precision": ["float16", ""],
    "optimizer.name": ["adamw", ""],
    "optimizer.learning_rate": [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e39],
    "optimizer.momentum": [-0.1, 1.0, math.nan],
    "optimizer.weight_decay": [-1e-4, math.nan, math.inf],
    "schedule.name": ["linear", ""],
    "schedule.step_size": [0, -1],
    "schedule.gamma": [0.0, -0.5, math.nan, math.inf],
    "schedule.pct_start": [0.0, 1.0, math.nan],
    "schedule.div_factor": [0.0, math.nan, math.inf],
    "schedule.final_div_factor": [0.0, -1.0, math.nan],
    "schedule.base_momentum": [-0.1, 1.0],
    "schedule.max_momentum": [-0.1, 1.0],
    "augment.rotate_degrees": [-1.0, 180.1, math.nan],
    "augment.translate": [-0.1, 1.0, math.nan],
    "augment.scale": [-0.1, 1.0, math.nan],
    "augment.shear_degrees": [-1.0, 90.0, math.nan],
    "augment.elastic": [-1.0, math.nan, math.inf],
    "mesh.seed": [-1, 10_001],
    "mesh.data": [-1, 10_001],
    "checkpoint.every_epochs": [0],
    "checkpoint.keep": [0],
}
WRONG_TYPES = {
    bool: [1, 0, "True", 1.0],
    int: [1.0, "1", True],
    float: ["0.1", True],
    str: [1, 0.5],
}


def with_values(**values: object) -> Config:
    """The default configuration with fields replaced; '__' stands for the dot."""
    return with_flat({name.replace("__", "."): value for name, value in values.items()})


def with_flat(flat: dict[str, object]) -> Config:
    """The default configuration with fields replaced or added, whatever their type."""
    nested: dict[str, Any] = default_config().to_dict()
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        parent = nested
        for group in groups:
            parent = parent.setdefault(group, {})
        parent[leaf] = value
    return ml_collections.ConfigDict(nested)


def message(config: Config) -> str:
    """The one line with which ``config`` is refused."""
    with pytest.raises(UserError) as caught:
        validate(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_default_is_valid():
    assert validate(default_config()) is None


def test_defaults_are_the_general_ones():
    config = default_config()
    assert (config.batch_size, config.seed, config.num_seeds) == (128, 0, 1)
    assert config.steps_per_epoch == 0
    assert config.drop_remainder is False
    assert config.precision == "float32"
    assert (config.dataset, config.split) == ("mnist", "train/test")
    schedule = config.schedule  # PyTorch's OneCycleLR
    assert (schedule.div_factor, schedule.final_div_factor) == (25, 10_000)
    assert (schedule.base_momentum, schedule.max_momentum) == (0.85, 0.95)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values]
)
def test_bad_value_is_named(name: str, value: object):
    text = message(with_flat({name: value}))
    assert f"config.{name} is {value!r}: it must be " in text


def test_every_limited_field_has_a_bad_value_here():
    assert set(BAD_VALUES) == {name for name, field in FIELDS.items() if field.allowed}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_type_is_named(name: str):
    kind = type(FIELDS[name].default)
    for value in [*WRONG_TYPES[kind], None, [FIELDS[name].default]]:
        text = message(with_flat({name: value}))
        assert f"config.{name} is {value!r}: it must be of type {kind.__name__}" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 0),
        ("label_smoothing", 0),
        ("optimizer.learning_rate", 1),
        ("optimizer.momentum", 0),
        ("optimizer.weight_decay", 2),
        ("schedule.gamma", 1),
        ("schedule.div_factor", 10),
        ("schedule.final_div_factor", 100),
        ("schedule.base_momentum", 0),
        ("augment.rotate_degrees", 180),
        ("augment.translate", 0),
    ],
)
def test_whole_number_passes_for_float(name: str, value: int):
    config = with_flat({name: value})
    assert type(flatten(config)[name]) is int
    validate(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dropout", 0),
        ("num_epochs", 1),
        ("seed", 2**31 - 1),
        ("optimizer.learning_rate", 1e-30),
        ("optimizer.momentum", 0.0),
        ("schedule.pct_start", 0.001),
        ("augment.rotate_degrees", 180),
        ("augment.translate", 0.999),
        ("label_smoothing", 0.999),
    ],
)
def test_limits_are_allowed(name: str, value: float):
    validate(with_flat({name: value}))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("num_epoch", "num_epochs"),
        ("batchsize", "batch_size"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimizer.learningrate", "optimizer.learning_rate"),
        ("optimiser.name", "optimizer.name"),
        ("rotate_degree", "augment.rotate_degrees"),
    ],
)
def test_unknown_field_suggests_the_near_one(wrong: str, right: str):
    assert message(with_flat({wrong: 1})) == (
        f"config.{wrong} is unknown (did you mean config.{right}?)"
    )


def test_nothing_is_suggested_for_nonsense():
    assert did_you_mean("qqqqzzzz") == ""


@pytest.mark.parametrize("name", ["num_epochs", "optimizer.momentum"])
def test_missing_field_is_named(name: str):
    config = default_config()
    *groups, leaf = name.split(".")
    with config.unlocked():
        del (config[groups[0]] if groups else config)[leaf]
    assert message(config).startswith(f"config.{name} is missing: ")


def test_json_round_trip():
    config = with_values(model="compact", num_epochs=3, optimizer__learning_rate=0.1)
    assert from_json(config.to_json()).to_dict() == config.to_dict()


def test_what_an_older_version_lacks_is_its_default():
    config = default_config()
    config.num_epochs = 3
    expected = flatten(config)
    with config.unlocked():
        del config["network"]
    found = from_json(config.to_json())
    validate(found)
    assert flatten(found) == expected


def test_what_an_older_version_lacks_of_a_group_is_its_default():
    config = with_values(model="blocks", network__blocks="4/8")
    expected = flatten(config)
    with config.unlocked():
        del config["network"]["batch_norm_scale"], config["augment"]["scale"]
    assert flatten(from_json(config.to_json())) == expected


def test_what_was_never_there_is_not_made_up():
    assert flatten(from_json('{"seed": 5}')) == {"seed": 5}


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", '"model3"', "[1, 2]", "[" * 100_000, '{"model"}', '{"a": 1} x'],
    ids=lambda text: text[:9],
)
def test_text_that_is_no_configuration(text: str):
    with pytest.raises(ValueError, match=r"."):
        from_json(text)


def test_scalar_in_the_place_of_a_group_is_refused():
    assert "config.optimizer" in message(with_flat({"optimizer": 3}))


def test_a_published_network_is_its_name():
    assert architecture(with_values(model="compact")) == "compact"


def test_a_described_network():
    config = with_values(
        model="blocks",
        network__blocks="4-6/8",
        network__padding="1/0",
        network__head="conv",
        network__head_bias=False,
        dropout=0.1,
    )
    validate(config)
    units = (Unit(4), Unit(6)), (Unit(8),)
    assert architecture(config) == Blocks(units, (1, 0), "conv", False, "relu", True, False)


def test_a_described_network_that_cannot_be():
    text = message(with_values(model="blocks", network__padding="0/1"))
    assert text.startswith("config.network.padding is '0/1': ")


@pytest.mark.parametrize(
    ("field", "value"), [("blocks", "8/16"), ("head", "avgmax"), ("batch_norm_scale", False)]
)
def test_a_published_network_describes_itself(field: str, value: object):
    text = message(with_flat({"model": "compact", f"network.{field}": value}))
    assert text.startswith(f"config.network.{field} is {value!r}: compact has its own layers")
    assert "config.model=blocks" in text


@pytest.mark.parametrize("model", ["model3"])
def test_dropout_needs_a_dropout_layer(model: str):
    text = message(with_values(model=model, dropout=0.1))
    assert text.startswith("config.dropout is 0.1")
    assert model in text
    validate(with_values(model="compact", dropout=0.1))


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({"optimizer__nesterov": True}, True),
        ({"optimizer__nesterov": True, "optimizer__name": "adam"}, False),
        ({"optimizer__nesterov": True, "optimizer__momentum": 0.0}, False),
        (
            {
                "optimizer__nesterov": True,
                "optimizer__momentum": 0.0,
                "schedule__name": "onecycle",
            },
            True,
        ),
        ({"seed": 2**31 - 1, "num_seeds": 2}, False),
        ({"seed": 2**31 - 2, "num_seeds": 2}, True),
    ],
)
def test_fields_that_depend_on_each_other(values: dict[str, object], valid: bool):
    config = with_values(**values)
    if valid:
        validate(config)
    else:
        name = next(iter(values))
        last = {"seed": "num_seeds"}.get(name, name.replace("__", "."))
        assert f"config.{last} is " in message(config)


@pytest.mark.parametrize("name", ["num_epochs", "optimizer.momentum"])
def test_a_field_that_waits_for_its_value_is_named(name: str):
    config, kind = default_config(), type(FIELDS[name].default)
    *groups, leaf = name.split(".")
    (config[groups[0]] if groups else config)[leaf] = config_dict.required_placeholder(kind)
    assert message(config) == f"config.{name} has no value: set it in the recipe"
    config.update_from_flattened_dict({name: FIELDS[name].default})
    validate(config)


def test_flatten_round_trip():
    config = default_config()
    flat = flatten(config)
    assert set(flat) == set(FIELDS)
    assert flat == {name: field.default for name, field in FIELDS.items()}
    assert with_flat(flat).to_dict() == config.to_dict()
    assert flatten(with_values(schedule__gamma=0.25))["schedule.gamma"] == 0.25


def test_help_lists_every_field_once():
    text = help_text()
    assert max(map(len, text.splitlines())) <= 100
    _, *paragraphs = re.split(r"^  (?=--config)", text, flags=re.MULTILINE)
    assert len(paragraphs) == len(FIELDS)
    for paragraph, (name, field) in zip(paragraphs, FIELDS.items(), strict=True):
        line = " ".join(paragraph.split())
        assert line.startswith(f"--config.{name} {field.default!r} {field.help}")
        assert field.allowed is None or line.endswith(f": {field.allowed.description}")


_ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["sgd", "adam", "onecycle", "compact", "bfloat16", "train/val"]),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "optimizer", "x", "augment.x"]), _ANY_VALUE))
def test_anything_passes_or_is_a_user_error(flat: dict[str, object]):
    flat = {name: value for name, value in flat.items() if name.split(".")[0] not in flat} | {
        name: value for name, value in flat.items() if "." not in name
    }
    refusal = ""
    try:
        validate(with_flat(flat))
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    if refusal:
        assert refusal.startswith("config.")
    else:
        assert flat.keys() <= FIELDS.keys()


def test_numpys_numbers_are_those_of_python():
    """A recipe may compute with them."""
    config = default_config()
    config.optimizer.learning_rate = 0.1 * np.sqrt(2)
    assert isinstance(config.optimizer.learning_rate, np.float64)
    validate(config)
    found = normalized(config)
    assert type(found.optimizer.learning_rate) is float
    assert found.to_json() == from_json(found.to_json()).to_json()
