"""Checkpoints of a run, kept by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxmnist.engine import TrainState
from jaxmnist.errors import UserError


class Checkpoints:
    """The newest ``keep`` checkpoints of a run, one folder an epoch, in ``folder``."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        self._folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is no folder: --restart to move the run aside")
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, epoch: int, states: TrainState) -> None:
        """Writes the states after ``epoch`` epochs; what is on disk is complete or absent."""
        self._manager.save(epoch, args=ocp.args.StandardSave(states))

    def latest_epoch(self) -> int:
        """Epochs done at the newest checkpoint; 0 where there is none."""
        return self._manager.latest_step() or 0

    def restore(self, epoch: int, abstract_states: TrainState) -> TrainState:
        """The states after ``epoch`` epochs, shaped as ``abstract_states``."""
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract_states
        )
        try:
            restored: Any = self._manager.restore(epoch, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax fails with whatever lies below
            raise UserError(
                f"{self._folder / str(epoch)} cannot be read: delete it to go on from "
                "the one before, or --restart to begin anew"
            ) from error
        return restored

    def close(self) -> None:
        self._manager.close()
