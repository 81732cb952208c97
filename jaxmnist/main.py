"""The command line: flags -> config -> train.run(config, workdir)."""

import os
from pathlib import Path

from absl import flags

from jaxmnist import cli, config, parallel, train

_USAGE = """Trains one of the compact MNIST networks.

  python -m jaxmnist.main --config configs/model3.py [--workdir DIR] [--config.FIELD=VALUE ...]

  --config FILE    the recipe, one of configs/*.py
  --workdir DIR    where everything is written; default runs/<name of the recipe's file>.
                   A run that is there already is taken up where it stopped.
  --restart        begin anew; what is in the workdir is moved aside, not deleted
  --help           this text

Compiled programs are kept for the next start in the user's cache folder; the environment variable
JAX_COMPILATION_CACHE_DIR names another, JAX_ENABLE_COMPILATION_CACHE=false keeps none.

Fields of the configuration with their general defaults (the recipe sets its own):
"""

_FLAGS = flags.FlagValues()
_RECIPE = cli.define_recipe(_FLAGS)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Default: runs/<name of the recipe's file>.", flag_values=_FLAGS
)
_RESTART = flags.DEFINE_bool(
    "restart", False, "Begin anew, after moving the workdir aside.", flag_values=_FLAGS
)


def _parse(argv: list[str]) -> None:
    cli.parse_with_recipe(argv, _FLAGS)


def _train() -> None:
    parallel.use_every_core()
    # os.path answers for any string; pathlib raises on '~nobody'.
    workdir = os.path.expanduser(_WORKDIR.value or f"runs/{cli.recipe_name(_FLAGS)}")
    train.run(_RECIPE.value, Path(workdir), restart=_RESTART.value)


if __name__ == "__main__":
    cli.run(
        _train,
        _parse,
        _USAGE + config.help_text(),
        "interrupted; the same command goes on from the newest checkpoint",
    )
