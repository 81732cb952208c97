"""The recipes that come with the package, by name.

They lie in configs/ of a checkout, which the wheel carries as jaxmnist/configs.
"""

import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import ml_collections

from jaxmnist.errors import UserError

_MODULE = "jaxmnist_recipe"


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


def load(recipe: str | os.PathLike[str]) -> Any:
    """The configuration of a packaged recipe, by name, or of a recipe's file, which goes before.

    Raises:
      UserError: where there is no such recipe, or it is broken.
    """
    given = os.path.expanduser(os.fspath(recipe))
    if not os.path.isfile(given) and given not in names():
        raise UserError(
            f"recipe {given!r} is neither a file nor one of the packaged ones: {', '.join(names())}"
        )
    file = given if os.path.isfile(given) else path(given)
    try:
        loader = SourceFileLoader(_MODULE, os.fspath(file))
        spec: Any = importlib.util.spec_from_loader(_MODULE, loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[_MODULE] = module  # where dataclasses look
        # Not exec_module, which takes the bytecode of another file of the same size and second.
        exec(loader.source_to_code(loader.get_data(loader.path), loader.path), module.__dict__)
        config = module.get_config()
    except Exception as error:  # the recipe is code: it can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"recipe {file}: {reason}: correct it, or name another") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"recipe {file}: get_config() must return a ConfigDict, not {config!r}")
    return config
