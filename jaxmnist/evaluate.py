"""The command that scores a trained network on a whole data set."""

if __name__ == "__main__":
    from jaxmnist.runs import signals

    signals.die_of_ctrl_c()  # the imports below take seconds

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxmnist import cli, data
from jaxmnist.errors import UserError
from jaxmnist.runs import saved_run
from jaxmnist.training.engine import Images

_USAGE = """Scores a trained network on every image of a data set.

  python -m jaxmnist.evaluate --workdir DIR [--checkpoint best|last|EPOCH] [--dataset ...]

  --workdir DIR       a run, as jaxmnist.main or jaxmnist.convert writes it
  --checkpoint WHICH  best (by evaluation accuracy, on average over the seeds), last (the
                      default) or an epoch
  --dataset DATASET   'mnist', a folder of IDX files or 'tfds:NAME'; default: the run's own
  --split SPLIT       train/test scores the test set, train/val the 10,000 images held out of the
                      training set; default: the run's own
  --seed SEED         which of the run's seeds; default: the first
  --json              print one object (loss, accuracy, correct, total, per_class) and nothing else
"""

_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "A run.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "last", "best, last or an epoch.", flag_values=_FLAGS
)
_DATASET = flags.DEFINE_string("dataset", None, "Default: the run's own.", flag_values=_FLAGS)
_SPLIT = flags.DEFINE_string("split", None, "Default: the run's own.", flag_values=_FLAGS)
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
    if _WORKDIR.value is None:
        raise UserError("--workdir is missing: name a run, for example runs/model3")


def _evaluate() -> None:
    workdir = Path(os.path.expanduser(_WORKDIR.value or ""))
    run = saved_run.load(workdir, _CHECKPOINT.value or "last", _SEED.value)
    dataset = _DATASET.value or run.config.dataset
    _, eval_data = data.load(dataset, _SPLIT.value or run.config.split)
    eval_set = Images(jnp.asarray(eval_data.images_NHW), jnp.asarray(eval_data.labels_N))
    evaluation = jax.jit(run.engine.evaluate)(run.state, run.member, eval_set)
    predictions_N = np.asarray(evaluation.predictions_N)
    loss = float(evaluation.loss)
    if not math.isfinite(loss):
        raise UserError(f"{workdir} has a loss of {loss}: its weights are damaged")
    result = scores(eval_data.labels_N, predictions_N, loss)
    if _JSON.value:
        print(json.dumps(result))
        return
    print(f"{run.config.model}, {run.place}, seed {run.member.seed}, on {dataset}")
    print(_text(result, eval_data.labels_N, predictions_N))


if __name__ == "__main__":
    cli.run(_evaluate, _parse, _USAGE)
