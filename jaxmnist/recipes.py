"""The recipes that come with the package, by name.

They lie in configs/ of a checkout, which the wheel carries as jaxmnist/configs.
"""

from pathlib import Path


def _folder() -> Path:
    here = Path(__file__).parent
    packaged = here / "configs"
    return packaged if packaged.is_dir() else here.parent / "configs"


def names() -> list[str]:
    """Of all recipes, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.py"))


def path(name: str) -> Path:
    """The file of the recipe ``name``, one of ``names()``."""
    return _folder() / f"{name}.py"
