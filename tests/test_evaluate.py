"""Scores of a run on a whole data set, by the command's own functions and by the command."""

import concurrent.futures
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from populations import members_of
from saved_runs import cut, make_run, tiny_config, tiny_run
from workdirs import AT_ONCE, files_and_times, one_image

import jaxmnist
from jaxmnist import data, evaluate
from jaxmnist.errors import UserError
from jaxmnist.runs import assemble, saved_run
from jaxmnist.runs.checkpoint import Checkpoints, PartialEpoch
from jaxmnist.training.engine import over_members

KEYS = ["loss", "accuracy", "correct", "total", "per_class"]
TIMEOUT = 120


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory)


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]):
    """The command in this process: its stdout."""

    def run(*args: object) -> str:
        try:
            evaluate._parse(["evaluate", *map(str, args)])
            evaluate._evaluate()
        finally:
            evaluate._FLAGS.unparse_flags()
        found = capsys.readouterr()
        print(found.err, end="", file=sys.stderr)
        return found.out

    return run


def write_idx(folder: Path, part: data.Dataset, size: int, labels_N: np.ndarray) -> Path:
    """A data set of ``size`` images, which are trained on and tested alike."""
    folder.mkdir()
    images = np.array([0x803, size, 28, 28], ">u4").tobytes() + part.images_NHW[:size].tobytes()
    labels = np.array([0x801, size], ">u4").tobytes() + labels_N[:size].tobytes()
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def metrics(workdir: Path, epoch: int, seed: int) -> dict[str, Any]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if (row["epoch"], row["seed"]) == (epoch, seed))
    return row


@pytest.mark.parametrize(("checkpoint", "seed"), [("last", None), ("3", 4), ("2", 5)])
def test_agrees_with_the_training(trained: Path, checkpoint: str, seed: int | None, score):
    args = () if seed is None else (f"--seed={seed}",)
    result = json.loads(score("--workdir", trained, "--json", "--checkpoint", checkpoint, *args))
    row = metrics(trained, 3 if checkpoint == "last" else int(checkpoint), seed or 4)
    assert result["accuracy"] == pytest.approx(row["eval_accuracy"], abs=one_image(10_000))
    assert result["loss"] == pytest.approx(row["eval_loss"], rel=1e-5)
    assert result["total"] == 10_000


def independent_scores(run: saved_run.SavedRun, part: data.Dataset) -> dict[str, Any]:
    """All images in one batch, the rest in NumPy."""
    apply = jax.jit(assemble.engine(run.config).network().apply, static_argnames="train")
    variables = {"params": run.state.params, "batch_stats": run.state.batch_stats}
    logits = apply(variables, jnp.asarray(part.images_NHW), train=False)
    logits_NK = np.asarray(logits, np.float64)
    log_sum_N = np.log(np.exp(logits_NK).sum(1))
    right_N = logits_NK.argmax(1) == part.labels_N
    classes = [right_N[part.labels_N == label] for label in range(10)]
    return {
        "loss": float(np.mean(log_sum_N - logits_NK[np.arange(len(part)), part.labels_N])),
        "accuracy": 100 * float(right_N.mean()),
        "correct": int(right_N.sum()),
        "total": len(part),
        "per_class": [100 * float(hit_N.mean()) if len(hit_N) else None for hit_N in classes],
    }


@pytest.mark.parametrize("size", [1, 1203])
def test_every_image_is_scored(trained: Path, size: int, tmp_path: Path, mnist, score):
    folder = write_idx(tmp_path / "idx", mnist[1], size, mnist[1].labels_N)
    result = json.loads(score("--workdir", trained, "--dataset", folder, "--json"))
    part = data.Dataset(mnist[1].images_NHW[:size], mnist[1].labels_N[:size])
    expected = independent_scores(saved_run.load(trained), part)
    assert list(result) == KEYS
    assert result == {
        key: pytest.approx(value, rel=1e-5) if key == "loss" else pytest.approx(value)
        for key, value in expected.items()
    }


def test_class_without_images_has_no_accuracy(trained: Path, tmp_path: Path, mnist, score):
    folder = write_idx(tmp_path / "idx", mnist[1], 300, mnist[1].labels_N % 9)
    args = ("--workdir", trained, "--dataset", folder)
    result = json.loads(score(*args, "--json"))
    assert result["per_class"][9] is None
    assert None not in result["per_class"][:9]
    assert re.search(r"^ +9 +- +", score(*args), re.MULTILINE)


