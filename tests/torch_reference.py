"""The networks in plain ``torch.nn``, written by hand from their descriptions.

Nothing here may be derived from ``jaxmnist.networks``: the proof of equality would be circular.
They take normalised images (N, 1, 28, 28). lightweight, efficient and net8k return
log-probabilities and are trained with ``NLLLoss``; the others return logits and are trained with
``CrossEntropyLoss``.
"""

import re

import torch
from torch import nn


class GlobalAvgMaxPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)], dim=1)


class TorchNetwork(nn.Module):
    """One of the networks; its tensors are named ``layers.0.weight`` and so on."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class SeparableConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, padding: int, bias: bool):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, size, padding=padding, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.depthwise(x))


def compact_tiny(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        GlobalAvgMaxPool(),
        nn.Flatten(),
        nn.Linear(64, 10, bias=False),
    )


def compact(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10, bias=False),
    )


def lightweight(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(10, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 18, 3, padding=1),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(p),
        nn.Conv2d(18, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 24, 3),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def model1(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(p),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.Dropout(p),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(p),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(p),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(p),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Dropout(p),
        nn.AvgPool2d(6),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.Flatten(),
    )


def model2(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 12, 1),
        nn.Dropout(p),
        nn.Conv2d(12, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 24, 1),
        nn.Dropout(p),
        nn.AvgPool2d(7),
        nn.Conv2d(24, 10, 1),
        nn.Flatten(),
    )


def model3(_: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 7, 3, bias=False),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 10, 3, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(10, 10, 3, bias=False),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 18, 3, padding=1, bias=False),
        nn.BatchNorm2d(18),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(18, 10),
    )


def efficient(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(p),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(p),
        nn.Conv2d(32, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Dropout(p),
        nn.AvgPool2d(8),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def net8k(p: float) -> TorchNetwork:
    return TorchNetwork(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(p),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.AvgPool2d(7),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def under(line: str, padding: str) -> TorchNetwork:
    """That of an under_… recipe, out of its network.blocks and network.padding.

    Turned kernels are kernels like others here: o means nothing.
    """
    blocks, paddings = line.split("/"), padding.split("/")
    if len(paddings) == 1:
        paddings *= len(blocks)
    layers: list[nn.Module] = []
    inputs = 1
    for block, pad in zip(blocks, map(int, paddings), strict=True):
        if layers:
            layers[-2:-2] = [nn.MaxPool2d(2)]  # before batch norm and activation
            layers.append(nn.Dropout2d(0.0))
        for unit in block.split("-"):
            found = re.fullmatch(r"(\d+)(?:k(\d))?(d?)o?", unit)
            assert found
            outputs, size = int(found[1]), int(found[2] or 3)
            last = outputs == 10
            shape = inputs, outputs, size
            if found[3]:
                layers += [SeparableConv2d(*shape, padding=pad * (size // 2), bias=last)]
            else:
                layers += [nn.Conv2d(*shape, padding=pad * (size // 2), bias=last)]
            layers += [] if last else [nn.BatchNorm2d(outputs), nn.SiLU()]
            inputs = outputs
    return TorchNetwork(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


TORCH_NETWORKS = {
    network.__name__: network
    for network in (compact_tiny, compact, lightweight, model1, model2, model3, efficient, net8k)
}


class TorchRecipe:
    """Optimizer, schedule and loss of a recipe, as its write-up constructs them.

    ``epochs`` is the length of the schedules that have one; None for the recipe's own.
    """

    def __init__(self, name: str, parameters, steps_per_epoch: int, epochs: int | None = None):
        self.steps_per_epoch = steps_per_epoch
        self.loss = nn.CrossEntropyLoss()
        schedules = torch.optim.lr_scheduler
        match name:
            case "compact_tiny":
                self.optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
                self.scheduler = schedules.ConstantLR(self.optimizer, factor=1.0)
            case "compact_sgd":
                self.optimizer = torch.optim.SGD(
                    parameters, lr=0.01, momentum=0.9, weight_decay=1e-4
                )
                self.scheduler = schedules.CosineAnnealingLR(self.optimizer, T_max=epochs or 15)
            case "compact":
                self.optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)
                self.scheduler = schedules.CosineAnnealingLR(self.optimizer, T_max=epochs or 20)
            case "lightweight":
                self.loss = nn.NLLLoss()
                self.optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4)
                self.scheduler = schedules.StepLR(self.optimizer, step_size=5, gamma=0.5)
            case "efficient":
                self.loss = nn.NLLLoss()
                self.optimizer = torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-5)
                self.scheduler = schedules.StepLR(self.optimizer, step_size=7, gamma=0.1)
            case "net8k":
                self.loss = nn.NLLLoss()
                self.optimizer = torch.optim.Adam(parameters, lr=5e-4, weight_decay=1e-4)
                self.scheduler = schedules.OneCycleLR(
                    self.optimizer,
                    max_lr=0.005,
                    pct_start=0.2,
                    epochs=epochs or 19,
                    steps_per_epoch=steps_per_epoch,
                )
            case "model1" | "model2" | "model3":
                self.loss = nn.CrossEntropyLoss(label_smoothing=0.02)
                self.optimizer = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, nesterov=True)
                self.scheduler = schedules.OneCycleLR(
                    self.optimizer,
                    max_lr=0.3,
                    pct_start=0.2,
                    div_factor=10,
                    final_div_factor=100,
                    epochs=epochs or 15,
                    steps_per_epoch=steps_per_epoch,
                )
            case _:
                raise ValueError(name)
        self._per_batch = isinstance(self.scheduler, schedules.OneCycleLR)
        self._steps = 0

    def step(self) -> None:
        """One optimizer step, and a scheduler step where the recipe takes one."""
        self.optimizer.step()
        self._steps += 1
        if self._per_batch or self._steps % self.steps_per_epoch == 0:
            self.scheduler.step()

    def hyperparameters(self) -> tuple[float, float]:
        """Learning rate and momentum (Adam: beta1) of the next optimizer step."""
        group = self.optimizer.param_groups[0]
        return group["lr"], group["betas"][0] if "betas" in group else group["momentum"]
