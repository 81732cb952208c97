"""The command that scores a trained network on a whole data set."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from jaxmnist import cli, data, sources
from jaxmnist.classifier import Classifier
from jaxmnist.errors import UserError
from jaxmnist.training import engine

_USAGE = """Scores a trained network on every image of a data set.

  python -m jaxmnist.evaluate --workdir runs/model3
  python -m jaxmnist.evaluate --from model3 --split train/test

  --workdir DIR       a run, as jaxmnist.main or jaxmnist.convert writes it
  --from SOURCE       in its place any trained network: a .safetensors file that jaxmnist.convert
                      wrote, a run, or a network that comes with the package:
                      {packaged}
  --checkpoint WHICH  of a run: best (by evaluation accuracy, on average over the seeds), last (the
                      default) or an epoch
  --seed SEED         which of the run's seeds; default: the first
  --dataset DATASET   'mnist', a folder of IDX files or 'tfds:NAME'; default: what the network's
                      recipe says
  --split SPLIT       train/test scores the test set, train/val the 10,000 images of the training
                      set that recipes with this split hold out; default: what the network's recipe
                      says
  --json              print one object (loss, accuracy, correct, total, per_class) and nothing else
"""

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "A run.", flag_values=_FLAGS)
_FROM = flags.DEFINE_string("from", None, "A trained network.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "best, last or an epoch.", flag_values=_FLAGS
)
_DATASET = flags.DEFINE_string("dataset", None, "Default: the recipe's.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_string("split", None, "Default: the recipe's.", flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", None, "Default: the run's first.", flag_values=_FLAGS)
_JSON = flags.DEFINE_bool(
    "json", False, "Print one JSON object and nothing else.", flag_values=_FLAGS
)


def scores(labels_N: np.ndarray, predictions_N: np.ndarray, loss: float) -> dict[str, Any]:
    """What --json prints; accuracies in percent, None for a class without images."""
    correct_C = np.bincount(labels_N[labels_N == predictions_N], minlength=10).tolist()
    total_C = np.bincount(labels_N, minlength=10).tolist()
    return {
        "loss": loss,
        "accuracy": 100 * sum(correct_C) / sum(total_C),
        "correct": sum(correct_C),
        "total": sum(total_C),
        "per_class": [
            100 * correct / total if total else None
            for correct, total in zip(correct_C, total_C, strict=True)
        ],
    }


def _text(result: dict[str, Any], labels_N: np.ndarray, predictions_N: np.ndarray) -> str:
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels_N, predictions_N), 1)
    lines = [
        f"loss {result['loss']:.4f}, accuracy {result['accuracy']:.2f} %: "
        f"{result['correct']:,} of {result['total']:,} right",
        "",
        " true    accuracy   predicted" + "".join(f"{label:>6}" for label in range(10)),
    ]
    for label, accuracy in enumerate(result["per_class"]):
        shown = "-" if accuracy is None else f"{accuracy:.2f} %"
        counts = "".join(f"{count:>6}" for count in confusion[label])
        lines.append(f"{label:>5}{shown:>12}{'':>12}{counts}")
    return "\n".join(lines)


def _parse(argv: list[str]) -> None:
    cli.parse_flags(argv, _FLAGS)
    if _WORKDIR.value is None and _FROM.value is None:
        raise UserError(
            "--workdir is missing: name a run, for example runs/model3, or with --from a network "
            "that comes with the package"
        )
    if _WORKDIR.value == "":
        raise UserError("--workdir is empty: name a run, for example runs/model3")
    if _WORKDIR.value is not None and _FROM.value is not None:
        raise UserError("--workdir and --from are both given: name one network")


def _load() -> Classifier:
    if _FROM.value is not None:
        return sources.load(_FROM.value, None, _CHECKPOINT.value or "", _SEED.value)
    folder = Path(os.path.expanduser(_WORKDIR.value or ""))
    return sources.load_run(folder, _CHECKPOINT.value or "", _SEED.value)


def _evaluate() -> None:
    network = _load()
    dataset = network.config.dataset if _DATASET.value is None else _DATASET.value
    split = network.config.split if _SPLIT.value is None else _SPLIT.value
    _, eval_data = data.load(dataset, split)
    trained_on = network.config.dataset, network.config.split
    if split == "train/val" and trained_on == (dataset, "train/test"):
        print(
            "warning: the network's recipe trains on the whole training set, these images among "
            "them; --split train/test scores it on others",
            file=sys.stderr,
        )
    logits_NK = network.logits(eval_data.images_NHW)
    predictions_N = logits_NK.argmax(1)
    loss_N = engine.cross_entropy(logits_NK, eval_data.labels_N, network.config.label_smoothing)
    result = scores(eval_data.labels_N, predictions_N, float(loss_N.mean()))
    if _JSON.value:
        print(json.dumps(result))
        return
    print(f"{network.config.model}, {network.source}, on {dataset}, {split}")
    print(_text(result, eval_data.labels_N, predictions_N))


if __name__ == "__main__":
    cli.run(_evaluate, _parse, _USAGE.format(packaged=cli.listed(sources.packaged(), 22)))
