"""Weights to and from PyTorch: what each tensor is called there, how it is laid out, its files.

The names are those of a ``torch.nn.Module`` that holds the network's layers in an
``nn.Sequential`` called ``layers``: ``layers.0.weight``, ``layers.1.running_mean``…
"""

import functools
import importlib
import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import ArrayLike

from jaxmnist.data import SIDE
from jaxmnist.errors import UserError
from jaxmnist.networks import prng
from jaxmnist.networks.layers import Layer
from jaxmnist.networks.models import Network, owners

StateDict = Mapping[str, np.ndarray]
SUFFIXES = (".pth", ".pt", ".safetensors")

# Flax's names and torch's, in the order in which torch lists the tensors of a layer.
_TORCH_NAMES = {
    "depthwise": "depthwise.weight",
    "pointwise": "pointwise.weight",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys that training scripts put around


class Slot(NamedTuple):
    """One tensor: its name and shape in PyTorch, its place in Flax."""

    key: str
    shape: tuple[int, ...]
    collection: str
    layer: Layer
    owner: int
    """The position of the layer under which Flax keeps it."""
    leaf: str
    trained: int
    """Of Flax's last axis, how much is kept: the rest follows from it, see ``Layer.whole``."""

    def whole(self, leaf: ArrayLike) -> np.ndarray:
        """In Flax's layout what PyTorch has."""
        return np.asarray(self.layer.whole(self.leaf, jnp.asarray(leaf)))


def slots(network: Network) -> list[Slot]:
    """The tensors of ``network``, in the order of PyTorch's ``state_dict``.

    A layer that comes several times has its tensors at each of its places, as in PyTorch.
    """
    blank_NHW = jax.ShapeDtypeStruct((1, SIDE, SIDE), jnp.uint8)
    variables = jax.eval_shape(
        lambda images_NHW: network.init(prng.key(0), images_NHW, train=False), blank_NHW
    )
    found = []
    for position, owner in enumerate(owners(network.layers)):
        layer = network.layers[position]
        leaves = {
            name: (collection, leaf)
            for collection in ("params", "batch_stats")
            for name, leaf in variables[collection].get(f"layers_{owner}", {}).items()
        }
        for name, torch_name in _TORCH_NAMES.items():
            if name in leaves:
                collection, leaf = leaves[name]
                whole = jax.eval_shape(functools.partial(layer.whole, name), leaf)
                inner = "pointwise." if name == "bias" and "pointwise" in leaves else ""
                key = f"layers.{position}.{inner}{torch_name}"
                trained = leaf.shape[-1]
                shape = _torch_shape(whole.shape)
                found.append(Slot(key, shape, collection, layer, owner, name, trained))
    return found


def _torch_axes(rank: int) -> tuple[int, ...]:
    """Kernels are HWIO here and OIHW there, matrices (in, out) here and (out, in) there."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _torch_axes(len(shape)))


def to_state_dict(network: Network, params: Any, batch_stats: Any, step: int) -> StateDict:
    """The ``state_dict`` of the same network in PyTorch; ``step`` becomes its batch counters."""
    variables = {"params": params, "batch_stats": batch_stats}
    state_dict: dict[str, np.ndarray] = {}
    for slot in slots(network):
        array = slot.whole(variables[slot.collection][f"layers_{slot.owner}"][slot.leaf])
        state_dict[slot.key] = np.ascontiguousarray(array.transpose(_torch_axes(array.ndim)))
        if slot.leaf == "var":
            counter = slot.key.replace("running_var", _COUNTER)
            state_dict[counter] = np.array(step, np.int64)
    return state_dict


def from_state_dict(
    network: Network, state_dict: StateDict, *, in_order: bool
) -> tuple[Any, Any, bool]:
    """``params`` and ``batch_stats`` out of a ``state_dict``.

    Args:
      network: what the tensors belong to.
      state_dict: as PyTorch names it; the batch counters in it are ignored.
      in_order: whether the tensors come in the order of the layers. If none has the name it
        should have, they are then taken by order, kind and shape.

    Returns:
      The two collections, and whether the tensors were taken by order.

    Raises:
      UserError: listing the tensors that are missing, unexpected or of another shape.
    """
    given = {key: array for key, array in state_dict.items() if not key.endswith(_COUNTER)}
    wanted = slots(network)
    foreign = in_order and not given.keys() & {slot.key for slot in wanted}
    if foreign:
        given = _take_by_order(given, wanted)
    _refuse(
        [*_strangers(given, wanted), *(_wrong(given[s.key], s) for s in wanted if s.key in given)]
    )
    whole = {
        slot.key: given[slot.key].transpose(np.argsort(_torch_axes(len(slot.shape))))
        for slot in wanted
    }
    _refuse([*_unequal(whole, wanted), *_not_oriented(whole, wanted)])
    variables: dict[str, dict[str, dict[str, jax.Array]]] = {"params": {}, "batch_stats": {}}
    for slot in wanted:
        leaves = variables[slot.collection].setdefault(f"layers_{slot.owner}", {})
        leaves[slot.leaf] = jnp.asarray(_trained(whole, slot))
    return variables["params"], variables["batch_stats"], foreign


def _refuse(reasons: Sequence[str | None]) -> None:
    """Raises a ``UserError`` that lists what is wrong, where anything is."""
    wrong = [reason for reason in reasons if reason]
    if len(wrong) > 8:
        wrong = [*wrong[:8], f"and {len(wrong) - 8} more"]
    if wrong:
        raise UserError("; ".join(wrong))


def _strangers(given: StateDict, wanted: Sequence[Slot]) -> list[str]:
    names = {slot.key for slot in wanted}
    missing = [f"{slot.key} is missing" for slot in wanted if slot.key not in given]
    return missing + [f"{key} is unexpected" for key in given if key not in names]


def _wrong(array: np.ndarray, slot: Slot) -> str | None:
    """What is wrong with a tensor by itself."""
    if array.shape != slot.shape:  # and may be of any size
        return f"{slot.key} has shape {array.shape}, not {slot.shape}"
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return f"{slot.key} holds {array.dtype}, not floating-point numbers"
    return None if np.isfinite(array).all() else f"{slot.key} holds NaN or infinity"


def _unequal(whole: StateDict, wanted: Sequence[Slot]) -> list[str]:
    """Of a layer that comes several times the tensors that differ from its first ones."""
    first: dict[tuple[int, str], str] = {}
    pairs = [(slot.key, first.setdefault((slot.owner, slot.leaf), slot.key)) for slot in wanted]
    return [
        f"{key} differs from {shared}, which are the same weights"
        for key, shared in pairs
        if not np.array_equal(whole[key], whole[shared])
    ]


def _not_oriented(whole: StateDict, wanted: Sequence[Slot]) -> list[str]:
    return [
        f"{slot.key} is not the same in all eight orientations"
        for slot in wanted
        if not np.array_equal(slot.whole(_trained(whole, slot)), whole[slot.key])
    ]


def _trained(found: Mapping[str, np.ndarray], slot: Slot) -> np.ndarray:
    return found[slot.key][..., : slot.trained]


def _take_by_order(given: StateDict, wanted: list[Slot]) -> StateDict:
    """``given`` under the names that are wanted, if kinds and shapes agree one by one."""

    def kind(key: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        return key.rpartition(".")[2], shape

    found = [kind(key, array.shape) for key, array in given.items()]
    if found != [kind(slot.key, slot.shape) for slot in wanted]:
        return given
    return {slot.key: array for slot, array in zip(wanted, given.values(), strict=True)}


def read(file: Path) -> StateDict:
    """The tensors of a .pth, .pt or .safetensors file, in the file's order; all floats as float32.

    Raises:
      UserError: where there is no such file, or it does not hold named tensors and nothing else.
    """
    if not os.path.isfile(file):  # pathlib raises where a name is too long
        raise UserError(f"{file} is no file: name one that ends in {', '.join(SUFFIXES)}")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def _read_safetensors(file: Path) -> StateDict:
    try:
        content = safetensors.numpy.load_file(file)
    except Exception as error:  # the file can be anything
        raise _unreadable(file, error) from error
    return {
        key: array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array
        for key, array in content.items()
    }


def read_metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says of its tensors; of others nothing.

    Raises:
      UserError: where there is no such file, or it holds something else.
    """
    if file.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            return content.metadata() or {}
    except Exception as error:  # the file can be anything
        raise _unreadable(file, error) from error


def _read_torch(file: Path) -> StateDict:
    torch = _torch(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the file can be anything
        raise _unreadable(file, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise UserError(f"{file} holds something else than named tensors: save model.state_dict()")
    try:
        for tensor in content.values():
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError("strides of 0 pretend to a size that the file does not have")
        return {
            key: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
            for key, tensor in content.items()
        }
    except (RuntimeError, TypeError, ValueError) as error:  # sparse, quantized, on no device…
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    """Without PyTorch's own words, which are long and advise to switch ``weights_only`` off."""
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return UserError(f"{file} does not hold plain tensors{reason}: save model.state_dict()")


def content(file: Path, state_dict: StateDict, metadata: Mapping[str, str]) -> bytes:
    """What a file of that name holds, for torch or safetensors to load.

    Only safetensors has a place for ``metadata``: a .pth file holds the ``state_dict`` alone.
    """
    if file.suffix == ".safetensors":
        return safetensors.numpy.save(dict(state_dict), dict(metadata))
    torch = _torch(file)
    stream = io.BytesIO()
    torch.save({key: torch.tensor(array) for key, array in state_dict.items()}, stream)
    return stream.getvalue()


def _torch(file: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"{file} needs torch: install torch, or use another of {', '.join(SUFFIXES)}"
        ) from error
