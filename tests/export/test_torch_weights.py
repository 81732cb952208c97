"""Weights between Flax and PyTorch: names, layouts, files, and what is refused."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_reference import TORCH_NETWORKS
from weight_files import (
    FIRST,
    SUFFIXES,
    Code,
    assert_equal,
    load,
    other_names,
    reference,
    save,
    tensors,
)

from jaxmnist.errors import UserError
from jaxmnist.export import torch_weights
from jaxmnist.networks import models

torch.set_num_threads(1)


def arrays(model: str = "model3") -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in tensors(model).items()}


def network(model: str = "model3") -> models.Network:
    return models.build(model)


def take(given: Mapping[str, np.ndarray], *, in_order: bool = False, model: str = "model3"):
    return torch_weights.from_state_dict(network(model), given, in_order=in_order)


def write(file: Path, state_dict: Mapping[str, np.ndarray], **metadata: str) -> Path:
    file.write_bytes(torch_weights.content(file, state_dict, metadata))
    return file


def complaint(given: Mapping[str, np.ndarray], *, in_order: bool = False) -> str:
    with pytest.raises(UserError) as raised:
        take(given, in_order=in_order)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def save_script(file: Path) -> None:
    """A TorchScript archive, which has the same suffixes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop the format
        torch.jit.script(torch.nn.Linear(2, 2)).save(file)


@pytest.mark.parametrize("model", models.NETWORKS)
def test_slots_are_those_of_torch(model: str):
    expected = [
        (key, tuple(tensor.shape))
        for key, tensor in tensors(model).items()
        if not key.endswith("num_batches_tracked")
    ]
    assert [(slot.key, slot.shape) for slot in torch_weights.slots(network(model))] == expected


@pytest.mark.parametrize("model", models.NETWORKS)
def test_round_trip_through_every_file(model: str, tmp_path: Path):
    expected = tensors(model)
    for suffix in SUFFIXES:
        given = torch_weights.read(save(tmp_path / f"in{suffix}", expected))
        params, batch_stats, by_order = take(given, model=model)
        assert not by_order
        leaves = jax.tree.leaves((params, batch_stats))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
        back = torch_weights.to_state_dict(network(model), params, batch_stats, step=321)
        found = load(write(tmp_path / f"out{suffix}", back, model=model))
        assert_equal(found, expected)
        TORCH_NETWORKS[model](0.0).load_state_dict(found, strict=True)
    names = {f"{stem}{suffix}" for stem in ("in", "out") for suffix in SUFFIXES}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_written_tensors_come_in_torchs_order(suffix: str, tmp_path: Path):
    params, batch_stats, _ = take(arrays())
    given = torch_weights.to_state_dict(network(), params, batch_stats, 0)
    assert list(load(write(tmp_path / f"weights{suffix}", given))) == list(tensors())


def test_step_becomes_the_batch_counters():
    params, batch_stats, _ = take(arrays())
    state_dict = torch_weights.to_state_dict(network(), params, batch_stats, step=77)
    counters = [array for key, array in state_dict.items() if "num_batches" in key]
    assert len(counters) == 7
    assert all(array == 77 and array.dtype == np.int64 for array in counters)


def test_batch_counters_may_be_absent():
    given = {key: array for key, array in arrays().items() if "num_batches" not in key}
    take(given)


FOREIGN = {
    "own names": other_names,
    "data parallel": lambda given: {f"module.{key}": value for key, value in given.items()},
    "without counters": lambda given: other_names(
        {key: value for key, value in given.items() if "num_batches" not in key}
    ),
}


@pytest.mark.parametrize("rename", FOREIGN.values(), ids=FOREIGN)
def test_other_names_are_taken_in_order(rename):
    params, batch_stats, by_order = take(rename(arrays()), in_order=True)
    assert by_order
    expected_params, expected_stats, _ = take(arrays())
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    jax.tree.map(np.testing.assert_array_equal, batch_stats, expected_stats)


def test_right_names_need_no_order():
    shuffled = dict(reversed(arrays().items()))
    params, _, by_order = take(shuffled, in_order=True)
    assert not by_order
    jax.tree.map(np.testing.assert_array_equal, params, take(arrays())[0])


def swapped(given: Mapping[str, Any], first: str, second: str) -> dict[str, Any]:
    """``given`` with two entries in each other's place."""
    exchange = {first: second, second: first}
    return {exchange.get(key, key): given[exchange.get(key, key)] for key in given}


