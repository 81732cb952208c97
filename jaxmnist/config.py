"""The configuration: every field once, with its default, its meaning and what is allowed."""

import difflib
import json
import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import ml_collections
import numpy as np
from flax import traverse_util
from ml_collections import config_dict

from jaxmnist import data, published
from jaxmnist.errors import UserError
from jaxmnist.networks import blocks, models
from jaxmnist.networks.layers import Dropout

Config: TypeAlias = Any
"""An ``ml_collections.ConfigDict`` with the fields below, which type checkers cannot know."""


class Allowed(NamedTuple):
    """A condition on a value and the words that describe it."""

    holds: Callable[[Any], bool]
    description: str


class Field(NamedTuple):
    """A field's default (which fixes its type), its meaning and the values it may take."""

    default: bool | int | float | str
    help: str
    allowed: Allowed | None = None


def _one_of(values: Iterable[str]) -> Allowed:
    values = tuple(values)
    return Allowed(lambda value: value in values, f"one of {', '.join(map(repr, values))}")


def _at_least(low: int) -> Allowed:
    return Allowed(lambda value: low <= value < math.inf, f"{low} or more")


def _between(low: int, high: int) -> Allowed:
    return Allowed(lambda value: low <= value <= high, f"from {low} to {high}")


_POSITIVE = Allowed(lambda value: 0 < value <= 1e30, "above 0, at most 1e30")
_NOT_NEGATIVE = Allowed(lambda value: 0 <= value <= 1e30, "from 0 to 1e30")
_RATE = Allowed(lambda value: 0 <= value < 1, "at least 0 and below 1")
_DEGREES = Allowed(lambda value: 0 <= value <= 180, "from 0 to 180")
_SHEAR = Allowed(lambda value: 0 <= value < 90, "at least 0 and below 90")
_INSIDE = Allowed(lambda value: 0 < value < 1, "above 0 and below 1")
_SEED = Allowed(lambda value: 0 <= value < 2**31, "from 0 to 2147483647")

BLOCKS = "blocks"

