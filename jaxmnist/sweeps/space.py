"""What a sweep varies: fields of the recipe, each with choices or a range."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxmnist.config import FIELDS, Config, did_you_mean
from jaxmnist.errors import UserError
from jaxmnist.networks import symmetry

Value = bool | int | float | str

_HUGE = 10**15
_MARGIN = 0.01
_RANGE = re.compile(r"(log:)?([^,]+?)\.\.([^,]+)")
_HOLE = re.compile(r"(\d+)\.\.(\d+)((?:k\d)?d?o)?")
_FIXED = {
    "recipe": "it only names what to compare with",
    "dataset": "a sweep has one",
    "split": "a sweep has one; --config.split=… sets it",
    "seed": "--config.num_seeds=N gives each trial N seeds",
    "num_seeds": "--config.num_seeds=N gives each trial N seeds",
    "mesh": "it changes nothing but the speed; --config.mesh.…=N sets it",
    "checkpoint": "it changes nothing of the result; --config.checkpoint.every_epochs=N sets it",
}


class Choices(NamedTuple):
    """One of some values."""

    values: tuple[Value, ...]


class Range(NamedTuple):
    """Any number from ``low`` to ``high``; where both are ``int``, whole ones, ``step`` apart."""

    low: float
    high: float
    log: bool = False
    step: int = 1

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def middle(self) -> float:
        if self.whole:
            return self.low + (int(self.high - self.low) // self.step // 2) * self.step
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last; of a continuous range two points just inside.

        An end itself is hardly ever drawn there, and may be a special case: no dropout.
        """
        if self.whole:
            return self.low, self.high
        if self.log:
            factor = self.high**_MARGIN / self.low**_MARGIN
            return self.low * factor, self.high / factor
        margin = (self.high - self.low) * _MARGIN
        return self.low + margin, self.high - margin

    @property
    def values(self) -> range:
        """All values of a range of whole numbers."""
        return range(int(self.low), int(self.high) + 1, self.step)


Dimension = Choices | Range