@pytest.mark.parametrize(
    "given",
    [
        dict(reversed(other_names(arrays()).items())),
        swapped(other_names(arrays()), "block1.weight", "block1.bias"),  # of one shape
        swapped(other_names(arrays()), "block3.weight", "block6.weight"),
        {f"x{number}": array for number, array in enumerate(arrays().values())},  # kinds unknown
    ],
    ids=["reversed", "two kinds", "two layers", "numbers"],
)
def test_other_names_in_another_order_are_refused(given):
    message = complaint(given, in_order=True)
    assert f"{FIRST} is missing" in message
    assert "more" in message


def test_other_names_are_refused_where_there_is_no_order():
    assert f"{FIRST} is missing" in complaint(other_names(arrays()), in_order=False)


@pytest.mark.parametrize("in_order", [True, False])
def test_every_misfit_is_listed(in_order: bool):
    given = arrays()
    del given["layers.4.running_var"]
    given["layers.99.weight"] = np.zeros(3, np.float32)
    given[FIRST] = given[FIRST].transpose(2, 3, 1, 0)  # as Flax has it
    given["layers.25.bias"] = np.zeros((), np.float32)
    assert complaint(given, in_order=in_order) == (
        "layers.4.running_var is missing; layers.99.weight is unexpected; "
        f"{FIRST} has shape (3, 3, 1, 7), not (7, 1, 3, 3); "
        "layers.25.bias has shape (), not (10,)"
    )


def test_long_lists_are_cut():
    message = complaint({})
    assert message.count(" is missing") == 8
    assert message.endswith("; and 29 more")


def test_other_networks_weights_are_refused():
    assert "layers.6.weight is missing" in complaint(arrays("compact"), in_order=True)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_, np.complex64])
def test_weights_must_be_floating_point(dtype):
    message = complaint(arrays() | {FIRST: np.ones((7, 1, 3, 3), dtype)})
    assert FIRST in message
    assert np.dtype(dtype).name in message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(dtype: torch.dtype, suffix: str, tmp_path: Path):
    given = {key: t.to(dtype) if t.is_floating_point() else t for key, t in tensors().items()}
    params, _, _ = take(torch_weights.read(save(tmp_path / f"weights{suffix}", given)))
    kernel = params["layers_0"]["kernel"]
    assert kernel.dtype == np.float32
    expected = given[FIRST].float().permute(3, 2, 1, 0).transpose(0, 1).numpy()
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_files_of_other_kinds_are_refused(dtype: torch.dtype, suffix: str, tmp_path: Path):
    given = tensors() | {FIRST: torch.ones(7, 1, 3, 3, dtype=dtype)}
    file = save(tmp_path / f"weights{suffix}", given)
    with pytest.raises(UserError, match=FIRST):
        take(torch_weights.read(file))