FIELDS: dict[str, Field] = {
    "recipe": Field(
        "", "publication to compare results with, '' for none", _one_of(["", *published.load_all()])
    ),
    "model": Field(
        "model3",
        "the network; 'blocks' is described by the fields network.…",
        _one_of([*models.NETWORKS, BLOCKS]),
    ),
    "network.blocks": Field(
        "7-7-10/10-12/16-18",
        "blocks: widths of the 3×3 convolutions, a pooling at each /; 8k5 is 5×5, 8d is "
        "depthwise-separable, 8o comes in eight orientations, = has the weights of the one before",
        Allowed(lambda text: bool(blocks.PATTERN.fullmatch(text)), blocks.WORDS),
    ),
    "network.padding": Field(
        "0/0/1",
        "blocks: 1 to pad convolutions so that they keep the size, 0 not to; for all or by block",
        Allowed(lambda text: bool(blocks.PADDING.fullmatch(text)), "0 or 1, like 1 or 0/0/1"),
    ),
    "network.head": Field(
        "linear",
        "blocks: mean of the maps and a linear layer; mean and maximum and a linear layer; a 1×1 "
        "convolution and the mean; or the mean of what the last convolution makes",
        _one_of(blocks.HEADS),
    ),
    "network.head_bias": Field(True, "blocks: whether the head has a bias"),
    "network.activation": Field(
        "relu", "blocks: after each batch norm", _one_of(blocks.ACTIVATIONS)
    ),
    "network.batch_norm_scale": Field(True, "blocks: whether batch norms have a scale"),
    "network.pool_first": Field(
        False, "blocks: whether to pool before batch norm and activation, which is faster"
    ),
    "dropout": Field(0.0, "rate of each dropout layer of the network", _RATE),
    "dataset": Field("mnist", "'mnist', a folder of four IDX files, or 'tfds:NAME'"),
    "split": Field(
        "train/test",
        "train on 60k, evaluate on the 10k test images; or on 50k/10k out of the 60k",
        _one_of(data.SPLITS),
    ),
    "num_epochs": Field(15, "passes over the training set", _between(1, 10_000)),
    "batch_size": Field(128, "images per optimizer step", _between(1, 10**9)),
    "steps_per_epoch": Field(
        0, "0 for the whole training set; a number for shorter epochs", _at_least(0)
    ),
    "drop_remainder": Field(False, "leave out the last, smaller batch of an epoch"),
    "seed": Field(0, "of the first run; decides everything random", _SEED),
    "num_seeds": Field(1, "runs in one program: seed, seed + 1, …", _between(1, 10_000)),
    "label_smoothing": Field(0.0, "share of the target spread over all classes", _RATE),
    "precision": Field(
        "float32",
        "of the activations; bfloat16 is for accelerators, on a CPU it is slower",
        _one_of(["float32", "bfloat16"]),
    ),
    "optimizer.name": Field("sgd", "the optimizer", _one_of(["sgd", "adam"])),
    "optimizer.learning_rate": Field(0.01, "for 'onecycle' the peak", _POSITIVE),
    "optimizer.momentum": Field(
        0.9, "SGD's momentum, Adam's beta1; onecycle has its own, below", _RATE
    ),
    "optimizer.nesterov": Field(False, "Nesterov momentum, for sgd"),
    "optimizer.weight_decay": Field(0.0, "L2, added to the gradient", _NOT_NEGATIVE),
    "schedule.name": Field(
        "constant",
        "course of the learning rate",
        _one_of(["constant", "step", "cosine", "onecycle"]),
    ),
    "schedule.step_size": Field(5, "step: epochs between decays", _between(1, 10_000)),
    "schedule.gamma": Field(0.5, "step: factor of each decay", _POSITIVE),
    "schedule.pct_start": Field(0.2, "onecycle: share of the steps on the way up", _INSIDE),
    "schedule.div_factor": Field(25.0, "onecycle: peak / first learning rate", _POSITIVE),
    "schedule.final_div_factor": Field(1e4, "onecycle: first / last learning rate", _POSITIVE),
    "schedule.base_momentum": Field(0.85, "onecycle: momentum at the peak", _RATE),
    "schedule.max_momentum": Field(0.95, "onecycle: momentum at both ends", _RATE),
    "augment.rotate_degrees": Field(0.0, "random rotation by up to ± this", _DEGREES),
    "augment.translate": Field(0.0, "random shift by up to ± this share of the side", _RATE),
    "augment.scale": Field(0.0, "random scale by a factor of up to 1 ± this", _RATE),
    "augment.shear_degrees": Field(0.0, "random shear by up to ± this", _SHEAR),
    "augment.elastic": Field(
        0.0, "elastic distortion: torchvision's alpha, with sigma 5", _NOT_NEGATIVE
    ),
    "mesh.seed": Field(0, "devices that share the seeds; 0 for what fits", _between(0, 10_000)),
    "mesh.data": Field(0, "devices that share each batch; 0 for what fits", _between(0, 10_000)),
    "checkpoint.every_epochs": Field(1, "epochs between checkpoints", _between(1, 10_000)),
    "checkpoint.keep": Field(2, "newest checkpoints kept, besides the best", _between(1, 10_000)),
}


HOW = ("mesh.", "checkpoint.")
"""How the names of fields begin that change nothing of the result."""


def default_config() -> Config:
    """A recipe's starting point; the files in configs/ set what differs."""
    defaults = {name: field.default for name, field in FIELDS.items()}
    return ml_collections.ConfigDict(traverse_util.unflatten_dict(defaults, sep="."))


def plain(value: Any) -> Any:
    """One of Python's own where ``value`` is a number of NumPy's, which JSON does not know."""
    return value.item() if isinstance(value, np.generic) else value


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """The configuration as one flat dict, ``{'model': …, 'optimizer.name': …}``.

    Raises:
      UserError: where a field was left to be filled in (``required_placeholder``).
    """
    flat = {}
    for name in config:
        try:
            value = config[name]
        except config_dict.RequiredValueError as error:
            raise UserError(f"config.{prefix}{name} has no value: set it in the recipe") from error
        if isinstance(value, ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = plain(value)
    return flat


def what_is_trained(config: Config) -> dict[str, Any]:
    """What differs from the defaults, but for fields that say how often and how it is trained."""
    return {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(("seed", "num_seeds", *HOW))
        and (name not in FIELDS or value != FIELDS[name].default)
    }


def from_json(text: str) -> Config:
    """A configuration as files keep it; not checked yet.

    Raises:
      ValueError: where the text is something else.
    """
    try:
        config = ml_collections.ConfigDict(json.loads(text))
        _complete(config)
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"no configuration: {error}") from error
    return config


