"""Where a trained network comes from: a packaged one, a run's folder, a file, a new run."""

import contextlib
import json
import os
import shlex
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections

from jaxmnist import recipes
from jaxmnist.classifier import Classifier
from jaxmnist.config import (
    FIELDS,
    Config,
    architecture,
    did_you_mean,
    from_json,
    normalized,
    plain,
    validate,
    what_is_trained,
)
from jaxmnist.errors import Stopped, UserError
from jaxmnist.export import torch_weights
from jaxmnist.networks import models

if TYPE_CHECKING:
    from jaxmnist.runs.workdir import Row

# Runs and their checkpoints are imported late: a packaged network answers at once without them.

Recipe = str | os.PathLike[str] | Config

WEIGHTS = Path(__file__).parent / "weights"
"""A file for each recipe, NAME.safetensors, that benchmarks/weights.py writes."""


def packaged() -> list[str]:
    """The names of the networks that come with the package, in alphabetical order."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load(
    source: str | os.PathLike[str],
    recipe: Recipe | None = None,
    checkpoint: str | int = "last",
    seed: int | None = None,
) -> Classifier:
    """See ``jaxmnist.load``."""
    path = Path(os.path.expanduser(source))
    # os.path answers for any string; pathlib raises where a name is too long.
    a_file = path.suffix in torch_weights.SUFFIXES and not os.path.isdir(path)
    a_run = not a_file and bool(source) and os.path.exists(path)
    if not a_file and not a_run and os.fspath(source) not in packaged():
        raise UserError(
            f"{os.fspath(source)!r} is no trained network: name a run's folder, a file that ends "
            f"in {', '.join(torch_weights.SUFFIXES)}, or one of {', '.join(packaged())}"
        )
    if not a_file and recipe is not None:
        if a_run:
            from jaxmnist.runs import workdir

            workdir.read_config(path)  # where there is no run, that is what is wrong
        raise UserError(f"{source} has a recipe of its own: leave --config, or recipe=, out")
    if a_run:
        return load_run(path, str(checkpoint), seed)
    if (checkpoint, seed) != ("last", None) and (os.path.exists(path) or not a_file):
        raise UserError(f"{source} is no run: leave checkpoint and seed out, it is one network")
    if a_file:
        return _of_weights(path, recipe, str(path))
    return _of_weights(WEIGHTS / f"{source}.safetensors", None, f"the packaged {source}")


def load_run(
    folder: Path, checkpoint: str, seed: int | None, called: str | None = None
) -> Classifier:
    """One seed's network out of a run's checkpoint.

    Args:
      folder: of the run.
      checkpoint: as ``jaxmnist.load``.
      seed: as ``jaxmnist.load``.
      called: what to call the run; default: its folder.

    Raises:
      UserError: where there is no such run, checkpoint or seed.
    """
    from jaxmnist.runs import saved_run

    run = saved_run.load(folder, checkpoint, seed)
    alone = run.config.copy_and_resolve_references()
    alone.seed, alone.num_seeds = run.seed, 1
    metadata = {"seed": alone.seed, "epoch": run.epoch, "step": run.state.step}
    metadata["config"] = alone.to_json()
    if name := packaged_recipe(run.config):
        metadata["recipe"] = name
    if run.row and run.epoch == run.config.num_epochs:
        metadata["final_accuracy"] = run.row["eval_accuracy"]
    return Classifier(
        run.config,
        run.state.params,
        run.state.batch_stats,
        f"{called or folder}, {run.place}, seed {run.seed}",
        {name: str(value) for name, value in metadata.items()},
    )


def _of_weights(file: Path, recipe: Recipe | None, called: str) -> Classifier:
    weights, metadata = torch_weights.read(file), torch_weights.read_metadata(file)
    if recipe is not None:
        config, metadata = _configuration(recipe), {}
        if name := packaged_recipe(config):
            metadata["recipe"] = name
    elif "config" in metadata:
        try:
            config = from_json(metadata["config"])
            validate(config)
        except (ValueError, UserError) as error:
            raise UserError(
                f"{file} has no usable configuration ({error}): {_remedy(file)}"
            ) from error
    else:
        raise UserError(f"{file} does not say its recipe: {_remedy(file)}")
    network = models.build(architecture(config))
    in_order = file.suffix != ".safetensors"
    try:
        params, batch_stats, _ = torch_weights.from_state_dict(network, weights, in_order=in_order)
    except UserError as error:
        raise UserError(f"{file} does not fit {config.model}: {error}") from error
    return Classifier(config, params, batch_stats, called, metadata)


def _remedy(file: Path) -> str:
    return (
        "name it with recipe= in Python, or with --config in jaxmnist.convert, which also writes "
        "files that say it: python -m jaxmnist.convert --config RECIPE --from "
        f"{shlex.quote(str(file))} --to NEW.safetensors"
    )


def packaged_recipe(config: Config) -> str | None:
    """The packaged recipe that ``config`` follows, whatever seeds and devices; None for none."""
    for name in recipes.names():
        # Others may lie there too, in a checkout: broken ones, or what recipes share.
        with contextlib.suppress(UserError):
            if what_is_trained(recipes.load(recipes.path(name))) == what_is_trained(config):
                return name
    return None


def train(
    recipe: Recipe,
    workdir: str | os.PathLike[str] | None,
    fields: Mapping[str, Any],
    *,
    restart: bool = False,
    tensorboard: bool = False,
) -> "tuple[Classifier, list[Row]]":
    """See ``jaxmnist.train``."""
    from jaxmnist.runs import train as train_lib
    from jaxmnist.training import parallel

    config = _configuration(recipe, fields)
    if workdir == "":
        raise UserError("workdir is empty: name a folder, or leave it out")
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        parallel.use_every_core()
    with contextlib.ExitStack() as stack:
        keep, called = workdir is not None, None
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()), "run")
            called = "a run whose folder was not kept"
        folder = Path(os.path.expanduser(workdir))
        try:
            train_lib.run(config, folder, restart=restart, tensorboard=tensorboard, keep=keep)
        except Stopped as stopped:  # which no `except Exception` around the call should catch
            if stopped.cause == signal.SIGINT:
                raise KeyboardInterrupt(*([str(stopped)] if keep else [])) from None
            raise SystemExit(128 + stopped.cause) from None
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return load_run(folder, "last", None, called), rows


def _configuration(recipe: Recipe, fields: Mapping[str, Any] | None = None) -> Config:
    """A configuration of its own, with ``fields``, checked."""
    config = recipe if isinstance(recipe, ml_collections.ConfigDict) else recipes.load(recipe)
    config = normalized(config)
    for typed, value in (fields or {}).items():
        name = typed.replace("__", ".")
        if name not in FIELDS:
            raise UserError(f"config.{name} is unknown{did_you_mean(name)}")
        try:
            config.update_from_flattened_dict({name: plain(value)})
        except TypeError as error:
            kind = type(FIELDS[name].default).__name__
            raise UserError(f"config.{name} is {value!r}: it must be of type {kind}") from error
    validate(config)
    return config
