"""Parameter table and receptive field of a network, derived from its list of layers."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxmnist.data import SIDE
from jaxmnist.networks import prng
from jaxmnist.networks.models import Network, owners


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One line of the table: a layer, what comes out of it and what it can see."""

    name: str
    """Position and kind; behind = the position of the layer whose parameters it uses again."""
    output_shape: tuple[int, ...]
    """(C, H, W) of a map or (C,) of a vector."""
    params: int
    receptive_field: int
    """Side length in input pixels; may exceed the image where the pooling reaches over its edge."""


def summarize(network: Network) -> list[LayerSummary]:
    """Walks the layers with abstract values; nothing is computed."""
    x = jax.ShapeDtypeStruct((SIDE, 1, SIDE, 2), jnp.float32)
    receptive_field, jump = 1, 1
    summaries = []
    places = zip(owners(network.layers), network.layers, strict=True)
    for position, (owner, layer) in enumerate(places):
        window = layer.window(x.shape[0])
        receptive_field += (window.size - 1) * jump
        jump *= window.stride
        x, variables = jax.eval_shape(
            lambda x, layer=layer: layer.init_with_output(prng.key(0), x, train=False), x
        )
        params, name = 0, f"{position}: {type(layer).__name__}"
        if owner == position:
            params = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
        else:
            name += f" = {owner}"
        *image, _ = x.shape  # (H, C, W) or (C,)
        output_shape = (image[1], image[0], image[2]) if len(image) == 3 else tuple(image)
        summaries.append(LayerSummary(name, output_shape, params, receptive_field))
    return summaries


def table(summaries: list[LayerSummary]) -> str:
    """The summaries as text, one line a layer, with totals."""
    lines = [f"{'layer':<22}{'output':>14}{'params':>9}{'receptive field':>18}"]
    lines.append("─" * len(lines[0]))
    for s in summaries:
        shape = "×".join(map(str, s.output_shape))
        params = f"{s.params:,}" if s.params else ""
        lines.append(f"{s.name:<22}{shape:>14}{params:>9}{s.receptive_field:>18}")
    lines.append("─" * len(lines[0]))
    total = f"{sum(s.params for s in summaries):,}"
    lines.append(f"{'total':<22}{'':>14}{total:>9}{summaries[-1].receptive_field:>18}")
    return "\n".join(lines)
