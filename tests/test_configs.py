"""The recipes in configs/: their files, their hyperparameters, their publications."""

from pathlib import Path
from typing import Any

import pytest

from jaxmnist import published, recipes
from jaxmnist.config import architecture, default_config, flatten, validate
from jaxmnist.networks import analyze, models

FOLDER = Path(__file__).parents[1] / "configs"

ONECYCLE = {
    "split": "train/test",
    "num_epochs": 15,
    "label_smoothing": 0.02,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.3,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 0.0,
    "schedule.name": "onecycle",
    "schedule.pct_start": 0.2,
    "schedule.div_factor": 10.0,
    "schedule.final_div_factor": 100.0,
    "schedule.base_momentum": 0.85,
    "schedule.max_momentum": 0.95,
    "augment.rotate_degrees": 7.0,
}
# All that differs from the general defaults; what a recipe does not name must be the default.
RECIPES: dict[str, dict[str, Any]] = {
    "compact_tiny": {
        "model": "compact_tiny",
        "dropout": 0.1,
        "split": "train/val",
        "num_epochs": 15,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
        "optimizer.momentum": 0.9,
        "schedule.name": "constant",
        "augment.rotate_degrees": 10.0,
        "augment.translate": 0.1,
    },
    "compact_sgd": {
        "model": "compact",
        "dropout": 0.1,
        "split": "train/val",
        "num_epochs": 15,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.01,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 1e-4,
        "schedule.name": "cosine",
        "augment.rotate_degrees": 10.0,
        "augment.translate": 0.1,
    },
    "compact": {
        "model": "compact",
        "dropout": 0.05,
        "split": "train/val",
        "num_epochs": 20,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 1e-4,
        "schedule.name": "cosine",
        "augment.rotate_degrees": 5.0,
        "augment.translate": 0.04,
    },
    "lightweight": {
        "model": "lightweight",
        "dropout": 0.25,
        "split": "train/test",
        "num_epochs": 14,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 1e-4,
        "schedule.name": "step",
        "schedule.step_size": 5,
        "schedule.gamma": 0.5,
    },
    "model1": ONECYCLE | {"model": "model1", "dropout": 0.1},
    "model2": ONECYCLE | {"model": "model2", "dropout": 0.05},
    "model3": ONECYCLE | {"model": "model3"},
    "efficient": {
        "model": "efficient",
        "dropout": 0.1,
        "split": "train/val",
        "num_epochs": 20,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-3,
        "optimizer.weight_decay": 1e-5,
        "schedule.name": "step",
        "schedule.step_size": 7,
        "schedule.gamma": 0.1,
    },
    "net8k": {
        "model": "net8k",
        "dropout": 0.1,
        "split": "train/val",
        "num_epochs": 19,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 5e-3,
        "optimizer.weight_decay": 1e-4,
        "schedule.name": "onecycle",
        "schedule.pct_start": 0.2,
        "schedule.div_factor": 25.0,
        "schedule.final_div_factor": 1e4,
        "schedule.base_momentum": 0.85,
        "schedule.max_momentum": 0.95,
        "augment.rotate_degrees": 7.0,
    },
}
PARAMS = {
    "compact_tiny": 6_584,
    "compact_sgd": 18_472,
    "compact": 18_472,
    "lightweight": 19_210,
    "model1": 13_808,
    "model2": 9_382,
    "model3": 7_784,
    "efficient": 19_664,
    "net8k": 8_440,
}
FRONTIER = {  # parameters
    "under_500": 488,
    "under_1k": 980,
    "under_2k": 1_803,
    "under_4k": 3_744,
    "under_8k": 7_685,
    "under_20k": 15_038,
    "under_20k_long": 15_038,
}
every_recipe = pytest.mark.parametrize("name", RECIPES)
every_budget = pytest.mark.parametrize("name", FRONTIER)


def test_nine_recipes_were_published():
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == set(RECIPES) | set(FRONTIER)
    assert set(RECIPES) == set(published.load_all())
    assert len(RECIPES) == 9


