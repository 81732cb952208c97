"""What several tests ask about the workdir of a run, also while another process is busy with it."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxmnist.training import parallel

PATIENCE = 120  # seconds, on a machine that is busy
AT_ONCE = min(parallel.cores(), 4)  # commands, each of which takes up to a gigabyte


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl."""
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines(True) if line.endswith("\n")]


def files_below(folder: Path) -> dict[str, bytes]:
    """What each file holds; of folders nothing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def files_and_times(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Also when each was changed, in nanoseconds."""
    contents = files_below(folder)
    return {name: ((folder / name).stat().st_mtime_ns, contents[name]) for name in contents}


def without_timing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must be the same, bit for bit, after an interruption."""
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


def one_image(size: int) -> float:
    """The share, in percent, of one of ``size`` images.

    By that much accuracies may differ between programs that round differently: where two classes
    are as good as equal, either may come out first.
    """
    return 100 / size + 1e-9


def but_for_rounding(row: dict[str, Any], rel: float) -> dict[str, Any]:
    """A row of a run on ``idx_folder``, as programs that round differently may have it."""
    shares = {"train_accuracy": one_image(640), "eval_accuracy": one_image(200)}
    return {
        name: pytest.approx(value, rel=rel, abs=shares.get(name)) for name, value in row.items()
    }


def wait_for(process: subprocess.Popen, happened: Callable[[], bool], pause: float = 0.05) -> None:
    """Waits until it has happened, looking every ``pause`` seconds; the process must not end."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < end, "the command takes too long"
        time.sleep(pause)
