"""The Python API: networks are loaded and trained in a line, and what cannot be is told."""

import doctest
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from safetensors.torch import save_file
from saved_runs import make_run, tiny_config
from weight_files import reference, save, tensors
from workdirs import without_timing

import jaxmnist
from jaxmnist import classifier as classifier_lib
from jaxmnist import convert, recipes, sources
from jaxmnist.classifier import Classifier
from jaxmnist.config import default_config, flatten, from_json
from jaxmnist.errors import Stopped, UserError
from jaxmnist.runs import train as train_lib


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_lib, "_draw", lambda *_: None)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds, 4 and 5; epochs 2 and 3 are kept."""
    folder = tmp_path_factory.mktemp("run") / "run"
    make_run(folder, tiny_config(), {1: 10.0, 2: 90.0, 3: 80.0})
    return folder


@pytest.fixture(scope="module")
def images_NHW(mnist) -> np.ndarray:
    return mnist[1].images_NHW[:5]


def test_a_run(workdir: Path, images_NHW: np.ndarray):
    first = jaxmnist.load(workdir)
    assert flatten(first.config) == flatten(tiny_config())
    assert repr(first) == f"<Classifier compact_tiny of {workdir}, epoch 3, seed 4>"
    best = jaxmnist.load(str(workdir), checkpoint="best", seed=5)
    assert best.source == f"{workdir}, epoch 2, seed 5"
    assert not np.array_equal(first.logits(images_NHW), best.logits(images_NHW))
    assert "6,584" in first.summary()


def test_a_seed_may_be_one_of_numpys(workdir: Path):
    seeds: Any = np.arange(4, 6)
    for seed in seeds:
        known = jaxmnist.load(workdir, seed=seed).metadata
        assert json.loads(known["config"])["seed"] == int(known["seed"]) == seed


def test_a_run_may_be_called_like_a_file(workdir: Path, tmp_path: Path):
    shutil.copytree(workdir, tmp_path / "best.pt")
    assert jaxmnist.load(tmp_path / "best.pt").source.endswith("best.pt, epoch 3, seed 4")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("sent", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_ctrl_c_is_no_error_that_a_loop_would_catch(
    sent: signal.Signals,
    ends: type[BaseException],
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def stop(*_: object, **__: object) -> None:
        raise Stopped(sent, "everything is saved")

    monkeypatch.setattr(train_lib, "run", stop)
    with pytest.raises(ends) as raised:
        jaxmnist.train("model3", tmp_path / "run" if kept else None)
    said = {signal.SIGINT: ("everything is saved",) * kept, signal.SIGTERM: (143,)}
    assert raised.value.args == said[sent]


def test_images_of_all_kinds(workdir: Path, images_NHW: np.ndarray):
    classifier = jaxmnist.load(workdir)
    digits, probabilities = classifier.predict(images_NHW)
    assert digits.shape == (5,)
    assert probabilities.shape == (5, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(1), digits)
    of_jax = classifier.predict(jnp.asarray(images_NHW))
    np.testing.assert_array_equal(of_jax.probabilities, probabilities)
    one = classifier.predict(images_NHW[3])
    assert one.digits == digits[3]
    assert one.probabilities.shape == (10,)
    np.testing.assert_allclose(one.probabilities, probabilities[3], rtol=1e-5)
    none = classifier.predict(images_NHW[:0])
    assert (none.digits.shape, none.probabilities.shape) == ((0,), (0, 10))


def test_equal_networks_are_compiled_once(images_NHW: np.ndarray):
    """Of two recipes, between which the rate of dropout differs; not those of another network."""
    apply: Any = classifier_lib._apply
    compiled = []
    for name in ("compact", "compact_sgd", "compact_tiny"):
        jaxmnist.load(name).logits(images_NHW)
        compiled.append(apply._cache_size())
    assert compiled[0] == compiled[1] < compiled[2]


def test_logits_are_those_of_the_network_however_many(workdir: Path, mnist):
    """In parts of 128 images, the last of which is filled up."""
    classifier = jaxmnist.load(workdir)
    images_NHW = mnist[1].images_NHW[:1030]
    variables = {"params": classifier.params, "batch_stats": classifier.batch_stats}
    expected: Any = classifier.network.apply(variables, jnp.asarray(images_NHW), train=False)
    np.testing.assert_allclose(classifier.logits(images_NHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 28, 28)), "of type float64: they must be uint8"),
        (np.zeros((2, 28, 28), np.int64), "of type int64"),
        (np.zeros((28,), np.uint8), "the shape (28,)"),
        (np.zeros((2, 28, 27), np.uint8), "the shape (2, 28, 27)"),
        (np.zeros((2, 1, 28, 28), np.uint8), "(N, 28, 28) or (28, 28)"),
    ],
)
def test_images_that_it_does_not_take(workdir: Path, images: np.ndarray, words: str):
    with pytest.raises(UserError, match=re.escape(words)):
        jaxmnist.load(workdir).predict(images)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_weights(suffix: str, tmp_path: Path, images_NHW: np.ndarray):
    file = save(tmp_path / f"weights{suffix}", reference("model3").state_dict())
    convert.import_weights(file, tmp_path / "run", recipes.load("model3"))
    expected = jaxmnist.load(tmp_path / "run").logits(images_NHW)
    config = recipes.load("model3")
    for recipe in ("model3", recipes.path("model3"), config):
        found = jaxmnist.load(file, recipe=recipe)
        np.testing.assert_array_equal(found.logits(images_NHW), expected)
        assert found.metadata["recipe"] == "model3"
    assert str(file) in repr(found)


def test_networks_that_are_not_there(tmp_path: Path):
    file = save(tmp_path / "weights.pth", reference("model3").state_dict())
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (
            "nowhere",
            {},
            "'nowhere' is no trained network: name a run's folder, a file that ends in",
        ),
        ("model4", {}, "or one of compact, compact_sgd, compact_tiny, "),
        ("", {}, "'' is no trained network"),
        ("nowhere", {"recipe": "model3"}, "'nowhere' is no trained network"),
        ("nowhere", {"checkpoint": "best", "seed": 1}, "'nowhere' is no trained network"),
        ("model3", {"recipe": "model3"}, "model3 has a recipe of its own: leave --config"),
        (tmp_path, {"recipe": "model3"}, "holds no run"),
        ("a\nb", {}, "'a\\nb' is no trained network"),
        ("x" * 300, {}, "is no trained network"),
        (tmp_path, {}, "holds no run"),
        (file, {}, "weights.pth does not say its recipe: name it with recipe="),
        (file, {"recipe": "compact"}, "weights.pth does not fit compact: "),
        (file, {"recipe": "vgg"}, "recipe 'vgg' is neither a file nor one of the packaged ones: "),
        (tmp_path / "none.pth", {"recipe": "model3"}, "none.pth is no file"),
        (tmp_path / "none.pth", {"checkpoint": "best"}, "none.pth is no file"),
        (file, {"checkpoint": "best"}, "weights.pth is no run"),
    ]
    for source, options, words in cases:
        with pytest.raises(UserError, match=re.escape(words)) as raised:
            jaxmnist.load(source, **options)
        assert "\n" not in str(raised.value)


def test_what_is_on_the_disk_goes_before_a_packaged_name(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert jaxmnist.load("compact_tiny").metadata["recipe"] == "compact_tiny"
    shutil.copytree(workdir, "compact_tiny")
    assert jaxmnist.load("compact_tiny").source == "compact_tiny, epoch 3, seed 4"
    Path("model3").mkdir()
    with pytest.raises(UserError, match="model3 holds no run"):
        jaxmnist.load("model3")


@pytest.mark.parametrize(
    ("checkpoint", "seed", "expected"),
    [
        ("last", None, {"seed": "4", "epoch": "3", "step": "30", "final_accuracy": "80.0"}),
        ("best", 5, {"seed": "5", "epoch": "2", "step": "20"}),
    ],
)
def test_what_is_known_of_a_run(
    workdir: Path, checkpoint: str, seed: int | None, expected: dict[str, str]
):
    """The accuracy of the last epoch alone is final; the configuration is of that seed alone."""
    known = dict(jaxmnist.load(workdir, checkpoint=checkpoint, seed=seed).metadata)
    alone = tiny_config(seed=int(expected["seed"]), num_seeds=1)
    assert flatten(from_json(known.pop("config"))) == flatten(alone)
    version = jaxmnist.__version__
    assert known == expected | {"model": "compact_tiny", "params": "6584", "version": version}


UNKNOWN_FIELD = """
import jaxmnist.recipes

