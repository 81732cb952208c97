"""Weights carried from PyTorch to a run and back, by functions and by the command."""

import concurrent.futures
import contextlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
from commands import fresh
from safetensors.torch import load_file
from saved_runs import make_run, tiny_config, tiny_run
from torch_reference import TORCH_NETWORKS, TorchNetwork
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
from workdirs import AT_ONCE, files_below

import jaxmnist
from jaxmnist import convert, data
from jaxmnist.config import Config, default_config, flatten
from jaxmnist.errors import UserError
from jaxmnist.export import files
from jaxmnist.networks import models
from jaxmnist.runs import assemble, saved_run, train
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.workdir import Workdir

CONFIGS = Path(__file__).parents[1] / "configs"
TIMEOUT = 120

torch.set_num_threads(1)


def recipe(model: str = "model3", **fields) -> Config:
    config = default_config()
    config.update_from_flattened_dict({"model": model} | fields)
    return config


def outputs_of_run(run: saved_run.SavedRun, images_NHW: np.ndarray, *, log: bool) -> np.ndarray:
    """Logits, or log-probabilities."""
    apply = jax.jit(assemble.engine(run.config).network().apply, static_argnames="train")
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    logits = apply(variables, jnp.asarray(images_NHW), train=False)
    return np.asarray(jax.nn.log_softmax(logits) if log else logits)


