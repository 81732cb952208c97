"""What the PyTorch write-ups published: parameter counts, receptive fields, per-epoch curves."""

import functools
import importlib.resources
import json
from typing import Any


@functools.cache
def load_all() -> dict[str, dict[str, Any]]:
    """The contents of published.json, by recipe."""
    return json.loads(importlib.resources.files("jaxmnist").joinpath("published.json").read_text())


def comparable(recipe: str, dataset: str) -> dict[str, Any] | None:
    """What ``config.recipe`` published; None for '' and for other data, where nothing compares."""
    return load_all()[recipe] if recipe and dataset == "mnist" else None
