"""The command line: flags -> config -> train.run(config, workdir)."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import os
import re
from pathlib import Path

from absl import flags

import jaxmnist
from jaxmnist import cli, config, recipes
from jaxmnist.errors import UserError
from jaxmnist.runs import train
from jaxmnist.training import hosts, parallel

_USAGE = """Trains one of the compact MNIST networks.

  python -m jaxmnist.main --config model3 [--workdir DIR] [--config.FIELD=VALUE ...]

  --config RECIPE  the name of a packaged recipe:
                   {recipes}
                   or a file of your own, like those in configs/
  --workdir DIR    where everything is written; default runs/<name of the recipe>.
                   A run that is there already goes on where it stopped.
  --restart        start over; what is in the workdir is moved aside, not deleted
  --tensorboard    also write what TensorBoard shows, into the workdir's tensorboard/
  --help           this text

A run of several processes, with a workdir that all of them see; each is started with:
  --coordinator HOST:PORT   of the first process, which listens there; or 'auto', to ask SLURM,
                            Open MPI, Kubernetes or the TPU pod for everything
  --num_processes N         how many processes there are
  --process_id I            which one this is, 0 to N-1

Compiled programs are kept for the next start in the user's cache folder; the environment variable
JAX_COMPILATION_CACHE_DIR names another, JAX_ENABLE_COMPILATION_CACHE=false keeps none.

Fields of the configuration with their general defaults (the recipe sets its own):
"""

_FLAGS = flags.FlagValues()
_RECIPE = cli.Recipe(_FLAGS)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Default: runs/<name of the recipe's file>.", flag_values=_FLAGS
)
_RESTART = flags.DEFINE_bool(
    "restart", False, "Start over, after moving the workdir aside.", flag_values=_FLAGS
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Also write event files for TensorBoard.", flag_values=_FLAGS
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several processes.", flag_values=_FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes.", flag_values=_FLAGS
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them.", flag_values=_FLAGS)


def _parse(argv: list[str]) -> None:
    _RECIPE.parse(argv)
    if _WORKDIR.value == "":
        raise UserError("--workdir is empty: name a folder, or leave it out")
    coordinator, count, number = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if coordinator in (None, "auto"):
        if (count, number) != (None, None):
            raise UserError(
                "--num_processes and --process_id are given: --coordinator HOST:PORT is needed too"
            )
    elif not re.fullmatch(r".+:[0-9]{1,5}", coordinator):
        raise UserError(f"--coordinator is {coordinator!r}: it must be HOST:PORT or auto")
    elif count is None or number is None or not 0 <= number < count:
        raise UserError(
            f"--num_processes is {count}, --process_id {number}: both are needed, N and a number "
            "from 0 to N-1"
        )


def _train() -> None:
    parallel.use_every_core()
    if _COORDINATOR.value:
        hosts.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    # os.path answers for any string; pathlib raises on '~nobody'.
    workdir = os.path.expanduser(_WORKDIR.value or f"runs/{_RECIPE.name}")
    train.run(
        _RECIPE.value,
        Path(workdir),
        restart=_RESTART.value,
        tensorboard=_TENSORBOARD.value,
        started=jaxmnist.STARTED,
    )


if __name__ == "__main__":
    cli.run(
        _train,
        _parse,
        _USAGE.format(recipes=cli.listed(recipes.names(), 19)) + config.help_text(),
        "interrupted; the same command goes on from the newest checkpoint",
    )
