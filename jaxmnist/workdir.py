"""The files of a run: config.json, metrics.jsonl, summary.json and where the rest goes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from scipy import stats

from jaxmnist.config import Config, flatten, validate
from jaxmnist.errors import UserError

Row = dict[str, Any]

CHECKPOINTS = "checkpoints"
_CONFIG = "config.json"
_START_ANEW = "--restart to move the run aside and begin anew"


class Workdir:
    """A run's folder. A folder that holds the same run is taken up, another one is refused."""

    def __init__(self, path: Path, config: Config, *, restart: bool = False):
        """Creates the folder or checks the one that is there.

        Args:
          path: the folder.
          config: the run's configuration.
          restart: move a folder that exists out of the way, to a name with a number appended.

        Raises:
          UserError: where the folder cannot be used, or holds a run with other settings.
        """
        path = Path(os.path.abspath(path))  # "." must stay what it is when it is moved aside
        self.path = path
        self._runs = range(config.seed, config.seed + config.num_seeds)
        self.checkpoints = path / CHECKPOINTS
        self.moved_to: Path | None = None
        try:
            if path.exists() and any(path.iterdir()) and not self._config_file.exists():
                raise UserError(f"--workdir {path} holds other things than a run: choose another")
            if restart and self._config_file.exists():
                self.moved_to = _free_name(path)
                path.rename(self.moved_to)
            path.mkdir(parents=True, exist_ok=True)
            if self._config_file.exists():
                self._refuse_other_run(config)
            _write_atomically(self._config_file, config.to_json(indent=1))
        except OSError as error:
            raise UserError(
                f"--workdir {path}: {error.strerror or error}: choose a folder that can be written"
            ) from error

    @property
    def _config_file(self) -> Path:
        return self.path / _CONFIG

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def _refuse_other_run(self, config: Config) -> None:
        remedy = "choose another --workdir, or --restart to move the old run aside"
        there = flatten(_read_config(self._config_file, remedy))
        here = flatten(config)
        differing = [
            f"config.{name} is {there.get(name)!r} there and {here.get(name)!r} here"
            for name in sorted(
                there.keys() | here.keys(), key=lambda name: (name not in there, name)
            )
            if there.get(name) != here.get(name) and not name.startswith(("checkpoint.", "mesh."))
        ]
        if len(differing) > 3:
            differing = [*differing[:3], f"and {len(differing) - 3} more"]
        if differing:
            raise UserError(f"{self.path} holds another run ({'; '.join(differing)}): {remedy}")

    def read_metrics(self, epochs: int) -> list[Row]:
        """The rows of the first ``epochs`` epochs; those that come later are removed."""
        expected = [(epoch, seed) for epoch in range(1, epochs + 1) for seed in self._runs]
        try:
            text = self._metrics_file.read_text() if self._metrics_file.exists() else ""
            rows = [json.loads(line) for line in text.splitlines()[: len(expected)]]
            found = [(row["epoch"], row["seed"]) for row in rows]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._metrics_file}: {error}: {_START_ANEW}") from error
        if found != expected:
            raise UserError(
                f"{self._metrics_file} does not hold the {epochs} epochs of the newest "
                f"checkpoint: {_START_ANEW}"
            )
        _write_atomically(self._metrics_file, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def append_metrics(self, rows: Sequence[Row]) -> None:
        """Adds one line a row."""
        with self._metrics_file.open("a") as file:
            file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_atomically(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")


def read_config(path: Path) -> Config:
    """The configuration of the run in the folder ``path``, checked.

    Raises:
      UserError: where there is no run, or its configuration is damaged.
    """
    if not os.path.isfile(path / _CONFIG):  # pathlib raises where a name is too long
        raise UserError(f"--workdir {path} holds no run: name a folder that has a {_CONFIG}")
    config = _read_config(path / _CONFIG, "mend it or name another run")
    validate(config)
    return config


def _read_config(file: Path, remedy: str) -> Config:
    try:
        return ml_collections.ConfigDict(json.loads(file.read_text()))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not a run's configuration: {remedy}") from error


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation, extremes, half-width of the mean's 95 % t-interval.

    ``sd`` and ``ci95`` are None for a single value, which says nothing about them.
    """
    several = len(values) > 1
    sd = float(np.std(values, ddof=1)) if several else None
    ci95 = float(stats.t.ppf(0.975, len(values) - 1) * sd / len(values) ** 0.5) if sd else sd
    return {
        "mean": float(np.mean(values)),
        "sd": sd,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "ci95": ci95,
    }


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
