"""Where a trained network comes from: a run's folder, a file of weights, a new run."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jaxmnist import recipes
from jaxmnist.classifier import Classifier
from jaxmnist.config import FIELDS, Config, architecture, did_you_mean, validate
from jaxmnist.errors import UserError
from jaxmnist.export import torch_weights
from jaxmnist.networks import models
from jaxmnist.runs import saved_run
from jaxmnist.runs import train as train_lib
from jaxmnist.runs.workdir import Row
from jaxmnist.training import parallel

Recipe = str | os.PathLike[str] | Config


def load(
    source: str | os.PathLike[str], recipe: Recipe | None, checkpoint: str, seed: int | None
) -> Classifier:
    """See ``jaxmnist.load``."""
    path = Path(os.path.expanduser(source))
    if path.suffix in torch_weights.SUFFIXES:
        if recipe is None:
            raise UserError(f"{path} needs a recipe: name the one that the weights belong to")
        return _of_weights(path, _configuration(recipe))
    if not path.is_dir():
        raise UserError(
            f"{source} is neither a run's folder nor a file that ends in "
            f"{', '.join(torch_weights.SUFFIXES)}"
        )
    run = saved_run.load(path, checkpoint, seed)
    words = f"{path}, epoch {run.epoch}, seed {run.member.seed}"
    return Classifier(run.config, run.state.params, run.state.batch_stats, words)


def _of_weights(file: Path, config: Config) -> Classifier:
    network = models.build(architecture(config))
    in_order = file.suffix != ".safetensors"
    weights = torch_weights.read(file)
    try:
        params, batch_stats, _ = torch_weights.from_state_dict(network, weights, in_order=in_order)
    except UserError as error:
        raise UserError(f"{file} does not fit {config.model}: {error}") from error
    return Classifier(config, params, batch_stats, str(file))


def train(
    recipe: Recipe, workdir: str | os.PathLike[str] | None, fields: Mapping[str, Any]
) -> tuple[Classifier, list[Row]]:
    """See ``jaxmnist.train``."""
    config = _configuration(recipe, fields)
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
        parallel.use_every_core()
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()), "run")
        folder = Path(os.path.expanduser(workdir))
        train_lib.run(config, folder)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return load(folder, None, "last", None), rows


def _configuration(recipe: Recipe, fields: Mapping[str, Any] | None = None) -> Config:
    """A configuration of its own, with ``fields``, checked."""
    config = recipe if isinstance(recipe, ml_collections.ConfigDict) else recipes.load(recipe)
    config = config.copy_and_resolve_references()
    for typed, value in (fields or {}).items():
        name = typed.replace("__", ".")
        if name not in FIELDS:
            raise UserError(f"config.{name} is unknown{did_you_mean(name)}")
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            kind = type(FIELDS[name].default).__name__
            raise UserError(f"config.{name} is {value!r}: it must be of type {kind}") from error
    validate(config)
    return config
