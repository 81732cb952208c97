"""The command that tries many settings of a recipe: flags -> space -> sweep.run."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

from absl import flags

from jaxmnist import cli, config
from jaxmnist.errors import UserError
from jaxmnist.runs import signals
from jaxmnist.training import parallel

_USAGE = """Tries many settings of a recipe, several networks in one program, and keeps the best.

  python -m jaxmnist.sweep --config model3 --workdir DIR \\
      --sweep.optimizer.learning_rate=log:0.05..0.5 --sweep.augment.rotate_degrees=0,5,10 \\
      --trials 30 --config.num_seeds=2

  --config RECIPE       the name or file of a recipe; --config.FIELD=VALUE sets what is fixed
  --workdir DIR         where everything is written. A sweep that is there already goes on where
                        it stopped; one with other settings is refused.
  --sweep.FIELD=VALUES  what is varied, any field below but recipe, dataset, split, seed,
                        num_seeds, mesh.… and checkpoint.…:
                          a,b,c          one of these values
                          low..high      any value from low to high
                          log:low..high  the same on a logarithmic scale
                        Widths of a network are varied with --config.model=blocks, and a range in
                        the place of a number: --sweep.network.blocks=6..8-8/12..16-16/20
  --trials N            how many settings to try; for a grid all of them
  --sampler NAME        grid: all choices (the default where there are no ranges); qmc: evenly
                        spread (the default otherwise); random; tpe: learns from what it has tried
  --parallel P          trials in one program; default: what keeps the devices busy
  --halving R           stop all but the best 1/R of the trials at 1/R² of the epochs, and all but
                        the best 1/R of those at 1/R. Each round by itself: up to 100 trials;
                        with tpe or --storage R², or as many as are trained at once
  --max_params N        do not train networks with more parameters
  --storage URL         a database of Optuna's, for example sqlite:////shared/sweep.db, or the path
                        of a journal file: everyone who starts the same sweep with it, each with a
                        --workdir of its own, takes part
  --help                this text

A sweep trains and evaluates on parts of the training set (--config.split=train/val) whatever the
recipe says: settings are not chosen on the test set. --config.num_seeds=N trains each trial with
N seeds. It leaves trials.jsonl, best.py (a recipe), sweep.png and study.db, which optuna-dashboard
opens. It needs Optuna: pip install 'jaxmnist[sweep]'.

Fields of the configuration with their general defaults (the recipe sets its own):
"""

_FLAGS = flags.FlagValues()
_RECIPE = cli.Recipe(_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to write.", flag_values=_FLAGS)
_TRIALS = flags.DEFINE_integer("trials", None, "How many settings.", flag_values=_FLAGS)
_SAMPLER = flags.DEFINE_string("sampler", None, "grid, random, qmc or tpe.", flag_values=_FLAGS)
_PARALLEL = flags.DEFINE_integer("parallel", None, "Trials in a program.", flag_values=_FLAGS)
_HALVING = flags.DEFINE_integer("halving", None, "Keep the best 1/R.", flag_values=_FLAGS)
_MAX_PARAMS = flags.DEFINE_integer("max_params", None, "Largest network.", flag_values=_FLAGS)
_STORAGE = flags.DEFINE_string("storage", None, "A database of Optuna's.", flag_values=_FLAGS)

_asked: dict[str, str] = {}
_typed: list[str] = []


def _parse(argv: list[str]) -> None:
    _typed[:] = argv[1:]
    rest = []
    for argument in argv:
        if field := re.match(r"--?sweep\.([^=]*)(=?)(.*)", argument, re.DOTALL):
            name, equals, values = field.groups()
            if not (equals and values):
                raise UserError(f"--sweep.{name} has no values: --sweep.{name}=a,b or =low..high")
            if name in _asked:
                raise UserError(f"--sweep.{name} is given twice")
            _asked[name] = values
        else:
            rest.append(argument)
    _RECIPE.parse(rest)
    if not _asked:
        raise UserError("nothing is swept: --sweep.FIELD=a,b,c or --sweep.FIELD=low..high")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: name a folder for the sweep")
    if _STORAGE.value == "":
        raise UserError("--storage is empty: name a database, or leave it out")
    if not all(map(importlib.util.find_spec, ("optuna", "rich", "sqlalchemy"))):
        raise UserError("Optuna, rich or SQLAlchemy is missing: pip install 'jaxmnist[sweep]'")
    for field in _asked:
        if any(re.match(rf"--?(no)?config\.{re.escape(field)}(=|$)", a) for a in rest):
            raise UserError(f"--config.{field} and --sweep.{field} are given: choose one of them")


def _sweep() -> None:
    signals.die_of_ctrl_c()  # these imports take seconds too
    from jaxmnist.sweeps import space, sweep

    signals.raise_on_ctrl_c()
    parallel.use_every_core()
    recipe: config.Config = _RECIPE.value
    split = recipe.split
    if not any(re.match(r"--?config\.split(=|$)", argument) for argument in _typed):
        recipe.split = "train/val"
    elif recipe.split == "train/test":
        print(
            "warning: --config.split=train/test chooses settings on the test set; what is found "
            "that way is too good",
            file=sys.stderr,
        )
    options = sweep.Options(
        _TRIALS.value,
        _SAMPLER.value,
        _PARALLEL.value,
        _HALVING.value,
        _MAX_PARAMS.value,
        _STORAGE.value,
    )
    sweep.run(
        recipe,
        space.parse(_asked),
        Path(os.path.expanduser(_WORKDIR.value or "")),
        options,
        split=split,
        command=f"python -m jaxmnist.sweep {shlex.join(_typed)}",
    )


if __name__ == "__main__":
    cli.run(
        _sweep,
        _parse,
        _USAGE + config.help_text(),
        "interrupted; the same command goes on from there",
    )
