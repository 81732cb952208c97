"""The command line: flags -> config -> train.run(config, workdir)."""

import os
import re
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxmnist import cli, config, train
from jaxmnist.errors import UserError

_USAGE = """Trains one of the compact MNIST networks.

  python -m jaxmnist.main --config configs/model3.py [--workdir DIR] [--config.FIELD=VALUE ...]

  --config FILE    the recipe, one of configs/*.py
  --workdir DIR    where everything is written; default runs/<name of the recipe's file>.
                   A run that is there already is taken up where it stopped.
  --restart        begin anew; what is in the workdir is moved aside, not deleted
  --help           this text

Fields of the configuration with their general defaults (the recipe sets its own):
"""

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe: one of configs/*.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/<name of the recipe's file>.")
_RESTART = flags.DEFINE_bool("restart", False, "Begin anew, after moving the workdir aside.")


def _parse(argv: list[str]) -> None:
    """Parses the flags; what is wrong with recipe or fields becomes a UserError of one line."""
    recipe = _recipe_file(argv)
    for argument in argv[1:]:
        field = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if field and field[1] not in config.FIELDS:
            raise UserError(f"config.{field[1]} is unknown{config.did_you_mean(field[1])}")
    try:
        cli.parse_flags(argv)
    except UserError as error:
        if "Error whilst parsing config file" not in str(error):
            raise
        raise _broken_recipe(recipe, error) from error
    except Exception as error:  # the recipe is code: it can raise anything
        raise _broken_recipe(recipe, error) from error
    if not isinstance(_CONFIG.value, ml_collections.ConfigDict):
        raise UserError(
            f"--config {recipe}: get_config() must return a ConfigDict, not {_CONFIG.value!r}"
        )


def _recipe_file(argv: list[str]) -> str:
    """The value of --config, checked here: ml_collections accepts it and fails later."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if flag := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            recipe = following if flag[1] is None else flag[1]
            if not os.path.isfile(recipe.partition(":")[0]):
                raise UserError(
                    f"--config {recipe!r} is no file: name a recipe, for example configs/model3.py"
                )
            return recipe
    raise UserError("--config is missing: name a recipe, for example configs/model3.py")


def _broken_recipe(recipe: str, error: BaseException) -> UserError:
    while error.__context__:  # ml_collections wraps what the recipe raised in its whole traceback
        error = error.__context__
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"--config {recipe}: {reason}: mend the recipe, or name one of configs/*.py")


def _train() -> None:
    recipe = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    # os.path answers for any string; pathlib raises on '~nobody'.
    workdir = Path(os.path.expanduser(_WORKDIR.value or f"runs/{recipe}"))
    train.run(_CONFIG.value, workdir, restart=_RESTART.value)


if __name__ == "__main__":
    cli.run(_train, _parse, _USAGE + config.help_text())
