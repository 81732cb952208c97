"""Small runs on disk that several tests read."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from populations import members_of

from jaxmnist.config import Config, default_config, flatten
from jaxmnist.runs import assemble, train
from jaxmnist.runs.checkpoint import Checkpoints, Record
from jaxmnist.runs.workdir import Workdir
from jaxmnist.training.engine import TrainState, over_members


def tiny_config(**fields) -> Config:
    """Two seeds, 4 and 5, three epochs of two steps."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model": "compact_tiny",
            "dropout": 0.1,
            "num_epochs": 3,
            "steps_per_epoch": 2,
            "batch_size": 64,
            "seed": 4,
            "num_seeds": 2,
            "checkpoint.keep": 2,
        }
        | fields
    )
    return config


def tiny_run(factory: pytest.TempPathFactory) -> Path:
    """A finished run of ``tiny_config``, trained once a session and not to be changed."""
    workdir = factory.getbasetemp() / "tiny_run"
    if not workdir.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "_draw", lambda *_: None)  # the plots would take a third
            train.run(tiny_config(), workdir)
    return workdir


def make_run(workdir: Path, config: Config, accuracies: dict[int, float]) -> TrainState:
    """A run that was not trained: step 10·epoch, otherwise the state that is returned."""
    states = jax.jit(over_members(assemble.engine(config).init))(members_of(config))
    with (
        contextlib.closing(Workdir(workdir, config)) as files,
        contextlib.closing(Checkpoints(files.checkpoints, config.checkpoint.keep)) as checkpoints,
    ):
        for epoch, accuracy in accuracies.items():
            rows = [
                {"seed": seed, "epoch": epoch, "eval_accuracy": accuracy}
                for seed in range(config.seed, config.seed + config.num_seeds)
            ]
            record = Record(epoch, rows, None, flatten(config))
            step_S = jnp.full(config.num_seeds, 10 * epoch, jnp.int32)
            checkpoints.save(10 * epoch, states.replace(step=step_S), record)
    return states


def cut(checkpoint: Path) -> None:
    """Leaves ten bytes of each file of weights."""
    for path in checkpoint.glob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