def get_config():
    from jaxmnist.config import default_config
    config = default_config()
    config.learning_rate = 0.1
    return config
"""


def test_runs_of_a_packaged_recipe_are_known_by_it(tmp_path: Path):
    """Whatever their seeds and devices; another number of epochs is another recipe."""
    config = recipes.load("model1")
    config.update_from_flattened_dict(
        {"seed": 7, "num_seeds": 2, "mesh.data": 1, "checkpoint.keep": 9}
    )
    make_run(tmp_path / "run", config, {1: 50.0})
    assert jaxmnist.load(tmp_path / "run").metadata["recipe"] == "model1"
    config.num_epochs = 3
    assert sources.packaged_recipe(config) is None
    names = recipes.names()
    assert [sources.packaged_recipe(recipes.load(name)) for name in names] == names


@pytest.mark.parametrize("text", ["x = 1", "def get_config(: pass", UNKNOWN_FIELD])
def test_other_files_beside_the_recipes_do_no_harm(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What recipes share, or one that is being written."""
    shutil.copy(recipes.path("model1"), tmp_path)
    (tmp_path / "a_draft.py").write_text(text)
    config = recipes.load("model1")
    monkeypatch.setattr(recipes, "_folder", lambda: tmp_path)
    assert recipes.names() == ["a_draft", "model1"]
    assert sources.packaged_recipe(config) == "model1"
    config.num_epochs = 3
    assert sources.packaged_recipe(config) is None


