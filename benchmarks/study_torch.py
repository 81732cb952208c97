"""A recipe of the study in PyTorch: the same data, augmentation, optimizer and schedule."""

import statistics
import time

import torch
from torch_peers import TORCH_NETWORKS, TorchRecipe, augmented

from jaxmnist import data, recipes
from jaxmnist.networks import models


def _normalized(images: torch.Tensor) -> torch.Tensor:
    return (images / 255 - models.MEAN) / models.STD


def run(task: tuple[str, int]) -> tuple[str, int, int, list[float], float]:
    """Trains a recipe with a seed, on one thread.

    Returns:
      Recipe, seed, parameters, percent right after each epoch, images/s of training (median of the
      epochs).
    """
    recipe, seed = task
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = recipes.load(recipe)
    train, test = data.load("mnist", config.split)
    images, labels = torch.from_numpy(train.images_NHW), torch.from_numpy(train.labels_N).long()
    test_images = _normalized(torch.from_numpy(test.images_NHW).float()[:, None])
    test_labels = torch.from_numpy(test.labels_N)
    network = TORCH_NETWORKS[config.model](config.dropout)
    steps = -(-len(images) // config.batch_size)
    chosen = TorchRecipe(recipe, network.parameters(), steps)
    accuracies, rates = [], []
    for _ in range(config.num_epochs):
        started = time.perf_counter()
        network.train()
        for index in torch.randperm(len(images)).split(config.batch_size):
            batch = images[index].float()[:, None]
            batch = augmented(batch, config.augment.rotate_degrees, config.augment.translate)
            chosen.optimizer.zero_grad()
            chosen.loss(network(_normalized(batch)), labels[index]).backward()
            chosen.step()
        rates.append(len(images) / (time.perf_counter() - started))
        network.eval()
        with torch.no_grad():
            found = torch.cat([network(part).argmax(1) for part in test_images.split(1000)])
        accuracies.append(100 * int((found == test_labels).sum()) / len(test_labels))
    params = sum(parameter.numel() for parameter in network.parameters())
    return recipe, seed, params, accuracies, statistics.median(rates)
