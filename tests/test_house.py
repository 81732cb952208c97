"""The plan of the house: imports run down it, never up, and rooms of a floor know nothing of each
other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxmnist"
FLOORS = (
    ("main", "sweep", "evaluate", "predict", "convert"),
    ("cli",),
    ("sources", "sweeps"),
    ("runs", "export", "photos"),
    ("classifier",),
    ("config", "recipes"),
    ("training",),
    ("networks",),
    ("data", "published"),
    ("errors",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "configs"
)


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The rooms of this package that a file imports, at its top or later."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxmnist":
            names = [f"jaxmnist.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module or ""]
        for name in names:
            package, *rest = name.split(".")
            if package == "jaxmnist" and rest:
                yield rest[0]


def test_the_plan_names_every_room():
    assert {room(path) for path in FILES} == {"__init__", *FLOOR}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_down(path: Path):
    here = room(path)
    for below in imported(path):
        allowed = here == "__init__" or below == here or FLOOR[below] > FLOOR[here]
        assert allowed, f"{path} imports {below}"