def test_weights_that_know_their_recipe(workdir: Path, tmp_path: Path, images_NHW: np.ndarray):
    """What they say does not hold where another recipe is named."""
    file = tmp_path / "mine.safetensors"
    jaxmnist.save(jaxmnist.load(workdir, seed=5), file)
    found, expected = jaxmnist.load(file), jaxmnist.load(workdir, seed=5)
    np.testing.assert_array_equal(found.logits(images_NHW), expected.logits(images_NHW))
    assert found.metadata == expected.metadata
    assert found.config.seed == 5
    renamed = jaxmnist.load(file, recipe="compact_tiny")
    assert flatten(renamed.config) == flatten(recipes.load("compact_tiny"))
    assert set(renamed.metadata) == {"model", "params", "config", "version", "recipe"}
    np.testing.assert_array_equal(renamed.logits(images_NHW), expected.logits(images_NHW))


def config_json(**fields: Any) -> str:
    return json.dumps(recipes.load("model3").to_dict() | fields)


# What stands where the configuration should, and what the complaint must say.
USELESS = {
    "nothing": ("", "no usable configuration ("),
    "a name": ("model3", "no usable configuration ("),
    "a list": ("[1, 2]", "no usable configuration ("),
    "null": ("null", "no usable configuration (config."),
    "deep": ("[" * 100_000, "no usable configuration ("),
    "another library's": ('{"architectures": ["ViT"]}', "(config.architectures is unknown"),
    "a bad value": (config_json(num_epochs=0), "(config.num_epochs is 0"),
    "an unknown model": (config_json(model="vgg"), "(config.model is 'vgg'"),
    "a bad name": (config_json(**{"a\nb": 1}), r"(config.a\nb is unknown"),
    "another network's": (config_json(model="model1"), "does not fit model1: "),
}