WRAPPED = {
    "bare": lambda given: given,
    "state_dict": lambda given: {"state_dict": given, "epoch": 3},
    "model_state_dict": lambda given: {"epoch": 3, "model_state_dict": given, "loss": 0.5},
    "model": lambda given: {"model": given, "optimizer": {"lr": 0.1}},
    "ordered": lambda given: reference().state_dict(),
    "parameters": lambda given: {key: torch.nn.Parameter(t, False) for key, t in given.items()},
    "requires grad": lambda given: {
        key: t.clone().requires_grad_(t.is_floating_point()) for key, t in given.items()
    },
    "strided": lambda given: {
        key: t.clone().mT.contiguous().mT if t.ndim == 4 else t for key, t in given.items()
    },
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_checkpoints_of_training_scripts(wrap, tmp_path: Path):
    torch.save(wrap(tensors()), tmp_path / "weights.pth")
    found = torch_weights.read(tmp_path / "weights.pth")
    assert list(found) == list(tensors())
    jax.tree.map(np.testing.assert_array_equal, take(found)[:2], take(arrays())[:2])


def test_old_file_format(tmp_path: Path):
    file = tmp_path / "weights.pth"
    torch.save(tensors(), file, _use_new_zipfile_serialization=False)
    jax.tree.map(
        np.testing.assert_array_equal, take(torch_weights.read(file))[0], take(arrays())[0]
    )


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_does_not_run(suffix: str, zipped: bool, tmp_path: Path):
    file, marker = tmp_path / f"weights{suffix}", tmp_path / "marker"
    content = {**tensors(), "layers.99.weight": Code(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=file.name) as raised:
        torch_weights.read(file)
    assert "\n" not in str(raised.value)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the test's own proof: this does run it
    assert marker.exists()


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def not_weights(folder: Path) -> dict[str, Path]:
    """Files that hold something else than named tensors."""
    contents: dict[str, Any] = {
        "module": reference(),
        "list": [1, 2],
        "list of tensors": list(tensors().values()),
        "tensor": torch.zeros(3),
        "numbers": {"a": 1},
        "numbered": {0: torch.zeros(3)},
        "sparse": tensors() | {FIRST: torch.ones(7, 1, 3, 3).to_sparse()},
        "meta": tensors() | {FIRST: torch.ones(7, 1, 3, 3, device="meta")},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    for suffix in SUFFIXES:
        whole = save(folder / f"whole{suffix}", tensors()).read_bytes()
        (folder / f"truncated{suffix}").write_bytes(truncated(whole))
        (folder / f"header{suffix}").write_bytes(whole[:100])
        (folder / f"empty{suffix}").write_bytes(b"")
        (folder / f"text{suffix}").write_text("weights\nof my network\n")
        (folder / f"image{suffix}").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
        (folder / f"whole{suffix}").unlink()
    save_file(tensors(), folder / "really safetensors.pth")
    torch.save(tensors(), folder / "really torch.safetensors")
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return not_weights(tmp_path_factory.mktemp("bad"))


BAD_FILES = [
    *(f"{name}.pth" for name in ("module", "list", "list of tensors", "tensor")),
    *(f"{name}.pth" for name in ("numbers", "numbered", "sparse", "meta", "really safetensors")),
    "really torch.safetensors",
    *(
        f"{name}{suffix}"
        for name in ("truncated", "header", "empty", "text", "image")
        for suffix in SUFFIXES
    ),
]


@pytest.mark.parametrize("name", BAD_FILES)
def test_other_files_are_refused(name: str, bad_files: Mapping[str, Path]):
    with pytest.raises(UserError) as raised:
        torch_weights.read(bad_files[name])
    message = str(raised.value)
    assert name in message
    assert "model.state_dict()" in message
    assert message.isprintable()
    assert "weights_only" not in message  # advice to switch the protection off
    assert len(message) < 400 + len(str(bad_files[name]))


def test_no_bad_file_is_forgotten(bad_files: Mapping[str, Path]):
    assert set(bad_files) == set(BAD_FILES)


def test_torchscript_is_refused_without_a_warning(tmp_path: Path):
    file = tmp_path / "script.pt"
    save_script(file)
    with pytest.raises(UserError, match=r"script\.pt"):  # a warning would be an error here
        torch_weights.read(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stem", ["missing", "folder", "none/missing", "x" * 300])
def test_files_that_are_not_there(stem: str, suffix: str, tmp_path: Path):
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match="no file"):
        torch_weights.read(tmp_path / f"{stem}{suffix}")


@pytest.mark.parametrize(
    ("suffix", "expected"), [(".pth", {}), (".pt", {}), (".safetensors", {"a": "1", "ß": "\n"})]
)
def test_metadata_has_a_place_in_safetensors_alone(
    suffix: str, expected: dict[str, str], tmp_path: Path
):
    told = write(tmp_path / f"told{suffix}", arrays(), a="1", ß="\n")
    assert torch_weights.read_metadata(told) == expected
    untold = save(tmp_path / f"untold{suffix}", tensors())
    assert torch_weights.read_metadata(untold) == {}
    assert_equal(torch_weights.read(told), torch_weights.read(untold))


@pytest.mark.parametrize("name", [name for name in BAD_FILES if name.endswith(".safetensors")])
def test_metadata_of_other_files_is_refused(name: str, bad_files: Mapping[str, Path]):
    with pytest.raises(UserError, match=name):
        torch_weights.read_metadata(bad_files[name])


def test_torch_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given, file = arrays(), save(tmp_path / "weights.pth", tensors())
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="install torch"):
        torch_weights.read(file)
    with pytest.raises(UserError, match="install torch"):
        torch_weights.content(tmp_path / "new.pth", given, {})
    assert list(tmp_path.iterdir()) == [file]
