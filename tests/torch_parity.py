"""Measures how far jaxmnist is from PyTorch, for the tests and for benchmarks/parity_*.py.

Both sides start from the same weights and see the same batches of real MNIST; dropout is off, for
its random masks cannot agree. Float64 shows that the semantics are equal; what float32 adds on top
is rounding, which a high learning rate amplifies step by step.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_reference import TORCH_NETWORKS, TorchNetwork, TorchRecipe

from jaxmnist import data, published, recipes
from jaxmnist.config import Config
from jaxmnist.export import torch_weights
from jaxmnist.networks import models
from jaxmnist.runs import assemble
from jaxmnist.training.engine import Engine, TrainState
from jaxmnist.training.population import Member

RECIPES = tuple(published.load_all())
STEPS, EARLY_STEPS = 200, 20
BATCH = 16
STEPS_PER_EPOCH = 20  # so that 200 steps pass through ten epochs of the schedules


def load_recipe(name: str) -> Config:
    """The configuration in configs/, with dropout off."""
    config = recipes.load(name)
    config.dropout = 0.0
    return config


def normalised(images_NHW: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """``ToTensor`` and ``Normalize``: (N, 1, 28, 28)."""
    return ((torch.from_numpy(images_NHW).to(dtype) / 255 - 0.1307) / 0.3081)[:, None]


def flat_weights(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        key: tensor.detach().numpy().copy()
        for key, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }


def gradients_of(network: torch.nn.Module) -> dict[str, np.ndarray]:
    return {
        key: parameter.grad.numpy().copy()
        for key, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def as_torch(network: models.Network, params, batch_stats) -> dict[str, np.ndarray]:
    state_dict = torch_weights.to_state_dict(network, params, batch_stats, step=0)
    return {key: array for key, array in state_dict.items() if array.dtype.kind == "f"}


class Pair(NamedTuple):
    """A network on both sides, with equal weights."""

    torch_network: TorchNetwork
    engine: Engine
    member: Member
    state: TrainState


def make_torch(
    recipe: str,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    disturb_batch_norm: bool = False,
) -> TorchNetwork:
    """Torch's network as it initialises it; batch norms away from their start if asked."""
    torch.manual_seed(seed)
    network = TORCH_NETWORKS[load_recipe(recipe).model](0.0)
    if disturb_batch_norm:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.2)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return network.to(dtype)  # only now: both precisions start from the same weights


def make_pair(recipe: str, torch_network: TorchNetwork) -> Pair:
    """The recipe's engine beside ``torch_network``, with its weights and in its precision."""
    config = load_recipe(recipe)
    weights = flat_weights(torch_network)
    dtype = next(iter(weights.values())).dtype
    make_network = functools.partial(models.build, config.model, dtype=dtype)
    engine = dataclasses.replace(assemble.engine(config), make_network=make_network)
    config.augment.rotate_degrees = config.augment.translate = 0.0
    member = assemble.member(config, assemble.schedule(config, STEPS_PER_EPOCH), 0)
    params, batch_stats, _ = torch_weights.from_state_dict(
        engine.network(), weights, in_order=False
    )
    state = TrainState(jnp.int32(0), params, batch_stats, engine.optimizer(member).init(params))
    return Pair(torch_network, engine, member, state)


@contextlib.contextmanager
def exact_arithmetic(*, float64: bool = False) -> Iterator[None]:
    """Full float32 matrix products, or float64 throughout."""
    with jax.default_matmul_precision("highest"), jax.enable_x64(float64):
        yield


def batches(train: data.Dataset, steps: int, size: int = BATCH):
    for start in range(0, steps * size, size):
        yield train.images_NHW[start : start + size], train.labels_N[start : start + size]