def test_text_shows_the_confusion(trained: Path, tmp_path: Path, mnist, score):
    folder = write_idx(tmp_path / "idx", mnist[1], 203, mnist[1].labels_N)
    args = ("--workdir", trained, "--dataset", folder, "--seed", "5", "--checkpoint", "2")
    text, result = score(*args), json.loads(score(*args, "--json"))
    first, second, *rest = text.splitlines()
    assert first == f"compact_tiny, {trained}, epoch 2, seed 5, on {folder}, train/test"
    assert second == (
        f"loss {result['loss']:.4f}, accuracy {result['accuracy']:.2f} %: "
        f"{result['correct']} of 203 right"
    )
    rows = [line.replace("%", "").split() for line in rest[-10:]]
    assert [row[0] for row in rows] == [str(label) for label in range(10)]
    assert [float(row[1]) for row in rows] == pytest.approx(result["per_class"], abs=0.005)
    confusion = np.array([row[2:] for row in rows], int)
    assert confusion.shape == (10, 10)
    assert confusion.sum(1).tolist() == np.bincount(mnist[1].labels_N[:203]).tolist()
    assert confusion.trace() == result["correct"]


def test_scores():
    labels_N = np.array([0, 0, 0, 1, 2, 2], np.uint8)
    predictions_N = np.array([0, 0, 1, 1, 0, 9], np.uint8)
    assert evaluate.scores(labels_N, predictions_N, 0.5) == {
        "loss": 0.5,
        "accuracy": 50.0,
        "correct": 3,
        "total": 6,
        "per_class": [pytest.approx(200 / 3), 100.0, 0.0, *[None] * 7],
    }


def test_counts_of_many_images_do_not_overflow():
    labels_N = np.full(70_000, 9, np.uint8)
    assert evaluate.scores(labels_N, labels_N, 0.0)["correct"] == 70_000


def test_split_reaches_the_data(trained: Path, score, mnist, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(dataset: str, split: str) -> tuple[data.Dataset, data.Dataset]:
        asked.append((dataset, split))
        part = data.Dataset(mnist[1].images_NHW[:50], mnist[1].labels_N[:50])
        return mnist[0], part

    monkeypatch.setattr(data, "load", load)
    result = json.loads(score("--workdir", trained, "--split", "train/val", "--json"))
    assert result["total"] == 50
    assert asked == [("mnist", "train/val")]


def test_label_smoothing_is_that_of_the_run(tmp_path: Path, idx_folder: Path, mnist, score):
    """The loss is the training's: as in metrics.jsonl."""
    config = tiny_config(dataset=str(idx_folder), label_smoothing=0.5)
    make_run(tmp_path / "run", config, {1: 50.0})
    result = json.loads(score("--workdir", tmp_path / "run", "--json"))
    part = data.Dataset(mnist[1].images_NHW[:200], mnist[1].labels_N[:200])
    assert result["total"] == 200
    sharp = independent_scores(saved_run.load(tmp_path / "run"), part)["loss"]
    assert abs(result["loss"] - sharp) > 1e-3


def test_weights_that_give_no_numbers(trained: Path, score, monkeypatch: pytest.MonkeyPatch):
    load = saved_run.load

    def damaged(*args: Any) -> saved_run.SavedRun:
        run = load(*args)
        params = jax.tree.map(lambda leaf: leaf * np.nan, run.state.params)
        return run._replace(state=run.state.replace(params=params))

    monkeypatch.setattr(saved_run, "load", damaged)
    with pytest.raises(UserError, match="gives no finite logits: its weights are damaged"):
        score("--workdir", trained, "--json")


def test_a_checkpoint_within_an_epoch_is_called_so(trained: Path, tmp_path: Path, score):
    workdir = shutil.copytree(trained, tmp_path / "run")
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=2)) as checkpoints:
        init = over_members(assemble.engine(tiny_config()).init)
        states = checkpoints.restore(4, jax.eval_shape(init, members_of(tiny_config())))
        record = checkpoints.record(4)
        partial = PartialEpoch(1, 64, 1.0, [0.1, 0.1], [60.0, 60.0])
        checkpoints.save(5, states, record._replace(partial=partial))
    shutil.rmtree(workdir / "checkpoints" / "6")
    said = score("--workdir", workdir).splitlines()[0]
    assert said == (
        f"compact_tiny, {workdir}, in epoch 3, after 1 steps of it, seed 4, on mnist, train/test"
    )


@pytest.mark.parametrize(
    ("name", "split", "right"),
    [("model3", "train/test", 9_955), ("compact_tiny", "train/val", 9_872)],
)
def test_a_packaged_network(name: str, split: str, right: int, score):
    """On what its recipe says; README's accuracies, rounding apart."""
    first, second, *_ = score("--from", name).splitlines()
    assert first == f"{name}, the packaged {name}, on mnist, {split}"
    found = re.search(r"accuracy (.*) %: (.*) of 10,000 right", second)
    assert found
    assert int(found[2].replace(",", "")) == pytest.approx(right, abs=1)


