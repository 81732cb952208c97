"""The commands in this process, as often as a test likes."""

import importlib.util
from types import ModuleType


def fresh(name: str) -> ModuleType:
    """A command's module with flags of its own: absl's values stay what a case has made them."""
    spec = importlib.util.find_spec(f"jaxmnist.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
