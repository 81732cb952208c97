"""A run read back from its workdir: configuration, one seed's state."""

import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

import jax

from jaxmnist.config import Config
from jaxmnist.errors import UserError
from jaxmnist.runs import assemble
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.cohort import Cohort
from jaxmnist.runs.workdir import CHECKPOINTS, Row, read_config
from jaxmnist.training.engine import TrainState, over_members


class SavedRun(NamedTuple):
    """What a checkpoint of a run holds, for one of its seeds."""

    config: Config
    seed: int
    epoch: int
    """Epochs that are finished."""
    place: str
    """Where it stands in words: after which epoch, or at which step of the next."""
    row: Row | None
    """The metrics of the last of them; None where nothing was trained, or within an epoch."""
    state: TrainState
    """Without that of the optimizer."""


def load(workdir: Path, checkpoint: str = "last", seed: int | None = None) -> SavedRun:
    """Reads a run back.

    Args:
      workdir: where it is.
      checkpoint: 'best' (by evaluation accuracy), 'last' or the number of an epoch.
      seed: one of the run's seeds; None for the first.

    Raises:
      UserError: where there is no such run, checkpoint or seed.
    """
    config = read_config(workdir)
    seed = int(config.seed if seed is None else seed)  # NumPy's integers too
    index = seed - config.seed
    if not 0 <= index < config.num_seeds:
        raise UserError(
            f"--seed is {seed}: {workdir} has the seeds {config.seed} to "
            f"{config.seed + config.num_seeds - 1}"
        )
    schedule = assemble.schedule(config, steps_per_epoch=1)  # a placeholder
    members = Cohort((config,), (schedule,)).members()
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{workdir} has no checkpoint: train it first")
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = _find(checkpoints, checkpoint, workdir)
        for line in checkpoints.damaged:
            print(f"note: {line}", file=sys.stderr)
        record = checkpoints.record(step)
        abstract_states = jax.eval_shape(over_members(assemble.engine(config).init), members)
        try:
            states = checkpoints.restore_networks(step, abstract_states)
        except UserError:
            if (folder / str(step)).exists():
                raise
            # The run goes on and has left it for a newer one.
            return load(workdir, checkpoint, seed)
    rows = {(row["seed"], row["epoch"]): row for row in record.rows if not record.partial}
    state = jax.tree.map(lambda leaf: leaf[index], states)
    place, row = f"epoch {record.epoch}", rows.get((seed, record.epoch))
    if record.partial:
        place = f"in epoch {record.epoch + 1}, after {record.partial.steps} steps of it"
    return SavedRun(config, seed, record.epoch, place, row, state)


def _find(checkpoints: Checkpoints, name: str, workdir: Path) -> int:
    """The step of the checkpoint called ``name``."""
    steps = checkpoints.steps()
    records = {step: checkpoints.record(step) for step in steps}
    named = {str(r.epoch): step for step, r in records.items() if not r.partial}
    there = ", ".join([*named, *checkpoints.damaged]) or "none"
    last = steps[-1] if steps else None
    # A run without accuracies, of imported weights, has no best checkpoint: the last will do.
    named |= {"last": last, "best": last if checkpoints.best() is None else checkpoints.best()}
    step = named.get(name)
    if step is None:
        raise UserError(
            f"--checkpoint is {name!r}: it must be best, last or an epoch that {workdir} keeps "
            f"({there})"
        )
    return step