def _complete(config: Config) -> None:
    """Adds what older versions had no fields for, where ``config`` lacks it: the defaults.

    Nothing is added to what has never been a configuration.
    """
    if "model" not in config:
        return
    with config.unlocked():
        for group in ("network", "augment"):
            if group not in config:
                config[group] = {}
            for name, value in default_config()[group].items():
                if name not in config[group]:
                    config[group][name] = value


def validate(config: Config) -> None:
    """Checks every field by itself and those that depend on each other.

    Raises:
      UserError: naming the first wrong field, its value and what is allowed.
    """
    _validate_each(config)
    _validate_together(config)


def normalized(config: Config) -> Config:
    """A copy whose fields can be set, each of its own type.

    Raises:
      UserError: where a field by itself is wrong, as ``validate``.
    """
    _validate_each(config)
    copy = default_config()
    copy.update_from_flattened_dict(flatten(config))
    return copy


def _validate_each(config: Config) -> None:
    given = flatten(config)
    for name in given:
        if name not in FIELDS:
            raise UserError(f"config.{name} is unknown{did_you_mean(name)}")
    for name, (default, _, allowed) in FIELDS.items():
        if name not in given:
            raise UserError(
                f"config.{name} is missing: start from jaxmnist.config.default_config()"
            )
        value, kind = given[name], type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"config.{name} is {value!r}: it must be of type {kind.__name__}")
        if allowed and not allowed.holds(value):
            raise UserError(f"config.{name} is {value!r}: it must be {allowed.description}")


def architecture(config: Config) -> models.Model:
    """The network of ``config``, as ``models.build`` takes it.

    Raises:
      UserError: where the fields network.… do not describe one.
    """
    if config.model != BLOCKS:
        return str(config.model)
    return blocks.parse(**config.network)


def _validate_together(config: Config) -> None:
    if config.model != BLOCKS:
        for name, value in flatten(config.network, "network.").items():
            if value != FIELDS[name].default:
                raise UserError(
                    f"config.{name} is {value!r}: {config.model} has its own layers, set "
                    f"config.model={BLOCKS}"
                )
    layers = models.build(architecture(config)).layers
    if config.dropout and not any(isinstance(layer, Dropout) for layer in layers):
        raise UserError(
            f"config.dropout is {config.dropout}: {config.model} has no dropout layer, set it to 0"
        )
    has_momentum = config.schedule.name == "onecycle" or config.optimizer.momentum > 0
    if config.optimizer.nesterov and not (config.optimizer.name == "sgd" and has_momentum):
        raise UserError(
            "config.optimizer.nesterov is True: it needs optimizer.name='sgd' and momentum above 0"
        )
    if config.seed + config.num_seeds > 2**31:
        raise UserError(
            f"config.num_seeds is {config.num_seeds}: seed + num_seeds must not exceed 2147483648"
        )


def did_you_mean(name: str) -> str:
    """' (did you mean config.…?)' for a misspelt field, '' where none is near."""
    by_leaf = {known.split(".")[-1]: known for known in FIELDS}
    matches = difflib.get_close_matches(name, FIELDS, n=1) or [
        by_leaf[leaf] for leaf in difflib.get_close_matches(name.split(".")[-1], by_leaf, n=1)
    ]
    return f" (did you mean config.{matches[0]}?)" if matches else ""


def help_text() -> str:
    """A paragraph a field: name, default, meaning."""
    return "\n".join(
        textwrap.fill(
            field.help + (f": {field.allowed.description}" if field.allowed else ""),
            width=100,
            initial_indent=f"  --config.{name:<26} {field.default!r:>12}  ",
            subsequent_indent=" " * 52,
        )
        for name, field in FIELDS.items()
    )
