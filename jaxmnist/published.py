"""What the PyTorch write-ups published: parameter counts, receptive fields, per-epoch curves."""

import functools
import importlib.resources
import json
from typing import Any


@functools.cache
def load_all() -> dict[str, dict[str, Any]]:
    """The contents of published.json, by recipe."""
    return json.loads(importlib.resources.files("jaxmnist").joinpath("published.json").read_text())


def comparable(recipe: str, dataset: str, split: str, params: int) -> dict[str, Any] | None:
    """What ``config.recipe`` published; None where network, data or split are not the same."""
    if not recipe or dataset != "mnist":
        return None
    publication = load_all()[recipe]
    on_test = publication["split"].startswith("60k")
    same = publication["params"] == params and on_test == (split == "train/test")
    return publication if same else None