@pytest.mark.parametrize(("text", "words"), USELESS.values(), ids=list(USELESS))
def test_weights_whose_configuration_is_of_no_use(text: str, words: str, tmp_path: Path):
    """They are taken with a recipe."""
    file = tmp_path / "weights.safetensors"
    save_file(tensors(), file, {"config": text, "seed": "five"})
    with pytest.raises(UserError, match=re.escape(f"{file} ")) as raised:
        jaxmnist.load(file)
    message = str(raised.value)
    assert words in message
    assert message.isprintable()
    assert "): name it with recipe=" in message or "does not fit" in message
    assert jaxmnist.load(file, recipe="model3").metadata["params"] == "7784"


def test_training_is_that_of_the_command(
    tmp_path: Path,
    idx_folder: Path,
    images_NHW: np.ndarray,
    capsys: pytest.CaptureFixture[str],
):
    fields = {"dataset": str(idx_folder), "split": "train/test", "num_epochs": 1}
    fields |= {"batch_size": 64, "optimizer__learning_rate": 0.02, "num_seeds": 2}
    classifier, rows = jaxmnist.train("compact_tiny", tmp_path / "run", **fields)
    assert isinstance(classifier, Classifier)
    assert [(row["seed"], row["epoch"]) for row in rows] == [(0, 1), (1, 1)]
    assert classifier.config.optimizer.learning_rate == 0.02
    again = jaxmnist.load(tmp_path / "run", seed=0)
    np.testing.assert_array_equal(again.logits(images_NHW), classifier.logits(images_NHW))
    # Without a folder, from a configuration: the same.
    config = recipes.load("compact_tiny")
    before = flatten(config)
    capsys.readouterr()
    nowhere, same_rows = jaxmnist.train(config, **fields)
    assert without_timing(same_rows) == without_timing(rows)
    assert "everything is in" not in capsys.readouterr().out
    assert nowhere.source == "a run whose folder was not kept, epoch 1, seed 0"
    np.testing.assert_array_equal(nowhere.logits(images_NHW), classifier.logits(images_NHW))
    assert flatten(config) == before