def relative(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest distance of a tensor from the expected one, relative to its norm.

    Norms below a thousandth of the whole are raised to that: the gradient of a bias before a batch
    norm is zero but for rounding, and relative to rounding everything is wrong.
    """
    whole = np.sqrt(sum(np.sum(np.square(array)) for array in expected.values()))
    return max(
        float(
            np.linalg.norm(found[key] - expected[key])
            / max(np.linalg.norm(expected[key]), 1e-3 * whole)
        )
        for key in expected
    )


def parameter_counts(recipe: str) -> tuple[int, int]:
    """Torch's and ours."""
    pair = make_pair(recipe, make_torch(recipe))
    return (
        sum(parameter.numel() for parameter in pair.torch_network.parameters()),
        sum(leaf.size for leaf in jax.tree.leaves(pair.state.params)),
    )


def forward_error(recipe: str, images_NHW: np.ndarray, *, train: bool) -> float:
    """Largest difference of a logit (of a log-probability, where torch returns those)."""
    with exact_arithmetic():
        pair = make_pair(recipe, make_torch(recipe, disturb_batch_norm=True))
        pair.torch_network.train(train)
        with torch.no_grad():
            expected = pair.torch_network(normalised(images_NHW, torch.float32)).numpy()
        apply = jax.jit(pair.engine.network().apply, static_argnames=("train", "mutable"))
        logits, _ = apply(
            {"params": pair.state.params, "batch_stats": pair.state.batch_stats},
            jnp.asarray(images_NHW),
            train=train,
            mutable="batch_stats",
        )
        if isinstance(pair.torch_network.layers[-1], torch.nn.LogSoftmax):
            logits = jax.nn.log_softmax(logits)
        return float(np.abs(np.asarray(logits) - expected).max())


class StepErrors(NamedTuple):
    """Relative errors of one training-mode pass."""

    loss: float
    gradient: float
    batch_stats: float


def step_errors(recipe: str, images_NHW: np.ndarray, labels_N: np.ndarray) -> StepErrors:
    """Loss, worst gradient and worst running statistic of a float32 step, against torch's float64.

    Torch's own float32 is no yardstick: oneDNN's fast convolutions leave its first gradients with
    errors of 3e-4.
    """
    exact = make_torch(recipe, torch.float64, disturb_batch_norm=True).train()
    criterion = TorchRecipe(recipe, exact.parameters(), STEPS_PER_EPOCH).loss
    outputs = exact(normalised(images_NHW, torch.float64))
    loss = criterion(outputs, torch.from_numpy(labels_N).long())
    loss.backward()
    with exact_arithmetic():
        pair = make_pair(recipe, make_torch(recipe, disturb_batch_norm=True))
        images_HWN = jnp.asarray(images_NHW.transpose(1, 2, 0))
        grads, batch_stats, metrics = jax.jit(pair.engine.gradients)(
            pair.state, pair.member, images_HWN, jnp.asarray(labels_N)
        )
        found = as_torch(pair.engine.network(), grads, batch_stats)
        expected_gradients = gradients_of(exact)
        expected_stats = {
            key: array
            for key, array in flat_weights(exact).items()
            if key.endswith(("running_mean", "running_var"))
        }
        return StepErrors(
            abs(float(metrics.loss) / loss.item() - 1),
            relative({key: found[key] for key in expected_gradients}, expected_gradients),
            relative({key: found[key] for key in expected_stats}, expected_stats),
        )


class Trajectory(NamedTuple):
    """What training left behind."""

    losses: np.ndarray
    """float64, one a step."""
    early_weights: dict[str, np.ndarray]
    """After the first 20 steps."""


class TrajectoryErrors(NamedTuple):
    """How far training strays from torch's in float64, relative."""

    losses: float
    """Worst of the losses."""
    early_weights: float
    """Worst tensor after the first 20 steps."""


def trajectories(
    recipe: str, train: data.Dataset, *, float64: bool, steps: int = STEPS
) -> tuple[Trajectory, Trajectory]:
    """Trains torch and jaxmnist on the same batches with the recipe's optimizer and schedule."""
    dtype = torch.float64 if float64 else torch.float32
    with exact_arithmetic(float64=float64):
        pair = make_pair(recipe, make_torch(recipe, dtype))
        network = pair.torch_network.train()
        torch_recipe = TorchRecipe(recipe, network.parameters(), STEPS_PER_EPOCH)
        step = jax.jit(pair.engine.train_step)
        state, losses, early = pair.state, np.zeros((2, steps)), ({}, {})
        for count, (images_NHW, labels_N) in enumerate(batches(train, steps)):
            torch_recipe.optimizer.zero_grad()
            outputs = network(normalised(images_NHW, dtype))
            loss = torch_recipe.loss(outputs, torch.from_numpy(labels_N).long())
            loss.backward()
            torch_recipe.step()
            images_HWN = jnp.asarray(images_NHW.transpose(1, 2, 0))
            state, metrics = step(state, pair.member, images_HWN, jnp.asarray(labels_N))
            losses[:, count] = loss.item(), float(metrics.loss)
            if count + 1 == EARLY_STEPS:
                found = as_torch(pair.engine.network(), state.params, state.batch_stats)
                early = flat_weights(network), found
    return Trajectory(losses[0], early[0]), Trajectory(losses[1], early[1])


def stray(found: Trajectory, exact: Trajectory) -> TrajectoryErrors:
    """The distance between two trajectories."""
    losses = np.abs(found.losses / exact.losses[: len(found.losses)] - 1).max()
    return TrajectoryErrors(float(losses), relative(found.early_weights, exact.early_weights))
