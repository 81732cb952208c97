"""The networks that come with the package: as good as they say, and saying all of it."""

import math
import re
from pathlib import Path

import jax
import pytest
from classifiers import count_right

import jaxmnist
from jaxmnist import data, recipes, sources
from jaxmnist.config import flatten, from_json
from jaxmnist.export import torch_weights
from jaxmnist.networks import analyze

NAMES = sources.packaged()
BRIEFLY = ("compact_tiny", "model3")


def test_there_is_one_for_each_recipe():
    assert recipes.names() == NAMES


def test_they_are_small():
    files = list(sources.WEIGHTS.iterdir())
    assert {file.name for file in files} == {f"{name}.safetensors" for name in NAMES}
    assert sum(file.stat().st_size for file in files) < 1_200_000


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str):
    classifier, recipe = jaxmnist.load(name), recipes.load(name)
    known = dict(classifier.metadata)
    assert flatten(from_json(known.pop("config"))) == flatten(recipe) == flatten(classifier.config)
    assert (known.pop("recipe"), known.pop("model"), known.pop("seed")) == (name, recipe.model, "0")
    assert known.pop("epoch") == str(recipe.num_epochs)
    counted = sum(leaf.size for leaf in jax.tree.leaves(classifier.params))
    assert int(known.pop("params")) == counted
    assert counted == sum(layer.params for layer in analyze.summarize(classifier.network))
    assert re.fullmatch(r"\d+\.\d+\.\d+", known.pop("version"))
    accuracy, correct = float(known.pop("final_accuracy")), int(known.pop("test_correct"))
    assert 98 < accuracy < 100
    if recipe.split == "train/test":
        assert correct == pytest.approx(100 * accuracy, abs=2)
    images = 60_000 if recipe.split == "train/test" else 50_000
    steps_per_epoch = math.ceil(images / recipe.batch_size)
    assert int(known.pop("step")) == recipe.num_epochs * steps_per_epoch
    assert known == {}


def test_the_readme_says_what_they_say():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in NAMES:
        known = jaxmnist.load(name).metadata
        on = "test" if recipes.load(name).split == "train/test" else "validation"
        accuracy, right = float(known["final_accuracy"]), int(known["test_correct"])
        row = f"| `{name}` | {int(known['params']):,} | {accuracy:.2f} % ({on}) | {right:,} |\n"
        assert row in readme


@pytest.mark.parametrize("name", NAMES)
def test_batch_counters_are_the_steps(name: str):
    file = sources.WEIGHTS / f"{name}.safetensors"
    step = int(torch_weights.read_metadata(file)["step"])
    weights = torch_weights.read(file)
    counters = {int(array) for key, array in weights.items() if key.endswith("tracked")}
    assert counters == {step}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in BRIEFLY else pytest.mark.long) for name in NAMES],
)
def test_it_gets_as_many_images_right_as_it_says(
    name: str, mnist: tuple[data.Dataset, data.Dataset]
):
    classifier, (_, test) = jaxmnist.load(name), mnist
    found = count_right(classifier.logits(test.images_NHW), test)
    assert abs(found - int(classifier.metadata["test_correct"])) <= 2


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in NAMES if recipes.load(n).split == "train/val"])
def test_it_is_as_accurate_as_it_says_on_what_its_recipe_holds_out(name: str):
    classifier, (_, held_out) = jaxmnist.load(name), data.load("mnist", "train/val")
    found = count_right(classifier.logits(held_out.images_NHW), held_out)
    assert found == pytest.approx(100 * float(classifier.metadata["final_accuracy"]), abs=2)
