"""Checkpoints of a run, kept by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxmnist.engine import TrainState
from jaxmnist.errors import UserError


class Checkpoints:
    """The newest ``keep`` checkpoints of a run and the best one, a folder an epoch, in ``folder``.

    The best one is that with the highest evaluation accuracy, on average over the seeds.
    """

    def __init__(self, folder: Path, keep: int = 1):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is no folder: --restart to move the run aside")
        policies = (
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(get_metric_fn=_accuracy, n=1),
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=_accuracy,
            enable_async_checkpointing=False,
        )
        self._folder = folder.absolute()
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except Exception as error:  # Orbax fails with whatever lies below
            newest = max(
                (int(p.name) for p in folder.glob("*") if p.name.isdecimal()), default="none"
            )
            raise UserError(
                f"a checkpoint in {self._folder} cannot be read ({type(error).__name__}; newest: "
                f"{newest}): move the damaged one away to go on from another, or --restart to "
                "begin anew"
            ) from error

    def save(self, epoch: int, states: TrainState, eval_accuracy: float) -> None:
        """Writes the states after ``epoch`` epochs; what is on disk is complete or absent."""
        self._manager.save(
            epoch,
            args=ocp.args.StandardSave(states),
            metrics={"eval_accuracy": eval_accuracy},
        )

    def latest_epoch(self) -> int | None:
        """Epochs done at the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def best_epoch(self) -> int | None:
        """Epochs done at the best checkpoint; None where there is none."""
        return self._manager.best_step()

    def epochs(self) -> list[int]:
        """Epochs done at each of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, epoch: int, abstract_states: TrainState) -> TrainState:
        """The states after ``epoch`` epochs, shaped and placed as ``abstract_states``.

        Those that name no sharding come to the first device, whatever devices wrote them.
        """
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or first),
            abstract_states,
        )
        try:
            restored: Any = self._manager.restore(epoch, args=ocp.args.StandardRestore(target))
        except Exception as error:  # Orbax fails with whatever lies below
            raise UserError(
                f"{self._folder / str(epoch)} cannot be read ({type(error).__name__}): move it "
                "away to go on from the one before, or --restart to begin anew"
            ) from error
        return restored

    def close(self) -> None:
        self._manager.close()


def _accuracy(metrics: Any) -> float:
    return metrics["eval_accuracy"]
