"""Which of the workers that share a study still live: each leaves a sign there now and then."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds: a worker that is silent for so long, on another host, is given up


def sign() -> dict[str, Any]:
    """That this process lives, now; fit for JSON."""
    return {"host": _host(), "pid": os.getpid(), "time": time.time()}


class Watch:
    """Compares signs with those it saw before; clocks of different hosts need not agree."""

    def __init__(self):
        self._seen: dict[str, tuple[Any, float]] = {}

    def is_dead(self, worker: str, latest: Any) -> bool:
        """Whether a worker's process on this host is gone, or it is silent for too long.

        Args:
          worker: who.
          latest: its latest ``sign``; None where it has left none.
        """
        if worker not in self._seen or self._seen[worker][0] != latest:
            self._seen[worker] = latest, time.monotonic()
        return _is_gone(latest) or time.monotonic() - self._seen[worker][1] > PATIENCE


def _host() -> str:
    """Where process numbers mean the same: one start of a host, whose name others may bear too."""
    start = namespace = ""
    with contextlib.suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {start} {namespace}"


def _is_gone(latest: Any) -> bool:
    """Whether a worker ran on this host and its process is gone."""
    if not isinstance(latest, Mapping) or latest.get("host") != _host():
        return False
    try:
        os.kill(latest["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
