"""best.py: the best settings of a sweep as a recipe that ``jaxmnist.main --config`` takes."""

import json
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from jaxmnist.config import Config, default_config, flatten
from jaxmnist.sweeps.space import configured

_WIDTH = 100


def text(config: Config, best: Mapping[str, Any], trials: int, command: str, split: str) -> str:
    """The file of a recipe.

    Args:
      config: what was fixed in the sweep.
      best: the record of the best trial.
      trials: among how many it is the best.
      command: what was typed.
      split: what the recipe trains and evaluates on; the sweep had its own.
    """
    found, seeds = best["final_accuracy"], config.num_seeds
    spread = "" if found["sd"] is None else f" ± {found['sd']:.3f}"
    which = f"seed {config.seed}"
    if seeds > 1:
        which = f"seeds {config.seed} to {config.seed + seeds - 1}"
    said = (
        f"Accuracy in the sweep, on {config.dataset}, {config.split}, final epoch: "
        f"{found['mean']:.3f}{spread} % (n = {seeds}, {which}). It was chosen by this figure, as "
        f"the best of {trials}: other seeds will do a little worse."
    )
    lines = [
        f'"""Trial {best["trial"]} of a sweep: {best["params"]:,} parameters, receptive field '
        f"{best['receptive_field']}.",
        "",
        "    python -m jaxmnist.main --config best.py",
        "",
        "Found by",
        "",
        *(f"    {line}" for line in _wrapped(command)),
        "",
        *textwrap.wrap(_escaped(said), _WIDTH),
        '"""',
        "",
        "from jaxmnist.config import Config, default_config",
        "",
        "",
        "def get_config() -> Config:",
        "    config = default_config()",
    ]
    defaults = flatten(default_config())
    chosen = flatten(configured(config, best["settings"])) | {"recipe": "", "split": split}
    lines += [
        f"    config.{field} = {_literal(value)}"
        for field, value in chosen.items()
        if value != defaults[field]
    ]
    return "\n".join([*lines, "    return config", ""])


def _escaped(text: str) -> str:
    """As it stands in a docstring."""
    return text.replace("\\", "\\\\").replace('"""', r"\"\"\"")


def _literal(value: bool | int | float | str) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _wrapped(command: str) -> list[str]:
    """The command over several lines, as a shell and a docstring take it."""
    first, *arguments = shlex.split(command)
    lines = [first]
    for argument in map(shlex.quote, arguments):  # which may hold spaces
        if len(lines[-1]) + len(argument) < _WIDTH - 8:
            lines[-1] += f" {argument}"
        else:
            lines.append(f"    {argument}")
    lines = [_escaped(line) for line in lines]
    return [f"{line} \\\\" for line in lines[:-1]] + lines[-1:]
