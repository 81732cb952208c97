"""The command that writes trained networks in other formats, and makes runs of weights."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from jaxmnist import cli, config, sources
from jaxmnist.errors import StorageError, UserError
from jaxmnist.export import files, torch_weights
from jaxmnist.runs import assemble
from jaxmnist.runs.checkpoint import Checkpoints, Record
from jaxmnist.runs.workdir import Workdir
from jaxmnist.training.engine import TrainState

_USAGE = """Writes a trained network in another format, and turns PyTorch weights into a run.

  python -m jaxmnist.convert --from runs/model3 --to model3.onnx
  python -m jaxmnist.convert --from model3 --to draw.html
  python -m jaxmnist.convert --config model3 --from weights.pth --to DIR

  --from SOURCE       a run's folder, a file of weights (.pth, .pt, .safetensors), or a network
                      that comes with the package:
                      {packaged}
  --to FILE           its suffix names the format:
                        .safetensors, .pth, .pt  weights by their names in PyTorch
                        .onnx                    for onnxruntime and Netron
                        .stablehlo               for jax.export.deserialize, on CPU, GPU and TPU
                        .html                    a page to draw digits on; needs a browser only
                      .onnx and .stablehlo need pip install 'jaxmnist[convert]', .pth PyTorch
  --to DIR            of a file of weights: a new run, which jaxmnist.main trains on
  --config RECIPE     name or file of the recipe that a file of weights belongs to. For a run and
                      for a .safetensors file written here it is known.
  --checkpoint WHICH  of a run: best, last (the default) or an epoch
  --seed SEED         which of a run's seeds; default: the first

  Weights are named as those of a torch module that holds the layers in an nn.Sequential called
  layers: layers.0.weight, … A .pth file with other names is taken too, if its tensors agree in
  order, kind and shape.
"""

_FLAGS = flags.FlagValues()
_RECIPE = cli.Recipe(_FLAGS)
_FROM = flags.DEFINE_string("from", None, "A trained network.", flag_values=_FLAGS)
_TO = flags.DEFINE_string("to", None, "A file, or a new run.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "best, last or an epoch.", flag_values=_FLAGS
)
_SEED = flags.DEFINE_integer("seed", None, "Default: the run's first.", flag_values=_FLAGS)

_UNFINISHED = ".convert-"  # begins the name of a folder where a run is made


def import_weights(file: Path, workdir: Path, recipe: config.Config) -> bool:
    """Makes ``workdir`` a run of ``recipe`` that has trained 0 epochs and has the file's weights.

    Returns:
      Whether the tensors had other names and were taken by their order.

    Raises:
      UserError: for weights that do not fit, or a workdir that holds something already; then
        nothing is written.
    """
    recipe = config.normalized(recipe)
    config.validate(recipe)
    if recipe.num_seeds != 1:
        raise UserError(
            f"config.num_seeds is {recipe.num_seeds}: set it to 1, weights are those of one seed"
        )
    _refuse_what_is_there(workdir)
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
        workdir.mkdir(parents=True, exist_ok=True)
        # Elsewhere until it is whole: a run without its checkpoint would train from scratch.
        for cut_short in workdir.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(cut_short, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=workdir) as folder:
            run = Workdir(Path(folder) / "run", recipe)
            record = Record(epoch=0, rows=[], partial=None, config=config.flatten(recipe))
            with (
                contextlib.closing(run),
                contextlib.closing(Checkpoints(run.checkpoints)) as checkpoints,
            ):
                checkpoints.save(0, jax.tree.map(lambda leaf: leaf[None], state), record)
            _refuse_what_is_there(workdir)  # by now
            # What makes it a run comes last. The folder may be a mount, or where the user is.
            for path in sorted(run.path.iterdir(), key=lambda path: path == run.config_file):
                os.replace(path, workdir / path.name)
    except OSError as error:
        raise UserError(f"--to {workdir}: {error.strerror or error}: choose another") from error
    except StorageError as error:
        raise UserError(f"--to {workdir}: {error.__cause__}: choose another") from error
    return by_order


def _refuse_what_is_there(workdir: Path) -> None:
    """Accepts nothing at all, or an empty folder: to be, or as one that was cut short left it."""
    if not os.path.lexists(workdir):
        return
    if workdir.is_dir() and all(path.name.startswith(_UNFINISHED) for path in workdir.iterdir()):
        return
    raise UserError(f"--to {workdir} is not an empty folder: choose another")


def export(
    source: str | Path,
    file: Path,
    checkpoint: str = "last",
    seed: int | None = None,
    recipe: config.Config | None = None,
) -> None:
    """Writes a trained network to ``file``, which must not exist yet.

    Args:
      source, recipe, checkpoint, seed: as in ``jaxmnist.load``.
      file: its suffix names the format.
    """
    if os.path.lexists(file):
        raise UserError(f"--to {file} exists: choose another name")
    files.save(sources.load(source, recipe, checkpoint, seed), file)


def _path(value: str | None) -> Path:
    return Path(os.path.expanduser(value or ""))


def _parse(argv: list[str]) -> None:
    if any(re.match(r"--?config\b", argument) for argument in argv[1:]):
        _RECIPE.parse(argv)
    else:
        cli.parse_flags(argv, _FLAGS)
    if not (_FROM.value and _TO.value):
        raise UserError("--from and --to are needed: a trained network and the file to write")
    source, target = _path(_FROM.value), _path(_TO.value)
    if target.suffix in files.SUFFIXES:
        return
    a_run = os.path.isdir(target) or not re.fullmatch(r"\.[A-Za-z]+", target.suffix)
    of_weights = source.suffix in torch_weights.SUFFIXES and not os.path.isdir(source)
    if a_run and _RECIPE.value is not None and not of_weights:
        raise UserError(
            f"--from {source} must be a file that ends in {', '.join(torch_weights.SUFFIXES)}, to "
            f"make a run of it; or --to {target} must end in {', '.join(files.SUFFIXES)}"
        )
    if not (a_run and of_weights):
        raise UserError(f"--to {target} must end in {', '.join(files.SUFFIXES)}")
    if (_CHECKPOINT.value, _SEED.value) != ("last", None):
        raise UserError(
            "--checkpoint and --seed are of a run: weights are one network; a new run's seed is "
            "set with --config RECIPE --config.seed=N"
        )


def _convert() -> None:
    source, target = _path(_FROM.value), _path(_TO.value)
    if target.suffix in files.SUFFIXES:
        export(_FROM.value or "", target, _CHECKPOINT.value or "", _SEED.value, _RECIPE.value)
    elif import_weights(source, target, _RECIPE.value or sources.load(source).config):
        print(f"note: the tensors of {source} have other names; they were taken in their order")
    print(f"wrote {target}")


if __name__ == "__main__":
    cli.run(_convert, _parse, _USAGE.format(packaged=cli.listed(sources.packaged(), 22)))
