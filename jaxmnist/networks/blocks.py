"""Networks that a recipe describes in a line of text: blocks of convolutions, pooling between them.

    7-7-10/10-12/16-18    widths of 3×3 convolutions, a pooling at each /
    8k5-16/16d-=-=/10d    k5 is 5×5, d depthwise-separable, = has the weights of the one before
    16k5o/24do-16do/10d   o makes oriented maps: every kernel in eight turns and reflections

After each convolution come a batch norm and the activation. At each / there is a pooling, after
these or right after the convolution, and at last a dropout of whole channels.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from jax.typing import ArrayLike

from jaxmnist.data import SIDE
from jaxmnist.errors import UserError
from jaxmnist.networks import symmetry
from jaxmnist.networks.layers import (
    BatchNorm,
    Conv,
    Convolution,
    Dropout,
    Flatten,
    GlobalAvgMaxPool,
    GlobalAvgPool,
    Layer,
    Linear,
    MaxPool,
    Relu,
    SeparableConv,
    Silu,
)

_OWN = r"[1-9]\d{0,2}(?:k[1357])?d?o?"
_ANY = rf"(?:{_OWN}|=)"
PATTERN = re.compile(rf"{_OWN}(?:-{_ANY})*(?:/{_ANY}(?:-{_ANY})*)*")
WORDS = "widths from 1 to 999 like 8-8/16/32, with k1, k5, k7, d or o behind them, or = for one"
PADDING = re.compile(r"[01](/[01])*")

HEADS: dict[str, Callable[[bool], tuple[Layer, ...]]] = {
    "linear": lambda use_bias: (GlobalAvgPool(), Flatten(), Linear(10, use_bias)),
    "avgmax": lambda use_bias: (GlobalAvgMaxPool(), Flatten(), Linear(10, use_bias)),
    "conv": lambda use_bias: (Conv(10, 1, use_bias=use_bias), GlobalAvgPool(), Flatten()),
    "maps": lambda _: (GlobalAvgPool(), Flatten()),
}


ACTIVATIONS: dict[str, Callable[[], Layer]] = {"relu": Relu, "silu": Silu}


class Unit(NamedTuple):
    """A convolution of its own."""

    features: int
    kernel_size: int = 3
    separable: bool = False
    oriented: bool = False


class Blocks(NamedTuple):
    """A network that a recipe describes itself."""

    units: tuple[tuple[Unit | None, ...], ...]
    """Block by block; None for the convolution before once more, with the same weights."""
    padding: tuple[int, ...]
    """Of each block: 1 for as much as keeps the size of the maps, 0 for none."""
    head: str
    """One of HEADS; 'maps' takes what the last convolution gives as logits."""
    head_bias: bool
    activation: str = "relu"
    """One of ACTIVATIONS, after each batch norm."""
    batch_norm_scale: bool = True
    pool_first: bool = False
    """Whether to pool before batch norm and activation, which have a quarter of the pixels then."""


def parse(
    blocks: str,
    padding: str,
    head: str,
    *,
    head_bias: bool,
    activation: str,
    batch_norm_scale: bool,
    pool_first: bool,
) -> Blocks:
    """Reads what PATTERN and PADDING allow.

    Args:
      blocks: block by block.
      padding: one number for all, or one for each block.
      head: one of HEADS.
      head_bias: whether the head has a bias.
      activation: one of ACTIVATIONS.
      batch_norm_scale: whether the batch norms have a scale.
      pool_first: whether to pool before batch norm and activation.

    Raises:
      UserError: where no network has this form.
    """
    units = tuple(tuple(map(_unit, block.split("-"))) for block in blocks.split("/"))
    each = tuple(map(int, padding.split("/")))
    if len(each) == 1:
        each *= len(units)
    if len(each) != len(units):
        raise UserError(
            f"config.network.padding is {padding!r}: network.blocks has {len(units)} blocks, give "
            "one number for all or one for each"
        )
    described = Blocks(units, each, head, head_bias, activation, batch_norm_scale, pool_first)
    if problem := _problem(described):
        raise UserError(f"config.network.blocks is {blocks!r}: {problem}")
    return described


def _unit(text: str) -> Unit | None:
    if text == "=":
        return None
    numbers = text.rstrip("do")
    width, _, size = numbers.partition("k")
    marks = text[len(numbers) :]
    return Unit(int(width), int(size or 3), "d" in marks, "o" in marks)


def _problem(described: Blocks) -> str | None:
    """Why there is no such network."""
    side, channels, oriented = SIDE, 1, False
    unit, seen, own_padding = Unit(0), (0, False), 0  # the newest with weights of its own
    for number, (units, padding) in enumerate(zip(described.units, described.padding, strict=True)):
        side = side // 2 if number else side
        for given in units:
            if given:
                unit, seen, own_padding = given, (channels, oriented), padding
                if problem := _problem_of(unit, oriented):
                    return f"block {number + 1} has a convolution with {problem}"
            elif seen[0] != channels:
                return (
                    f"the convolution that = repeats in block {number + 1} makes {channels} maps "
                    f"of {seen[0]}, it must leave their number as it is"
                )
            elif seen[1] != oriented:
                return (
                    f"the convolution that = repeats in block {number + 1} is the first or last of "
                    "the oriented ones, repeat one between them"
                )
            elif own_padding != padding:
                return f"= in block {number + 1} repeats a convolution with another padding"
            channels, oriented = unit.features, unit.oriented
            side -= (1 - padding) * (unit.kernel_size - 1)
        if side < 1:
            return (
                f"nothing is left of the image in block {number + 1}, give it padding or take "
                "fewer convolutions"
            )
    if described.head == "maps" and (described.units[-1][-1] is None or channels != 10):
        return "with the head 'maps' the last convolution must be one of its own with 10 features"
    return None


def _problem_of(unit: Unit, oriented_input: bool) -> str | None:
    if not unit.oriented:
        return None
    if unit.features % symmetry.ORIENTATIONS:
        return f"o and {unit.features} maps, it must be a multiple of {symmetry.ORIENTATIONS}"
    if unit.separable and not oriented_input:
        return "d and o, which needs one with o alone somewhere before it"
    return None


def layers(described: Blocks, dropout: ArrayLike | None) -> tuple[Layer, ...]:
    """The layers; a repeated convolution is the same object again."""
    found: list[Layer] = []
    activation, conv, oriented = ACTIVATIONS[described.activation], None, False
    for units, padding in zip(described.units, described.padding, strict=True):
        if found:
            found.insert(-2 if described.pool_first else len(found), MaxPool())
            found.append(Dropout(dropout, whole_channels=True))
        for unit in units:
            conv = _conv(unit, padding, oriented) if unit else conv
            assert conv
            oriented = conv.oriented
            norm = BatchNorm(use_scale=described.batch_norm_scale, oriented=oriented)
            found += [conv, norm, activation()]
    if described.head == "maps":
        *found, last, _, _ = found
        found.append(last.clone(use_bias=described.head_bias))
    return (*found, *HEADS[described.head](described.head_bias))


def _conv(unit: Unit, padding: int, oriented_input: bool) -> Convolution:
    kind = SeparableConv if unit.separable else Conv
    return kind(
        unit.features,
        unit.kernel_size,
        padding * (unit.kernel_size // 2),
        oriented=unit.oriented,
        oriented_input=oriented_input,
    )