def assert_equal_outputs(
    network: TorchNetwork, run: saved_run.SavedRun, test_data: data.Dataset
) -> None:
    """To 1e-5 on 32 images."""
    images_NHW = test_data.images_NHW[:32]
    images = (torch.from_numpy(images_NHW).float() / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        expected = network.eval()(images[:, None]).numpy()
    log = isinstance(network.layers[-1], torch.nn.LogSoftmax)
    found = outputs_of_run(run, images_NHW, log=log)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", models.NETWORKS)
def test_torch_to_run_and_back(model: str, tmp_path: Path, mnist):
    network = reference(model)
    expected = network.state_dict()
    by_order = convert.import_weights(
        save(tmp_path / "given.pth", expected), tmp_path / "run", recipe(model)
    )
    assert not by_order
    run = saved_run.load(tmp_path / "run")
    assert (run.epoch, int(run.state.step), run.seed) == (0, 0, 0)
    assert saved_run.load(tmp_path / "run", "best").epoch == 0
    assert_equal_outputs(network, run, mnist[1])
    # Batches that the run has not seen itself are not counted.
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    for suffix in SUFFIXES:
        file = tmp_path / f"back{suffix}"
        convert.export(tmp_path / "run", file)
        assert_equal(load(file), {**expected, **counters})
        TORCH_NETWORKS[model](0.0).load_state_dict(load(file), strict=True)
    convert.import_weights(tmp_path / "back.safetensors", tmp_path / "again", recipe(model))
    again = saved_run.load(tmp_path / "again").state
    assert jax.tree.structure(again) == jax.tree.structure(run.state)
    jax.tree.map(np.testing.assert_array_equal, again, run.state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", [4, 5])
def test_run_to_torch_and_back(trained: Path, seed: int, suffix: str, tmp_path: Path, mnist):
    before = files_below(trained)
    file = tmp_path / f"weights{suffix}"
    convert.export(trained, file, seed=seed)
    assert files_below(trained) == before
    assert list(tmp_path.iterdir()) == [file]
    network = TORCH_NETWORKS["compact_tiny"](0.1)
    network.load_state_dict(load(file), strict=True)
    assert load(file)["layers.1.num_batches_tracked"] == 6
    run = saved_run.load(trained, seed=seed)
    assert_equal_outputs(network, run, mnist[1])

    convert.import_weights(file, tmp_path / "run", recipe("compact_tiny", seed=seed))
    back = saved_run.load(tmp_path / "run")
    assert back.seed == seed
    for found, expected in (
        (back.state.params, run.state.params),
        (back.state.batch_stats, run.state.batch_stats),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(("checkpoint", "epoch"), [("best", 2), ("last", 3), ("3", 3)])
def test_checkpoint_to_export(checkpoint: str, epoch: int, tmp_path: Path):
    make_run(tmp_path / "run", tiny_config(), {1: 50.0, 2: 90.0, 3: 70.0})
    convert.export(tmp_path / "run", tmp_path / "weights.pth", checkpoint)
    assert load(tmp_path / "weights.pth")["layers.1.num_batches_tracked"] == 10 * epoch


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_other_names_are_noted(suffix: str, tmp_path: Path):
    file = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": other_names(tensors()), "epoch": 3}, file)
    assert convert.import_weights(file, tmp_path / "run", recipe())
    kernel = saved_run.load(tmp_path / "run").state.params["layers_0"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel).transpose(3, 2, 0, 1), tensors()[FIRST])


def test_training_goes_on_from_imported_weights(
    tmp_path: Path,
    idx_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """With a learning rate too small to change anything, the weights stay what they were."""
    config = recipe(
        "compact_tiny",
        dataset=str(idx_folder),
        num_epochs=1,
        **{"optimizer.learning_rate": 1e-30, "mesh.data": 1},
    )
    file, workdir = save(tmp_path / "weights.pt", tensors("compact_tiny")), tmp_path / "run"
    convert.import_weights(file, workdir, config)
    imported = saved_run.load(workdir).state
    monkeypatch.setattr(train, "_draw", lambda *_: None)
    train.run(config, workdir)
    assert "resumed after epoch 0 of 1" in capsys.readouterr().out
    run = saved_run.load(workdir)
    assert (run.epoch, int(run.state.step)) == (1, 5)
    jax.tree.map(np.testing.assert_array_equal, run.state.params, imported.params)
    assert saved_run.load(workdir, "best").epoch == 1


@pytest.mark.parametrize("target", ["run", "link", "."])
def test_empty_folder_may_be_the_target(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Even the one where the user is, and one that stands elsewhere."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / ("run" if target == "." else "."))
    convert.import_weights(save(tmp_path / "w.pth", tensors()), Path(target), recipe())
    assert saved_run.load(tmp_path / "run").epoch == 0
    assert saved_run.load(Path(target)).epoch == 0


def test_a_link_to_nowhere_is_no_target(tmp_path: Path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link is not an empty folder: choose another"):
        convert.import_weights(save(tmp_path / "w.pth", tensors()), tmp_path / "link", recipe())


def test_nor_one_of_an_export(trained: Path, tmp_path: Path):
    (tmp_path / "link.pth").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"link\.pth exists: choose another name"):
        convert.export(trained, tmp_path / "link.pth")


def test_an_import_that_was_killed_can_be_repeated(tmp_path: Path):
    left = tmp_path / "run" / ".convert-x" / "run" / "checkpoints"
    left.mkdir(parents=True)
    convert.import_weights(save(tmp_path / "w.pth", tensors()), tmp_path / "run", recipe())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *(".lock", "checkpoints", "config.json")
    }


def test_a_run_that_begins_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint = Checkpoints.save

    def save_late(*args) -> None:
        save_checkpoint(*args)
        (tmp_path / "run" / "config.json").write_text("another's")

    monkeypatch.setattr(Checkpoints, "save", save_late)
    with pytest.raises(UserError, match="run is not an empty folder: choose another"):
        convert.import_weights(save(tmp_path / "w.pth", tensors()), tmp_path / "run", recipe())
    assert files_below(tmp_path / "run") == {"config.json": b"another's"}


def test_imported_run_has_no_results(tmp_path: Path):
    convert.import_weights(save(tmp_path / "w.pth", tensors()), tmp_path / "run", recipe())
    folder = tmp_path / "run" / "checkpoints"
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best()) == ([0], None)
        record = checkpoints.record(0)
    assert (record.epoch, record.rows, record.partial) == (0, [], None)
    assert record.eval_accuracy is None
    assert record.config == flatten(recipe())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock",
        "config.json",
        "checkpoints",
    }
    with contextlib.closing(Workdir(tmp_path / "run", recipe())):
        pass  # it is not locked


def spoil(suffix: str, change: Callable[[dict[str, torch.Tensor]], object]):
    """Writes weights of model3 after a change."""

    def write(folder: Path) -> Path:
        state_dict = tensors()
        change(state_dict)
        return save(folder / f"weights{suffix}", state_dict)

    return write


def written(name: str, content: bytes):
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def shuffled(folder: Path) -> Path:
    return save(folder / "weights.pth", dict(reversed(other_names(tensors()).items())))


# The file, and what the complaint must say.
UNFIT: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    **{
        f"{name} in {suffix}": (spoil(suffix, change), words)
        for suffix in SUFFIXES
        for name, change, words in (
            ("missing", lambda given: given.pop(FIRST), (f"{FIRST} is missing",)),
            (
                "extra",
                lambda given: given.update(extra=torch.zeros(1)),
                ("extra is unexpected",),
            ),
            (
                "misshapen",
                lambda given: given.update({FIRST: torch.zeros(7, 3, 3, 1)}),
                (FIRST, "(7, 3, 3, 1)", "(7, 1, 3, 3)"),
            ),
            (
                "integers",
                lambda given: given.update({FIRST: torch.ones(7, 1, 3, 3, dtype=torch.int8)}),
                (FIRST, "int8"),
            ),
        )
    },
    "another network": (lambda folder: save(folder / "w.pt", tensors("compact")), ("missing",)),
    "shuffled": (shuffled, (f"{FIRST} is missing",)),
    "other names in .safetensors": (
        lambda folder: save(folder / "w.safetensors", other_names(tensors())),
        (f"{FIRST} is missing",),
    ),
    "text": (written("w.pth", b"text\n"), ("w.pth", "model.state_dict()")),
    "empty": (written("w.pt", b""), ("w.pt", "model.state_dict()")),
    "empty .safetensors": (written("w.safetensors", b""), ("w.safetensors",)),
    "missing file": (lambda folder: folder / "none.pth", ("none.pth", "no file")),
    "long name": (lambda folder: folder / ("x" * 300 + ".pth"), ("no file",)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_weights_leave_nothing(name: str, tmp_path: Path):
    write, words = UNFIT[name]
    file = write(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(UserError) as raised:
        convert.import_weights(file, tmp_path / "new" / "run", recipe())
    message = str(raised.value)
    assert message.isprintable()
    for word in (*words, "--from"):
        assert word in message
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("target", ["used", "run", "file", "file/run", "x" * 300])
def test_unfit_targets_of_an_import_are_untouched(target: str, tmp_path: Path):
    file = save(tmp_path / "weights.pth", tensors())
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    make_run(tmp_path / "run", recipe(), {1: 50.0})
    before = files_below(tmp_path)
    with pytest.raises(UserError) as raised:
        convert.import_weights(file, tmp_path / target, recipe())
    assert str(raised.value).isprintable()
    assert "choose " in str(raised.value)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_seeds": 3}, "config.num_seeds is 3"),
        ({"batch_size": 0}, "config.batch_size is 0"),
        ({"dropout": 0.1}, "config.dropout is 0.1"),
    ],
)
def test_unfit_recipes_leave_nothing(fields: dict, words: str, tmp_path: Path):
    file = save(tmp_path / "weights.pth", tensors())
    with pytest.raises(UserError, match=words):
        convert.import_weights(file, tmp_path / "run", recipe(**fields))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("checkpoint", "seed", "words"),
    [
        ("1", None, r"--checkpoint is '1'.*\(2, 3\)"),
        ("first", None, r"--checkpoint is 'first'.*\(2, 3\)"),
        ("last", 3, "--seed is 3: .* 4 to 5"),
        ("last", 6, "--seed is 6: .* 4 to 5"),
    ],
)
def test_exports_that_a_run_has_not(
    trained: Path, checkpoint: str, seed: int | None, words: str, suffix: str, tmp_path: Path
):
    with pytest.raises(UserError, match=words):
        convert.export(trained, tmp_path / f"weights{suffix}", checkpoint, seed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("target", ["none/weights", "file/weights", "folder", "x" * 300])
def test_unfit_targets_of_an_export_are_untouched(
    trained: Path, target: str, suffix: str, tmp_path: Path
):
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"folder{suffix}" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files_below(tmp_path)
    with pytest.raises(UserError) as raised:
        convert.export(trained, tmp_path / f"{target}{suffix}")
    assert str(raised.value).isprintable()
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none", "none' is no trained network"),
        ("empty", "empty holds no run"),
        ("file", "file holds no run"),
        ("none.pth", r"none\.pth is no file"),
    ],
)
def test_exports_of_no_network(source: str, words: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        convert.export(tmp_path / source, tmp_path / "weights.pth")
    assert "\n" not in str(raised.value)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".onnx", ".stablehlo"])
