"""PyTorch as a peer of the speed benchmarks: eager, channels-last and compiled, in two forms.

Alone: one process, whose operations use every core. As a team: a process of one thread on each
core, which is how PyTorch is at its best for networks this small. A team trains one network, each
process on its part of every batch, with gradients averaged by DistributedDataParallel over gloo
(batch statistics stay those of the part, which is cheaper than what jaxmnist computes); or a seed
in each process.
"""

import functools
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the networks in torch are there
from torch_reference import TORCH_NETWORKS, TorchRecipe

from jaxmnist import data, recipes
from jaxmnist.config import Config
from jaxmnist.networks import models

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Run = Callable[[], None]


class Variant(NamedTuple):
    """How PyTorch is asked to run a network."""

    channels_last: bool = False
    compile_mode: str | None = None


VARIANTS = {
    "eager": Variant(),
    "channels-last": Variant(channels_last=True),
    "compile": Variant(compile_mode="default"),
}
if DEVICE.type == "cuda":
    VARIANTS["cuda graphs"] = Variant(compile_mode="reduce-overhead")


def augmented(images: torch.Tensor, degrees: float, translate: float) -> torch.Tensor:
    """RandomRotation and RandomAffine of a whole batch at once: far faster than image by image."""
    if degrees == 0 and translate == 0:
        return images
    size, device = len(images), images.device
    angles = (torch.rand(size, device=device) * 2 - 1) * degrees
    if translate == 0:
        return transformed(images, angles)
    shifts = (torch.rand(2, size, device=device) * 2 - 1) * translate * images.shape[-1]
    return transformed(images, angles, shifts.round())


def transformed(
    images: torch.Tensor, degrees: torch.Tensor, shifts: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotates, then shifts by whole pixels.

    Args:
      images: (N, 1, H, W).
      degrees: (N,), counter-clockwise.
      shifts: (2, N), rows (down, right).
    """
    size, side = len(images), images.shape[-1]
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    down, right = torch.zeros(2, 1, device=images.device) if shifts is None else shifts
    down, right = down * (2 / side), right * (2 / side)  # for affine_grid an image is 2 wide
    rows = [
        torch.stack([cos, -sin, sin * down - cos * right], 1),
        torch.stack([sin, cos, -sin * right - cos * down], 1),
    ]
    grid = torch.nn.functional.affine_grid(
        torch.stack(rows, 1), list(images.shape), align_corners=False
    )
    rotated = torch.nn.functional.grid_sample(images, grid, mode="nearest", align_corners=False)
    if shifts is None:
        return rotated
    # What the rotation moved out of the frame does not come back with the shift.
    pixel = torch.arange(side, device=images.device)
    y, x = (pixel - shift.reshape(size, 1) for shift in shifts)
    inside = ((y >= 0) & (y < side))[:, None, :, None] & ((x >= 0) & (x < side))[:, None, None, :]
    return rotated * inside


def alone(
    config: Config,
    train: data.Dataset,
    steps: int,
    variant: Variant,
    part: int = 0,
    parts: int = 1,
) -> Run:
    """What trains ``steps`` steps in this process, on part number ``part`` of each batch."""
    network = TORCH_NETWORKS[config.model](config.dropout).to(DEVICE).train()
    if variant.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    recipe = TorchRecipe(config.recipe, network.parameters(), steps_per_epoch=10**9)
    forward = network
    if parts > 1:
        forward = torch.nn.parallel.DistributedDataParallel(
            forward, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    if variant.compile_mode:
        torch._dynamo.reset()
        forward = torch.compile(forward, mode=variant.compile_mode)
    images = torch.from_numpy(train.images_NHW).to(DEVICE)
    labels = torch.from_numpy(train.labels_N).long().to(DEVICE)
    size = config.batch_size // parts

    order = torch.randperm(len(images), device=DEVICE)

    def run() -> None:
        loss = torch.zeros(())
        for step in range(steps):
            first = step * config.batch_size + part * size
            index = order[first : first + size]
            batch = images[index].float()[:, None]
            batch = augmented(batch, config.augment.rotate_degrees, config.augment.translate)
            batch = (batch / 255 - models.MEAN) / models.STD
            if variant.channels_last:
                batch = batch.to(memory_format=torch.channels_last)
            recipe.optimizer.zero_grad()
            loss = recipe.loss(forward(batch), labels[index])
            loss.backward()
            recipe.optimizer.step()
        loss.item()

    return run


def _work(
    told: Connection, rank: int, size: int, rendezvous: str, recipe: str, steps: int, name: str
) -> None:
    """A process of a team: runs whenever it is told to, and says when it is done."""
    torch.set_num_threads(1)
    config = recipes.load(recipe)
    train, _ = data.load("mnist", "train/test")
    if rendezvous:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size
        )
    part, parts = (rank, size) if rendezvous else (0, 1)
    run = alone(config, train, steps, VARIANTS[name], part, parts)
    try:
        while True:
            told.recv()
            run()
            told.send(None)
    except EOFError:  # the one who told is gone
        pass
    finally:
        if rendezvous:
            torch.distributed.destroy_process_group()


def _team(config: Config, steps: int, name: str, *, one_network: bool) -> Run:
    """The processes end when the function that they are told by is forgotten."""
    size = torch.get_num_threads()
    spawn, connections = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous") if one_network else ""
        for rank in range(size):
            mine, theirs = spawn.Pipe()
            arguments = theirs, rank, size, rendezvous, config.recipe, steps, name
            spawn.Process(target=_work, args=arguments, daemon=True).start()
            theirs.close()
            connections.append(mine)

        def run() -> None:
            for connection in connections:
                connection.send(None)
            for connection in connections:
                connection.recv()

        run()  # all of them have met by then
    return run


ALONE: dict[str, Callable[[Config, data.Dataset, int], Run]] = {
    name: functools.partial(alone, variant=variant) for name, variant in VARIANTS.items()
}


def _sharing(name: str) -> Callable[[Config, data.Dataset, int], Run]:
    return lambda config, _, steps: _team(config, steps, name, one_network=True)


def _a_seed_each(name: str) -> Callable[[Config, data.Dataset, int], Run]:
    return lambda config, _, steps: _team(config, steps, name, one_network=False)


# On a GPU processes were not timed.
ONE_NETWORK = {} if DEVICE.type == "cuda" else {f"DDP, {name}": _sharing(name) for name in VARIANTS}
A_SEED_EACH = {} if DEVICE.type == "cuda" else {name: _a_seed_each(name) for name in VARIANTS}
