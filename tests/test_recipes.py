"""The packaged recipes by name, in a checkout and in a wheel."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from commands import fresh

from jaxmnist import __version__, published, recipes
from jaxmnist.config import Config, flatten
from jaxmnist.errors import UserError

ROOT = Path(__file__).parents[1]
TIMEOUT = 300


def test_names_are_those_of_the_folder():
    assert recipes.names() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert set(published.load_all()) < set(recipes.names())
    for name in recipes.names():
        assert recipes.path(name) == ROOT / "configs" / f"{name}.py"
        assert recipes.path(name).is_file()


@pytest.fixture
def recipe_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The recipe that the command takes, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def parse(*args: str) -> Config:
        main = fresh("main")
        main._parse(["main", *args])
        return main._RECIPE.value

    return parse


def test_a_file_of_the_same_size_and_second_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Python would not, once its bytecode is there."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, text = tmp_path / "mine.py", recipes.path("model3").read_text()
    for epochs in (11, 12):
        set_epochs = f"    config.num_epochs = {epochs}\n    return config"
        file.write_text(text.replace("    return config", set_epochs))
        os.utime(file, (10**9, 10**9))
        assert recipes.load(file).num_epochs == epochs
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", recipes.names())
def test_a_name_stands_for_the_file(name: str, recipe_of):
    by_name, by_file = recipe_of("--config", name), recipe_of(f"--config={recipes.path(name)}")
    assert by_name.recipe == by_file.recipe == (name if name in published.load_all() else "")
    assert flatten(by_name) == flatten(by_file)


def test_fields_go_with_a_name(recipe_of):
    """Before it or after it."""
    found = recipe_of("--config.seed=3", "--config", "net8k", "--config.num_epochs", "2")
    assert (found.recipe, found.seed, found.num_epochs) == ("net8k", 3, 2)
    assert recipe_of("--config=net8k", "--noconfig.drop_remainder").drop_remainder is False
    assert recipe_of("--config=net8k", "--config.drop_remainder").drop_remainder is True


def test_fields_are_set_before_the_recipe_is_checked(recipe_of):
    """Those that refer to others follow, and those that lack a value get one."""
    Path("mine.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from ml_collections import config_dict\n"
        "from jaxmnist.config import default_config\n\n\n"
        "@dataclasses.dataclass\nclass Mine:\n    factor: float = 0.5\n\n\n"
        "def get_config():\n    config = default_config()\n"
        "    config.num_epochs = 0\n"
        "    config.schedule.step_size = config.get_ref('num_epochs') // 3\n"
        "    config.optimizer.learning_rate = config_dict.required_placeholder(float)\n"
        "    config.schedule.gamma = Mine().factor\n"
        "    return config\n"
    )
    rate = "--config.optimizer.learning_rate=0.3"
    found = recipe_of("--config=mine.py", "--config.num_epochs=30", rate)
    assert (found.num_epochs, found.schedule.step_size, found.schedule.gamma) == (30, 10, 0.5)
    assert found.optimizer.learning_rate == 0.3
    with pytest.raises(UserError, match=r"optimizer\.learning_rate has no value"):
        recipe_of("--config=mine.py", "--config.num_epochs=30")
    with pytest.raises(UserError, match="num_epochs is 0"):
        recipe_of("--config=mine.py", rate)


def test_a_file_goes_before_a_packaged_recipe_of_that_name(recipe_of):
    text = recipes.path("compact").read_text()
    Path("model3").write_text(text)
    Path("own.py").write_text(text)
    Path("10:30.py").write_text(text)
    for given in ("model3", "own.py", "10:30.py"):
        assert recipe_of(f"--config={given}").recipe == "compact"


@pytest.mark.parametrize("given", ["model9", "model3.py", "configs/model3.py", "", "model3:x", "/"])
def test_unknown_names_are_refused_with_those_there_are(given: str, recipe_of):
    with pytest.raises(UserError) as caught:
        recipe_of(f"--config={given}")
    message = str(caught.value)
    assert repr(given) in message
    assert message.endswith(", ".join(recipes.names()))


def execute(*args: str | Path, cwd: Path) -> str:
    """What the command prints; the checkout is out of its sight."""
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_trains_in_an_empty_folder(tmp_path: Path):
    """Built from nothing but what is packaged, in an environment without the checkout."""
    source, wheels, folder = (tmp_path / name for name in ("source", "wheels", "empty"))
    for name in ("jaxmnist", "configs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"
    offline = "--no-deps", "--no-index"
    execute(*pip, "wheel", source, "-w", wheels, *offline, "--no-build-isolation", cwd=tmp_path)
    (wheel,) = wheels.iterdir()
    assert wheel.name == f"jaxmnist-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packaged = set(archive.namelist())
    for part, suffix in (("configs", ".py"), ("weights", ".safetensors")):
        expected = {f"jaxmnist/{part}/{name}{suffix}" for name in recipes.names()}
        assert {name for name in packaged if name.startswith(f"jaxmnist/{part}/")} == expected

    # The libraries are those of this environment; a folder in a .pth file brings no .pth files of
    # its own, so an editable installation of the checkout stays behind.
    execute(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = execute(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(purelib.strip(), "libraries.pth").write_text("\n".join(libraries))
    execute(*pip, "--python", python, "install", wheel, *offline, cwd=tmp_path)

    folder.mkdir()
    where = execute(python, "-c", "import jaxmnist; print(jaxmnist.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    fields = "--config.num_epochs=1", "--config.steps_per_epoch=2"
    said = execute(python, "-m", "jaxmnist.main", "--config", "compact_tiny", *fields, cwd=folder)
    assert "6,584 parameters" in said
    summary = json.loads((folder / "runs" / "compact_tiny" / "summary.json").read_text())
    assert (summary["params"], summary["num_epochs"]) == (6584, 1)