def test_an_export_replaces_nothing(suffix: str, tmp_path: Path):
    """Unlike ``jaxmnist.save``; it is refused before the network is read."""
    (tmp_path / f"mine{suffix}").write_text("mine")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=f"--to .*mine{suffix} exists: choose another name"):
        convert.export(tmp_path / "none", tmp_path / f"mine{suffix}")
    assert files_below(tmp_path) == before


def parsed(*args: str) -> ModuleType:
    """The command in this process, after it has read its flags."""
    command = fresh("convert")
    command._parse(["convert", *args])
    return command


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--from and --to are needed"),
        (("--from=run",), "--from and --to are needed"),
        (("--from=", "--to=w.pth"), "--from and --to are needed"),
        (("--from=a", "--to=b"), r"--to b must end in .*\.safetensors.*\.onnx, \.stablehlo"),
        (("--from=w.pth", "--to=w.onx"), r"--to w\.onx must end in "),
        (("--from=run", "--to=w.h5"), r"w\.h5 must end in \.pth, \.pt, \.safetensors"),
        (("--from=run", "--to=w.PTH"), r"w\.PTH must end in"),
        (("--from=model3", "--to=run"), "--to run must end in"),
        (("--from=w.onnx", "--to=run"), "--to run must end in"),
        (("--config=model3", "--from=w.bin", "--to=run"), "--from w.bin must be a file that ends"),
        (("--from=w.pth", "--to=run", "--seed=5"), "--checkpoint and --seed are of a run"),
        (("--from=w.pth", "--to=run", "--checkpoint=best"), "--checkpoint and --seed are of a run"),
        (("--config=model3", "--from=run", "--to=w.h5"), r"or --to w\.h5 must end in \.pth"),
        (("--config=vgg", "--from=w.pth", "--to=run"), "'vgg' is neither a file nor one of"),
        (("--from=run", "--to=w.pth", "--seed=x"), "seed"),
        (("--from=run", "--to=w.pth", "--epoch=1"), "'epoch'"),
        (("--from=run", "--to=w.pth", "more"), "'more'"),
    ],
)
def test_unfit_flags(args: tuple[str, ...], words: str):
    with pytest.raises(UserError, match=words) as raised:
        parsed(*args)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["configs", "config", "config-a.pth"])