@every_recipe
def test_valid_and_named_as_its_file(name: str):
    config = recipes.load(name)
    validate(config)
    assert config.recipe == name


@every_recipe
def test_hyperparameters(name: str):
    defaults = flatten(default_config())
    assert defaults["batch_size"] == 128
    assert flatten(recipes.load(name)) == defaults | {"recipe": name} | RECIPES[name]


@every_recipe
def test_two_loads_are_independent(name: str):
    first, second = recipes.load(name), recipes.load(name)
    first.optimizer.learning_rate = 0.5
    assert second.optimizer.learning_rate == RECIPES[name]["optimizer.learning_rate"]


@every_recipe
def test_parameters_are_the_published_ones(name: str):
    config = recipes.load(name)
    layers = analyze.summarize(models.build(config.model))
    publication = published.load_all()[name]
    assert sum(layer.params for layer in layers) == publication["params"] == PARAMS[name]
    if "receptive_field" in publication:
        assert layers[-1].receptive_field == publication["receptive_field"]


@every_recipe
def test_epochs_and_split_are_the_published_ones(name: str):
    config, publication = recipes.load(name), published.load_all()[name]
    shown = {"train/test": "60k/10k test", "train/val": "50k/10k"}
    assert shown[config.split] == publication["split"]
    epochs = [row["epoch"] for row in publication["epochs"]]
    assert epochs == sorted(set(epochs))
    assert all(1 <= epoch <= config.num_epochs for epoch in epochs)
    if name not in ("compact_tiny", "net8k"):  # of these no last epoch is published
        assert epochs[-1] == config.num_epochs


@every_recipe
def test_docstring_names_the_parameters(name: str):
    docstring = (FOLDER / f"{name}.py").read_text().partition("\n")[0]
    assert f"{PARAMS[name]:,} parameters" in docstring


@every_budget
def test_recipes_of_the_frontier_keep_their_budget(name: str):
    config = recipes.load(name)
    validate(config)
    layers = analyze.summarize(models.build(architecture(config)))
    budget = int(name.removeprefix("under_").removesuffix("_long").replace("k", "000"))
    params = sum(layer.params for layer in layers)
    assert budget / 2 < params == FRONTIER[name] < budget
    assert (config.recipe, config.split) == ("", "train/test")
    assert config.num_epochs <= {"under_20k": 20, "under_20k_long": 40}.get(name, 15)


@every_budget
def test_docstring_names_the_parameters_of_the_frontier(name: str):
    docstring = (FOLDER / f"{name}.py").read_text().partition("\n")[0]
    assert f"{FRONTIER[name]:,} parameters" in docstring


@every_recipe
def test_best_published_epoch_is_in_the_curve(name: str):
    publication = published.load_all()[name]
    curve = [row["eval_accuracy"] for row in publication["epochs"]]
    if name in ("compact_tiny", "compact_sgd"):  # published in excerpts
        assert max(curve) < publication["best_accuracy"]
    elif name == "net8k":  # a target, no measurement
        assert publication["best_accuracy"] is None
        assert publication["target_accuracy"] == 99.4
    else:
        assert max(curve) == publication["best_accuracy"]


@pytest.mark.parametrize(
    ("recipe", "dataset", "split", "params"),
    [
        ("", "mnist", "train/test", 7784),
        ("model3", "tfds:kmnist", "train/test", 7784),
        ("model3", "some/folder", "train/test", 7784),
        ("model3", "mnist", "train/val", 7784),
        ("model3", "mnist", "train/test", 13808),
        ("compact", "mnist", "train/test", 18472),
    ],
)
def test_nothing_published_compares(recipe: str, dataset: str, split: str, params: int):
    assert published.comparable(recipe, dataset, split, params) is None


def test_publication_of_a_recipe():
    publication = published.comparable("model3", "mnist", "train/test", 7784)
    assert publication is not None
    assert publication["best_accuracy"] == 99.47


def test_publication_of_a_validation_split():
    publication = published.comparable("compact", "mnist", "train/val", 18472)
    assert publication is not None
    assert publication["best_accuracy"] == 99.25