@pytest.mark.parametrize(
    ("name", "split", "elsewhere", "warned"),
    [
        ("under_500", "train/val", False, True),
        ("under_500", "train/test", False, False),
        ("under_500", "train/val", True, False),
        ("compact_tiny", "train/val", False, False),
    ],
)
def test_images_that_were_trained_on_are_told(
    name: str,
    split: str,
    elsewhere: bool,
    warned: bool,
    tmp_path: Path,
    mnist,
    score,
    capsys: pytest.CaptureFixture[str],
):
    args = ["--from", name, "--split", split, "--json"]
    if elsewhere:
        labels_N = mnist[0].labels_N
        args += ["--dataset", str(write_idx(tmp_path / "idx", mnist[0], 20_000, labels_N))]
    assert json.loads(score(*args))["total"] == 10_000
    told = capsys.readouterr().err
    assert ("trains on the whole training set, these images among them" in told) is warned


def test_a_file_of_weights(trained: Path, tmp_path: Path, score):
    jaxmnist.save(jaxmnist.load(trained, checkpoint=2, seed=5), tmp_path / "mine.safetensors")
    alone = json.loads(score("--from", tmp_path / "mine.safetensors", "--json"))
    assert alone == json.loads(score("--workdir", trained, "--checkpoint=2", "--seed=5", "--json"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "--workdir is missing"),
        (("--workdir=RUN", "--from=model3"), "--workdir and --from are both given"),
        (("--from=model4",), "'model4' is no trained network"),
        (("--from=model3", "--seed=1"), "model3 is no run"),
        (("--from=model3", "--checkpoint=best"), "model3 is no run"),
        (("--workdir=RUN", "--checkpoint=1"), r"--checkpoint is '1'.*\(2, 3\)"),
        (("--workdir=RUN", "--checkpoint=newest"), r"--checkpoint is 'newest'.*\(2, 3\)"),
        (("--workdir=RUN", "--seed=6"), "--seed is 6: .* 4 to 5"),
        (("--workdir=RUN", "--seed=1.5"), "seed=1.5"),
        (("--workdir=RUN", "--dataset=nowhere"), "'nowhere' is no folder"),
        (("--workdir=RUN", "--split=test"), "'test'.*train/test, train/val"),
        (("--workdir=RUN", "--steps=3"), "'steps'"),
        (("--workdir=RUN", "--dataset="), "dataset '' is no folder"),
        (("--workdir=RUN", "--split="), "split '' is unknown"),
        (("--workdir=RUN", "--checkpoint="), r"--checkpoint is ''.*\(2, 3\)"),
        (("--workdir=RUN", "--json=maybe"), "json"),
        (("RUN",), "unexpected argument"),
        (("--workdir=",), "--workdir is empty: name a run"),
        (("--workdir=nowhere",), "nowhere holds no run"),
        (("--workdir=" + "x" * 300,), "holds no run"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_unfit_flags(args: tuple[str, ...], words: str, trained: Path, score):
    with pytest.raises(UserError, match=words) as raised:
        score(*(arg.replace("RUN", str(trained)) for arg in args))
    assert "\n" not in str(raised.value)


class Outcome(NamedTuple):
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str


def execute(*args: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "jaxmnist.evaluate", *args],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


# HERE stands for the folder of `material`.
COMMANDS = {
    "json": ("--workdir", "HERE/run", "--json"),
    "refused": ("--workdir=HERE/arrays", "--json"),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, mnist) -> Path:
    folder = tmp_path_factory.mktemp("material")
    idx = write_idx(folder / "idx", mnist[1], 203, mnist[1].labels_N)
    make_run(folder / "run", tiny_config(dataset=str(idx)), {1: 50.0})
    shutil.copytree(folder / "run", folder / "arrays")
    cut(folder / "arrays" / "checkpoints" / "10")
    return folder


@pytest.fixture(scope="module")
def outcomes(material: Path) -> Mapping[str, Outcome]:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {
            name: pool.submit(execute, *(arg.replace("HERE", str(material)) for arg in args))
            for name, args in COMMANDS.items()
        }
        return {name: future.result() for name, future in futures.items()}


def test_command_prints_one_object(outcomes: Mapping[str, Outcome]):
    done = outcomes["json"]
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert list(result) == KEYS
    assert (result["total"], len(result["per_class"])) == (203, 10)


def test_help_names_every_flag():
    for name in ("workdir", "from", "checkpoint", "dataset", "split", "seed", "json"):
        assert name in evaluate._FLAGS
        assert f"  --{name} " in evaluate._USAGE


def test_command_refuses_in_one_line(outcomes: Mapping[str, Outcome]):
    done = outcomes["refused"]
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "(checkpoint 10 is damaged (d/" in done.stderr


def test_empty_folder_is_no_run(tmp_path: Path, score):
    with pytest.raises(UserError, match=f"{tmp_path} holds no run"):
        score("--workdir", tmp_path)


def test_evaluation_changes_nothing(trained: Path, score):
    before = files_and_times(trained)
    score("--workdir", trained, "--checkpoint", "best")
    assert files_and_times(trained) == before