def test_paths_may_look_like_a_flag(name: str):
    """An export needs no --config, whatever its paths are called."""
    paths = (name, "run") if name.endswith(".pth") else ("weights.pth", name)
    assert parsed("--to", paths[0], "--from", paths[1], "--seed", "5")._SEED.value == 5


def converted(*args: object) -> None:
    """What the command does, in this process."""
    parsed(*map(str, args))._convert()


@pytest.mark.parametrize("target", ["run", "again.safetensors", "net.onnx", "net.stablehlo"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_torch_file_without_its_recipe(suffix: str, target: str, tmp_path: Path):
    file = save(tmp_path / f"weights{suffix}", tensors())
    with pytest.raises(UserError, match=f"weights{suffix} does not say its recipe: name "):
        converted("--from", file, "--to", tmp_path / target)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_weights_to_each_other(suffix: str, tmp_path: Path):
    """Other names become torch's; the batch counters begin anew."""
    given, file = tensors("compact"), tmp_path / f"again{suffix}"
    torch.save(other_names(given), tmp_path / "named.pth")
    convert.export(tmp_path / "named.pth", file, recipe=recipe("compact"))
    expected = {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else tensor
        for key, tensor in given.items()
    }
    assert_equal(load(file), expected)


def test_a_run_becomes_a_file_that_becomes_a_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Without a recipe: the file knows the run's, with the one seed that it holds."""
    file, back = tmp_path / "mine.safetensors", tmp_path / "run"
    converted("--from", trained, "--to", file, "--seed=5", "--checkpoint=2")
    converted("--from", file, "--to", back)
    assert capsys.readouterr().out == f"wrote {file}\nwrote {back}\n"
    found, expected = saved_run.load(back), saved_run.load(trained, "2", 5)
    assert flatten(found.config) == flatten(tiny_config(seed=5, num_seeds=1))
    jax.tree.map(np.testing.assert_array_equal, found.state.params, expected.state.params)
    assert (found.epoch, int(found.state.step)) == (0, 0)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".onnx", ".stablehlo"])
