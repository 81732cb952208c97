"""The command that reads photos: what it prints, what it draws, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import fresh
from photos_of_digits import photo, row, strokes
from PIL import Image

import jaxmnist
from jaxmnist.errors import UserError
from jaxmnist.photos import pictures, reading

TIMEOUT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mnist) -> Path:
    """seven.jpg: 7; row.png: 210, which are the test digits 1 to 3; blank.png."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    inks = [strokes(mnist[1].images_NHW[number], 120) for number in range(4)]
    photo(inks[0], rng).save(folder / "seven.jpg")
    photo(row(inks[1:], rng), rng).save(folder / "row.png")
    Image.new("L", (200, 100), 220).save(folder / "blank.png")
    (folder / "text.png").write_text("407\n")
    return folder


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]):
    """The command in this process: its stdout."""

    def run(*args: object) -> str:
        command = fresh("predict")
        command._parse(["predict", *map(str, args)])
        command._predict()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("enabled", [True, False])
def test_compiled_programs_are_kept(enabled: bool, folder: Path, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    if not enabled:
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = execute(str(folder / "seven.jpg"), env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(list(tmp_path.glob("jaxmnist/*-cache"))) == enabled


def test_a_line_an_image(folder: Path, predict):
    names = [folder / name for name in ("seven.jpg", "row.png", "blank.png")]
    seven, three, none = predict(*names).splitlines()
    share = r"\d+\.\d %"
    assert_matches(seven, f"{names[0]}: 7   ", share)
    assert_matches(three, f"{names[1]}: 210   ", f"{share} {share} {share}")
    assert none == f"{names[2]}: no digit found"


def assert_matches(line: str, start: str, rest: str) -> None:
    assert line.startswith(start)
    assert re.fullmatch(rest, line.removeprefix(start))


def test_json(folder: Path, predict):
    files = [str(folder / name) for name in ("row.png", "blank.png", "seven.jpg")]
    found = json.loads(predict("--json", *files))
    assert [list(entry) for entry in found] == [["file", "text", "digits"]] * 3
    assert [(entry["file"], entry["text"]) for entry in found] == list(
        zip(files, ("210", "", "7"), strict=True)
    )
    assert [len(entry["digits"]) for entry in found] == [3, 0, 1]
    expected = reading.read(jaxmnist.load("model3"), pictures.read(files[0]))
    for digit, same in zip(found[0]["digits"], expected.digits, strict=True):
        assert list(digit) == ["digit", "probability", "box"]
        assert (digit["digit"], digit["probability"]) == (same.digit, same.probability)
        assert digit["box"] == list(same.box)
    lefts = [digit["box"][0] for digit in found[0]["digits"]]
    assert lefts == sorted(lefts)


def test_flags_may_come_last_and_sources_differ(folder: Path, predict):
    by_default = json.loads(predict(folder / "seven.jpg", "--json"))
    by_another = json.loads(predict(folder / "seven.jpg", "--from", "compact", "--json"))
    assert by_default[0]["text"] == by_another[0]["text"] == "7"
    assert by_default[0]["digits"][0] != by_another[0]["digits"][0]


def test_plot(folder: Path, tmp_path: Path, predict):
    file = tmp_path / "figure.png"
    predict(folder / "row.png", folder / "blank.png", "--plot", file)
    with Image.open(file) as figure:
        assert figure.format == "PNG"
        drawn = np.asarray(figure.convert("RGB")).astype(int)
    vermilion = np.abs(drawn - (0xD5, 0x5E, 0)).sum(2) < 30
    assert vermilion.sum() > 500  # the boxes
    assert drawn.shape[0] > 600  # a part for each picture


def test_the_others_are_read_where_one_is_broken(
    folder: Path, predict, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(UserError, match="cannot be read"):
        predict(folder / "text.png", folder / "seven.jpg", folder / "nowhere.png")
    out, err = capsys.readouterr()
    assert out.startswith(f"{folder}/seven.jpg: 7 ")
    assert err == (
        f"error: {folder}/text.png is no picture that can be read here: save it as PNG or JPEG\n"
    )


def test_a_plot_that_cannot_be_written_hides_nothing(
    folder: Path, predict, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(UserError, match=r"figure\.png: No such file"):
        predict(folder / "seven.jpg", folder / "text.png", "--plot", folder / "no" / "figure.png")
    out, err = capsys.readouterr()
    assert out.startswith(f"{folder}/seven.jpg: 7 ")
    assert err.startswith(f"error: {folder}/text.png is no picture")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no image is given"),
        (("--json",), "no image is given"),
        (("-", "a.png", "-"), "- is given twice"),
        (("a.png", "--plot", "a.jpg"), "--plot a.jpg must end in .png"),
        (("a.png", "--plot="), "--plot . must end in .png"),
        (("a.png", "--form", "model3"), "'form'"),
        (("HERE/row.png", "--plot", "HERE/blank.png"), "blank.png exists: choose another name"),
        (("a.png",) * 51 + ("--plot", "b.png"), "--plot takes 50 images, not 51"),
        (("HERE/row.png", "--from", "vgg"), "'vgg' is no trained network"),
        (("HERE/row.png", "--from", ""), "is no trained network"),
        (("HERE/row.png", "--from", "HERE/row.png"), "holds no run"),
        (("HERE/row.png", "--plot", "HERE/none/figure.png"), "figure.png: No such file"),
    ],
)
def test_what_it_refuses(args: tuple[str, ...], words: str, folder: Path, predict):
    with pytest.raises(UserError, match=words) as raised:
        predict(*(argument.replace("HERE", str(folder)) for argument in args))
    assert "\n" not in str(raised.value)


def execute(*args: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "jaxmnist.predict", *args],
        capture_output=True,
        timeout=TIMEOUT,
        **options,
    )


def test_command_reads_standard_input(folder: Path):
    done = execute("-", "--json", input=(folder / "row.png").read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    (found,) = json.loads(done.stdout)
    assert (found["file"], found["text"]) == ("-", "210")


def test_command_refuses_in_one_line(folder: Path):
    done = execute(str(folder / "text.png"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"error: {folder}/text.png is no picture")
    assert done.stderr.count(b"\n") == 1


def test_help_names_every_flag_and_network():
    text = execute("--help").stdout.decode()
    assert max(map(len, text.splitlines())) <= 100
    for word in ("--from", "--json", "--plot", "model3", "compact_tiny"):
        assert word in text


def test_what_is_loaded_is_little():
    """It is to answer at once: what only training, plots and other formats need stays out."""
    heavy = "{'orbax', 'matplotlib', 'optuna', 'onnx', 'torch', 'tensorflow_datasets'}"
    code = f"import sys, jaxmnist.predict; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
