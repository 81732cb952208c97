"""Compact MNIST networks in pure JAX, equal to their PyTorch originals.

>>> import jaxmnist
>>> from jaxmnist import data
>>> _, test = data.load("mnist", "train/test")
>>> digits, probabilities = jaxmnist.load("model3").predict(test.images_NHW[:5])
>>> digits.tolist()
[7, 2, 1, 0, 4]

A network of one's own, and a page to draw digits for it:

    classifier, rows = jaxmnist.train("compact_tiny", num_epochs=1)
    jaxmnist.save(classifier, "draw.html")
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from jaxmnist.classifier import Classifier
    from jaxmnist.config import Config
    from jaxmnist.runs.workdir import Row

__version__ = "0.3.0"

__all__ = ["load", "save", "train"]

STARTED = time.perf_counter()
"""When the package was imported, before the libraries that take seconds."""


def load(
    source: "str | os.PathLike[str]",
    *,
    recipe: "str | os.PathLike[str] | Config | None" = None,
    checkpoint: str | int = "last",
    seed: int | None = None,
) -> "Classifier":
    """A trained network.

    Args:
      source: a run's folder, a file of weights (.pth, .pt, .safetensors), or the name of a network
        that comes with the package, one for each recipe: 'model3'. Files and folders come first.
      recipe: what the weights of a file belong to: the name of a packaged recipe, the file of
        another one, or a configuration. Files that ``save`` wrote as .safetensors know it.
      checkpoint: of a run: 'best', 'last' or the number of an epoch.
      seed: which of a run's seeds; None for the first.

    Raises:
      jaxmnist.errors.UserError: where there is no such network, naming what is wrong.
    """
    from jaxmnist import sources  # late: the libraries below take seconds

    return sources.load(source, recipe, checkpoint, seed)


def save(classifier: "Classifier", file: "str | os.PathLike[str]") -> None:
    """Writes a trained network in the format that the file's suffix names.

    Args:
      classifier: as ``load`` and ``train`` return it.
      file: .safetensors, .pth or .pt for weights by their names in PyTorch, .onnx, .stablehlo, or
        .html for a page to draw digits on. A file that is there is replaced.

    Raises:
      jaxmnist.errors.UserError: for another suffix, a library that is not installed, or a place
        that cannot be written.
    """
    from jaxmnist.export import files  # late: the libraries below take seconds

    files.save(classifier, file)


def train(
    recipe: "str | os.PathLike[str] | Config",
    /,
    workdir: "str | os.PathLike[str] | None" = None,
    *,
    restart: bool = False,
    tensorboard: bool = False,
    **fields: Any,
) -> "tuple[Classifier, list[Row]]":
    """Trains as ``python -m jaxmnist.main`` does.

    Also on every core of a CPU, unless JAX was used before: then its devices stay what they are.

    Args:
      recipe: the name of a packaged recipe, the file of another one, or a configuration.
      workdir: the run's folder, where it is taken up if it is there already; None for one that is
        removed in the end.
      restart: start over, after moving a run that is in the workdir aside.
      tensorboard: also write the run's curves for TensorBoard.
      **fields: fields of the configuration, with two underscores for a dot:
        ``train("model3", num_epochs=3, optimizer__learning_rate=0.1)``.

    Returns:
      The network of the first seed after the last epoch, and a row an epoch and seed, as in
      metrics.jsonl.

    Raises:
      jaxmnist.errors.UserError: for a recipe, fields, data or a workdir that cannot be used.
      jaxmnist.errors.DivergenceError: when the loss stops being finite.
      jaxmnist.errors.StorageError: when the disk fails or is full.
      KeyboardInterrupt: after Ctrl-C, once everything is saved: with the same ``workdir`` the same
        call goes on from there. After SIGTERM, SystemExit.
    """
    from jaxmnist import sources  # late: the libraries below take seconds

    return sources.train(recipe, workdir, fields, restart=restart, tensorboard=tensorboard)