class Space(NamedTuple):
    """What is varied."""

    dimensions: dict[str, Dimension]
    """By name: a field, or field[0], field[1]… for the numbers in a pattern."""
    patterns: dict[str, str]
    """Fields that are texts with numbers to be filled in: 'network.blocks': '{}-{}/16'."""
    asked: dict[str, str]
    """As it was typed: field to choices or range."""

    @property
    def size(self) -> float:
        """How many different settings there are."""
        total = 1.0
        for dimension in self.dimensions.values():
            finite = isinstance(dimension, Choices) or (dimension.whole and dimension.high < _HUGE)
            total *= len(dimension.values) if finite else math.inf
        return total

    def points(self) -> Iterator[dict[str, Value]]:
        """The values of all dimensions, of each point of a finite space."""
        values = (dimension.values for dimension in self.dimensions.values())
        for point in itertools.product(*values):
            yield dict(zip(self.dimensions, point, strict=True))

    def probes(self) -> list[dict[str, Value]]:
        """Settings from all over the space.

        Those of all first choices and lower ends, and of all last ones and upper ends; and with
        all ranges at their middle each choice, while of the others' the first is taken.
        """
        first, middle, last = {}, {}, {}
        for name, dimension in self.dimensions.items():
            ends = dimension.values if isinstance(dimension, Choices) else dimension.ends
            first[name] = middle[name] = ends[0]
            last[name] = ends[-1]
            if isinstance(dimension, Range):
                middle[name] = dimension.middle
        choices = {n: d.values for n, d in self.dimensions.items() if isinstance(d, Choices)}
        each = [middle | {name: value} for name, values in choices.items() for value in values]
        return [self.settings(values) for values in (first, last, middle, *each)]

    @property
    def is_grid(self) -> bool:
        return all(isinstance(d, Choices) for d in self.dimensions.values())

    def settings(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The fields that the values of all dimensions mean."""
        settings = {name: value for name, value in values.items() if "[" not in name}
        for field, pattern in self.patterns.items():
            holes = range(pattern.count("{}"))
            settings[field] = pattern.format(*(values[f"{field}[{hole}]"] for hole in holes))
        return {field: settings[field] for field in self.asked}


def configured(config: Config, settings: Mapping[str, Value]) -> Config:
    """A copy of ``config`` with ``settings``."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(settings))
    return copy


def parse(asked: Mapping[str, str]) -> Space:
    """Reads what stands behind each ``--sweep.FIELD=``.

    ``a,b,c`` are choices, ``low..high`` is a range, ``log:low..high`` one in which each factor is
    as likely. In ``network.blocks`` each width may be a range: ``6..8-8/16..20``; one of oriented
    maps goes in steps of their number.

    Raises:
      UserError: for fields that cannot be swept, and values that they cannot have.
    """
    dimensions: dict[str, Dimension] = {}
    patterns: dict[str, str] = {}
    for field, text in asked.items():
        _check_field(field)
        if field == "network.blocks" and "," not in text and _HOLE.search(text):
            for end in (r"\1\3", r"\2\3"):
                _value(field, _HOLE.sub(end, text))
            patterns[field] = _HOLE.sub(r"{}\3", text)
            for hole, (low, high, oriented) in enumerate(_HOLE.findall(text)):
                width = _width(field, text, int(low), int(high), oriented=bool(oriented))
                dimensions[f"{field}[{hole}]"] = width
        elif ".." in text or text.startswith("log:"):
            dimensions[field] = _range(field, text)
        else:
            dimensions[field] = _choices(field, text)
    return Space(dimensions, patterns, dict(asked))


def _check_field(field: str) -> None:
    reason = _FIXED.get(field) or _FIXED.get(field.partition(".")[0])
    if field in FIELDS and reason:
        raise UserError(f"--sweep.{field} cannot be swept: {reason}")
    if field not in FIELDS:
        raise UserError(f"--sweep.{field}: config.{field} is unknown{did_you_mean(field)}")


def _range(field: str, text: str) -> Range:
    kind = type(FIELDS[field].default)
    found = _RANGE.fullmatch(text)
    if not found:
        raise UserError(f"--sweep.{field} is {text!r}: a range is low..high or log:low..high")
    if kind not in (int, float):
        raise UserError(
            f"--sweep.{field} is {text!r}: {field} is no number and has no ranges, give choices "
            "with commas between them"
        )
    low, high = (_value(field, bound) for bound in found.groups()[1:])
    _check_bounds(field, text, low, high)
    if isinstance(low, int) and high > _HUGE:
        raise UserError(f"--sweep.{field} is {text!r}: give a smaller range")
    if found[1] and not low > 0:
        raise UserError(f"--sweep.{field} is {text!r}: a log: range must begin above 0")
    return Range(low, high, bool(found[1]))


def _width(field: str, text: str, low: int, high: int, *, oriented: bool) -> Range:
    _check_bounds(field, text, low, high)
    step = symmetry.ORIENTATIONS if oriented else 1
    if low % step or high % step:
        raise UserError(
            f"--sweep.{field} is {text!r}: widths of oriented maps are multiples of {step}, not "
            f"{low} or {high}"
        )
    return Range(low, high, step=step)


def _check_bounds(field: str, text: str, low: Any, high: Any) -> None:
    if not low < high:
        raise UserError(f"--sweep.{field} is {text!r}: an empty range, the first must be smaller")


def _choices(field: str, text: str) -> Choices:
    values = tuple(_value(field, part.strip()) for part in text.split(","))
    if len(set(values)) < len(values):
        raise UserError(f"--sweep.{field} is {text!r}: a choice comes twice")
    return Choices(values)


def _value(field: str, text: str) -> Any:
    """The value of ``field`` that a text means."""
    default, _, allowed = FIELDS[field]
    kind = type(default)
    try:
        value: Any = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--sweep.{field} has {text!r}: it must be of type {kind.__name__}"
        ) from error
    if allowed and not allowed.holds(value):
        raise UserError(f"--sweep.{field} has {text!r}: it must be {allowed.description}")
    return value
