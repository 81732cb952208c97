"""The command that carries weights from PyTorch to a run and back."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import contextlib
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from jaxmnist import cli, config
from jaxmnist.errors import StorageError, UserError
from jaxmnist.export import torch_weights
from jaxmnist.runs import assemble, saved_run
from jaxmnist.runs.checkpoint import Checkpoints, Record
from jaxmnist.runs.workdir import Workdir
from jaxmnist.training.engine import TrainState

_USAGE = """Carries weights from PyTorch to a run and back.

  python -m jaxmnist.convert --config model3 --from weights.pth --to DIR
  python -m jaxmnist.convert --from DIR --to weights.pth [--checkpoint best|last|EPOCH] [--seed N]

  A file is .pth, .pt (both need PyTorch) or .safetensors. Its tensors are named as those of a
  torch module that holds the layers in an nn.Sequential called layers: layers.0.weight, …
  A .pth file with other names is taken too, if its tensors agree in order, kind and shape.

  --config RECIPE     name or file of the recipe that the weights belong to; jaxmnist.main trains
                      on from them
  --from, --to        a file of weights and the folder of a run, in either direction
  --checkpoint WHICH  of the run: best, last (the default) or an epoch
  --seed SEED         which of the run's seeds; default: the first
"""

_FLAGS = flags.FlagValues()
_RECIPE = cli.define_recipe(_FLAGS)
_FROM = flags.DEFINE_string("from", None, "A file of weights or a run.", flag_values=_FLAGS)
_TO = flags.DEFINE_string("to", None, "A run or a file of weights.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "best, last or an epoch.", flag_values=_FLAGS
)
_SEED = flags.DEFINE_integer("seed", None, "Default: the run's first.", flag_values=_FLAGS)


def import_weights(file: Path, workdir: Path, recipe: config.Config) -> bool:
    """Makes ``workdir`` a run of ``recipe`` that has trained 0 epochs and has the file's weights.

    Returns:
      Whether the tensors had other names and were taken by their order.

    Raises:
      UserError: for weights that do not fit, or a workdir that holds something already; then
        nothing is written.
    """
    config.validate(recipe)
    if recipe.num_seeds != 1:
        raise UserError(
            f"config.num_seeds is {recipe.num_seeds}: set it to 1, weights are those of one seed"
        )
    if os.path.exists(workdir) and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--to {workdir} is not an empty folder: choose another")
    engine = assemble.engine(recipe)
    try:
        params, batch_stats, by_order = torch_weights.from_state_dict(
            engine.network(), torch_weights.read(file), in_order=file.suffix != ".safetensors"
        )
    except UserError as error:
        raise UserError(f"--from {file} does not fit {recipe.model}: {error}") from error
    member = assemble.member(recipe, assemble.schedule(recipe, steps_per_epoch=1), recipe.seed)
    opt_state = engine.optimizer(member).init(params)
    state = TrainState(jnp.int32(0), params, batch_stats, opt_state)
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere until it is whole: a run without its checkpoint would train from scratch.
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=workdir.parent) as folder:
            files = Workdir(Path(folder) / "run", recipe)
            record = Record(epoch=0, rows=[], partial=None, config=config.flatten(recipe))
            with (
                contextlib.closing(files),
                contextlib.closing(Checkpoints(files.checkpoints)) as checkpoints,
            ):
                checkpoints.save(0, jax.tree.map(lambda leaf: leaf[None], state), record)
            os.replace(files.path, workdir)
    except OSError as error:
        raise UserError(f"--to {workdir}: {error.strerror or error}: choose another") from error
    except StorageError as error:
        raise UserError(f"--to {workdir}: {error.__cause__}: choose another") from error
    return by_order


def export_weights(workdir: Path, file: Path, checkpoint: str, seed: int | None) -> None:
    """Writes the weights of a run's checkpoint to ``file``, which must not exist yet."""
    if os.path.exists(file):
        raise UserError(f"--to {file} exists: choose another name")
    run = saved_run.load(workdir, checkpoint, seed)
    state = run.state
    torch_weights.write(
        file,
        torch_weights.to_state_dict(
            run.engine.network(), state.params, state.batch_stats, int(state.step)
        ),
    )


def _path(value: str | None) -> Path:
    return Path(os.path.expanduser(value or ""))


def _is_weights(path: Path) -> bool:
    return path.suffix in torch_weights.SUFFIXES


def _parse(argv: list[str]) -> None:
    if any(re.match(r"--?config\b", argument) for argument in argv[1:]):
        cli.parse_with_recipe(argv, _FLAGS)
    else:
        cli.parse_flags(argv, _FLAGS)
    if not (_FROM.value and _TO.value):
        raise UserError("--from and --to are needed: a file of weights and the folder of a run")
    if _is_weights(_path(_FROM.value)) == _is_weights(_path(_TO.value)):
        raise UserError(
            f"--from {_FROM.value} --to {_TO.value}: one must be a file that ends in "
            f"{', '.join(torch_weights.SUFFIXES)}, the other a folder"
        )
    if _is_weights(_path(_FROM.value)) and _RECIPE.value is None:
        raise UserError("--config is missing: name the recipe that the weights belong to")


def _convert() -> None:
    source, target = _path(_FROM.value), _path(_TO.value)
    if not _is_weights(source):
        export_weights(source, target, _CHECKPOINT.value or "last", _SEED.value)
    elif import_weights(source, target, _RECIPE.value):
        print(f"note: the tensors of {source} have other names; they were taken in their order")
    print(f"wrote {target}")


if __name__ == "__main__":
    cli.run(_convert, _parse, _USAGE)
