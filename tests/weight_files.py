"""Files of PyTorch weights that several tests write and read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch_reference import TORCH_NETWORKS, TorchNetwork

SUFFIXES = (".pth", ".pt", ".safetensors")
FIRST = "layers.0.weight"  # of model3: (7, 1, 3, 3)


def reference(model: str = "model3") -> TorchNetwork:
    """A torch network whose batch norms are away from their start."""
    torch.manual_seed(0)
    network = TORCH_NETWORKS[model](0.0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(321)
    return network


def tensors(model: str = "model3") -> dict[str, torch.Tensor]:
    return dict(reference(model).state_dict())


def save(file: Path, state_dict: Mapping[str, torch.Tensor]) -> Path:
    """What users of torch and of safetensors do."""
    if file.suffix == ".safetensors":
        save_file(dict(state_dict), file)
    else:
        torch.save(dict(state_dict), file)
    return file


def load(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file)


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Same names, types and bits."""
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert np.asarray(found[key]).dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(np.asarray(found[key]), np.asarray(array), err_msg=key)


def other_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """As a hand-written module has them: conv1.weight, bn1.weight…"""
    return {key.replace("layers.", "block"): value for key, value in state_dict.items()}


class Code:
    """Pickled, it becomes a call that makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
