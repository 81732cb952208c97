"""What TensorBoard shows of a run: the rows of metrics.jsonl and the figures, as event files.

tensorboardX lends the messages and their checksums, not its writers: they hand events to a thread,
where a full disk goes unnoticed.
"""

import importlib
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmnist.errors import UserError
from jaxmnist.runs.workdir import Row, storage_errors
from jaxmnist.training import hosts

_TAGS = {  # TensorBoard groups by what is before the slash
    "train_loss": "loss/train",
    "eval_loss": "loss/eval",
    "train_accuracy": "accuracy/train",
    "eval_accuracy": "accuracy/eval",
    "learning_rate": "learning_rate",
    "momentum": "momentum",
    "images_per_second": "images_per_second",
}
_FIGURES = ("learning_curves", "schedule", "confusion_matrix", "misclassified")
_NAME = "events.out.tfevents."  # TensorBoard reads no other files
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


class EventFiles:
    """``tensorboard/`` in a run's folder: an event file a seed, each in a folder of its own.

    What a method writes can be read when it returns. Where several processes make up the run, only
    the first of them writes.
    """

    def __init__(self, workdir: Path, seeds: Sequence[int], *, wanted: bool = True):
        """Writes nothing yet.

        Args:
          workdir: the run's folder.
          seeds: those of the run; the figures go to the first.
          wanted: otherwise nothing is ever written.

        Raises:
          UserError: where tensorboardX is missing.
        """
        self._wanted = wanted
        self._workdir = Path(os.path.abspath(workdir))  # as Workdir has it
        # A TensorBoard that is open goes on from a file to that of the next greater name alone.
        name = f"{_NAME}{time.time_ns()}"
        self._files = {
            seed: self._workdir / "tensorboard" / f"seed_{seed}" / name for seed in seeds
        }
        self._clocks: dict[int, float] = {}
        """By seed, the time of its last point."""
        self._step = 0
        hosts.on_first(self._require)

    def _require(self) -> None:
        if not self._wanted:
            return
        try:
            importlib.import_module("tensorboardX")
        except ImportError as error:
            raise UserError(
                "--tensorboard is given and tensorboardX is missing: "
                "pip install 'jaxmnist[tensorboard]'"
            ) from error

    def write(self, rows: Sequence[Row]) -> None:
        """Makes the files hold ``rows`` alone: other points, and figures, are removed.

        Raises:
          StorageError: when the disk fails or is full.
        """
        if not self._writes():
            return
        # The points lie apart by what their epochs took, whenever they are written.
        begun = time.time() - sum(row["seconds"] for row in rows) / len(self._files)
        self._clocks = dict.fromkeys(self._files, begun)
        # To a TensorBoard that is open START says that what it has seen is void.
        start = _event(begun, 0, file_version="brain.Event:2")
        start += _event(begun, 0, session_log={"status": "START"})
        points = self._points(rows)
        for seed, file in self._files.items():
            with storage_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_name("partial")  # not to be read by TensorBoard
                partial.write_bytes(start + points.get(seed, b""))
                os.replace(partial, file)
                _void(file)

    def append(self, rows: Sequence[Row]) -> None:
        """Adds a point a row to each curve.

        Raises:
          StorageError: when the disk fails or is full.
        """
        if not self._writes():
            return
        for seed, points in self._points(rows).items():
            _append(self._files[seed], points)

    def add_figures(self) -> None:
        """Adds the PNGs that the run has left, at the step of the last row.

        Raises:
          StorageError: when the disk fails or is full.
        """
        if not self._writes():
            return
        seed, file = next(iter(self._files.items()))
        images = [image for name in _FIGURES if (image := self._figure(name))]
        _append(file, _event(self._clocks[seed], self._step, summary={"value": images}))

    def _writes(self) -> bool:
        return self._wanted and hosts.is_first()

    def _points(self, rows: Sequence[Row]) -> dict[int, bytes]:
        """By seed, what its rows become."""
        points: dict[int, bytes] = {}
        for row in rows:
            seed, self._step = row["seed"], row["step"]
            self._clocks[seed] += row["seconds"]
            # Where JSON has null, it was not finite.
            values = [
                {"tag": tag, "simple_value": float("nan") if row[name] is None else row[name]}
                for name, tag in _TAGS.items()
            ]
            event = _event(self._clocks[seed], self._step, summary={"value": values})
            points[seed] = points.get(seed, b"") + event
        return points

    def _figure(self, name: str) -> dict[str, Any] | None:
        """One of the run's PNGs; None where it is gone or something else."""
        path = self._workdir / f"{name}.png"
        with storage_errors(path):
            png = path.read_bytes() if path.exists() else b""
        start, width, height = struct.unpack(">16sII", png[:24].ljust(24, b"\0"))
        if start != _PNG:
            return None
        image = {"width": width, "height": height, "colorspace": 4, "encoded_image_string": png}
        return {"tag": f"figures/{name}", "image": image}


def _void(newest: Path) -> None:
    """Empties the files of the start before and removes those of earlier ones.

    A TensorBoard that is open cannot go on from a file that is gone.
    """
    for old in newest.parent.glob(f"{_NAME}*"):
        if old != newest:
            if old.stat().st_size:
                old.write_bytes(b"")
            else:
                old.unlink()


def _append(file: Path, events: bytes) -> None:
    with storage_errors(file), file.open("ab") as stream:
        stream.write(events)


def _event(wall_time: float, step: int, **content: Any) -> bytes:
    """An event as its file has it, between the checksums of a TFRecord."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    messages: Any = event_pb2  # its classes are made while it is imported
    data = messages.Event(wall_time=wall_time, step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]