def test_packaged_networks_are_exported_by_name(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    converted("--from=compact_tiny", "--to", tmp_path / f"tiny{suffix}")
    assert capsys.readouterr().out == f"wrote {tmp_path}/tiny{suffix}\n"
    (file,) = tmp_path.iterdir()
    assert 4 * 6584 < file.stat().st_size < 100_000


class Outcome(NamedTuple):
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str


def execute(*args: str, module: str = "convert") -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", f"jaxmnist.{module}", *args],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


MODEL3 = ("--config", str(CONFIGS / "model3.py"))

# Arguments, where HERE stands for the folder of `material`.
COMMANDS: dict[str, tuple[str, ...]] = {
    "import": (*MODEL3, "--config.seed=7", "--from", "HERE/named.pth", "--to", "HERE/imported"),
    "export": ("--to=HERE/exported.safetensors", "--from=HERE/run", "--seed=5", "--checkpoint=2"),
    "packaged": ("--from", "model3", "--to", "HERE/model3.onnx"),
    "code": (*MODEL3, "--from", "HERE/code.pth", "--to", "HERE/refused"),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    torch.save({"state_dict": other_names(tensors()), "epoch": 3}, folder / "named.pth")
    torch.save({**tensors(), "code": Code(folder / "refused")}, folder / "code.pth")
    make_run(folder / "run", tiny_config(), {1: 50.0, 2: 90.0})
    return folder


@pytest.fixture(scope="module")
def outcomes(material: Path) -> Mapping[str, Outcome]:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {
            name: pool.submit(execute, *(arg.replace("HERE", str(material)) for arg in args))
            for name, args in COMMANDS.items()
        }
        return {name: future.result() for name, future in futures.items()}


def test_command_imports(outcomes: Mapping[str, Outcome], material: Path):
    assert outcomes["import"] == Outcome(
        0,
        f"note: the tensors of {material}/named.pth have other names; they were taken in their "
        f"order\nwrote {material}/imported\n",
        "",
    )
    run = saved_run.load(material / "imported")
    assert (run.config.recipe, run.seed, run.epoch) == ("model3", 7, 0)


def test_command_exports(outcomes: Mapping[str, Outcome], material: Path):
    file = material / "exported.safetensors"
    assert outcomes["export"] == Outcome(0, f"wrote {file}\n", "")
    convert.export(material / "run", material / "again.safetensors", "2", 5)
    assert_equal(load_file(file), load_file(material / "again.safetensors"))


def test_command_exports_a_packaged_network(outcomes: Mapping[str, Outcome], material: Path):
    file = material / "model3.onnx"
    assert outcomes["packaged"] == Outcome(0, f"wrote {file}\n", "")
    metadata = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert metadata == jaxmnist.load("model3").metadata


def test_help_names_every_flag():
    for name in ("from", "to", "checkpoint", "seed"):
        assert name in convert._FLAGS
    for name in ("config", "from", "to", "checkpoint", "seed"):
        assert f"--{name}" in convert._USAGE
    for suffix in files.SUFFIXES:
        assert suffix in convert._USAGE


def test_command_refuses_in_one_line(outcomes: Mapping[str, Outcome], material: Path):
    done = outcomes["code"]
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "code.pth" in done.stderr
    assert not list(material.glob("refused*"))
    assert not list(material.glob("*.partial"))