def test_training_may_start_over(tmp_path: Path, idx_folder: Path):
    fields = {"dataset": str(idx_folder), "split": "train/test", "num_epochs": 1}
    jaxmnist.train("compact_tiny", tmp_path / "run", **fields)
    with pytest.raises(UserError, match=r"holds another run \(config.batch_size"):
        jaxmnist.train("compact_tiny", tmp_path / "run", **fields, batch_size=64)
    jaxmnist.train(
        "compact_tiny", tmp_path / "run", **fields, batch_size=64, restart=True, tensorboard=True
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
    assert list((tmp_path / "run" / "tensorboard").rglob("events.*"))


@pytest.mark.parametrize(
    ("recipe", "fields", "words"),
    [
        ("model3", {"workdir": ""}, "workdir is empty"),
        ("vgg", {}, "recipe 'vgg' is neither"),
        ("model3", {"learning_rate": 1.0}, "did you mean config.optimizer.learning_rate?"),
        ("model3", {"num_epochs": "three"}, "config.num_epochs is 'three': it must be of type int"),
        ("model3", {"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate is -1.0"),
        ("model3", {"dataset": "nowhere"}, "'nowhere'"),
        ("model3", {"recipe": "", "num_epochs": 0}, "config.num_epochs is 0"),
    ],
)
def test_training_that_cannot_be(recipe: str, fields: dict[str, Any], words: str):
    with pytest.raises(UserError, match=re.escape(words)):
        jaxmnist.train(recipe, **fields)


@pytest.mark.parametrize("options", [{"seed": 5}, {"checkpoint": "best"}, {"checkpoint": 3}])
def test_only_runs_have_seeds_and_checkpoints(options: dict[str, Any]):
    with pytest.raises(UserError, match="model3 is no run: leave checkpoint and seed out"):
        jaxmnist.load("model3", **options)


def test_an_epoch_may_be_a_number(workdir: Path):
    assert jaxmnist.load(workdir, checkpoint=2).source == f"{workdir}, epoch 2, seed 4"


def test_names_of_recipes_in_the_folder_do_no_harm(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "compact").write_text("no recipe")
    monkeypatch.chdir(tmp_path)
    assert "recipe" not in jaxmnist.load(workdir).metadata


def test_weights_that_give_no_numbers(images_NHW: np.ndarray):
    classifier = jaxmnist.load("model3")
    classifier.params = jax.tree.map(lambda leaf: leaf * 1e38, classifier.params)
    with pytest.raises(UserError, match="gives no finite logits: its weights are damaged"):
        classifier.predict(images_NHW)


def test_a_recipe_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(recipes.path("model1"), tmp_path / "mine.py")
    assert recipes.load("~/mine.py").model == "model1"


def test_a_recipe_that_makes_no_configuration(tmp_path: Path):
    file = tmp_path / "mine"
    file.write_text("def get_config(): return None")
    with pytest.raises(UserError, match="must return a ConfigDict, not None"):
        jaxmnist.train(file)


@pytest.mark.parametrize("text", ["raise OSError('gone')", "def get_config(: pass", "x = 1"])
def test_broken_recipes_are_told(text: str, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=r"recipe .*mine.py: \w+: .*: correct it"):
        recipes.load(file)


def test_recipes_are_those_of_the_command():
    config = recipes.load("net8k")
    assert config.recipe == "net8k"
    assert set(flatten(config)) == set(flatten(default_config()))


def test_the_example_of_the_package():
    results = doctest.testmod(jaxmnist)
    assert (results.failed, results.attempted) == (0, 5)


@pytest.mark.long
def test_the_readme_examples_work_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text()
    here, in_torch = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(here, "README.md", "exec"), {})
    said = capsys.readouterr().out
    (right,) = re.findall(r"^model3: (9,\d\d\d) of 10,000 right$", said, re.MULTILINE)
    assert right in ("9,953", "9,954", "9,955", "9,956", "9,957")
    assert said.count("6,584") >= 2
    jaxmnist.save(jaxmnist.load("model3"), "model3.pth")
    monkeypatch.syspath_prepend(root)
    names: dict[str, Any] = {}
    exec(compile(in_torch, "README.md", "exec"), names)
    digits_N = names["logits"].argmax(1).numpy()
    assert abs((digits_N == names["test"].labels_N).sum() - int(right.replace(",", ""))) <= 1
    assert (tmp_path / "tiny.html").stat().st_size > 40_000


def test_the_import_is_light():
    """Neither JAX nor NumPy before they are needed."""
    heavy = "{'jax', 'numpy', 'flax', 'matplotlib', 'ml_collections'}"
    code = f"import sys, jaxmnist; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_packaged_network_needs_little():
    """Neither PyTorch nor ONNX, nor what runs are made of."""
    heavy = "{'torch', 'onnx', 'matplotlib', 'orbax', 'optax'}"
    code = (
        f"import sys, jaxmnist; jaxmnist.load('model3'); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_configuration_of_ones_own_takes_fields():
    """Also where it says 1 for 1.0; one that lacks fields is told so."""
    own = default_config().copy_and_resolve_references()
    with own.ignore_type():
        own.optimizer.learning_rate = 1
    found = sources._configuration(own, {"optimizer__learning_rate": 0.5})
    assert found.optimizer.learning_rate == 0.5
    assert own.optimizer.learning_rate == 1
    numpys = {"optimizer__learning_rate": np.float32(0.5), "num_epochs": np.int64(3)}
    found = sources._configuration(own, numpys)
    assert (found.optimizer.learning_rate, found.num_epochs) == (0.5, 3)
    assert {type(found.optimizer.learning_rate), type(found.num_epochs)} == {float, int}
    with pytest.raises(UserError, match=r"config\.\S+ is missing: start from"):
        sources._configuration(ml_collections.ConfigDict(), {"optimizer__learning_rate": 0.5})
