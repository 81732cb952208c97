"""Several processes, on one host or many, as one run, on ``jax.distributed``.

Each process drives its own devices and runs the same program; the devices of all make up the mesh.
The first process alone writes files and speaks; all must see the same workdir.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxmnist.errors import UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30  # a process that is silent for so long is given up
_MESSAGE_BYTES = 2000


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others of its run, before anything asks JAX for its devices.

    Args:
      coordinator: HOST:PORT of the first process; 'auto' to ask the cluster (SLURM, Open MPI, a TPU
        pod, Kubernetes), which also knows the rest.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      UserError: where they do not find each other.
    """
    auto = coordinator == "auto"
    try:
        jax.distributed.initialize(
            coordinator_address=None if auto else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "name --coordinator, --num_processes and --process_id" if auto else "see --help"
        raise UserError(f"--coordinator {coordinator}: {reason}: {remedy}") from error


def leave(exit_code: int) -> NoReturn:
    """Ends this process after a failure that the others of its run do not share."""
    if not jax.distributed.is_initialized():
        sys.exit(exit_code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # a proper exit would wait for the others, who wait for this one


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def on_first(action: Callable[[], T]) -> T | None:
    """Runs ``action`` in the first process; the others wait, and raise its ``UserError`` too.

    Returns:
      What ``action`` returned; in the other processes None.
    """
    return on_each(lambda: action() if is_first() else None)


def on_each(action: Callable[[], T]) -> T:
    """Runs ``action`` in every process; where it fails in one, all raise its ``UserError``.

    One that ended by itself would wait for the others, and they for it.
    """
    if jax.process_count() == 1:
        return action()
    result, message = None, ""
    try:
        result = action()
    except UserError as error:
        message = str(error)
    padded = message.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    messages = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    for row in np.asarray(messages, np.uint8):
        if text := row.tobytes().rstrip(b"\0").decode("utf-8", "replace"):
            raise UserError(text)
    return cast(T, result)


def largest(value: int) -> int:
    """The largest ``value`` of all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def of_first(text: str) -> str:
    """The first process's ``text``, in all of them."""
    if jax.process_count() == 1:
        return text
    content = text.encode()
    padded = content.ljust(largest(len(content)), b"\0")
    first = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
    return np.asarray(first, np.uint8).tobytes().rstrip(b"\0").decode()


def fetch(tree: Any) -> Any:
    """The arrays of ``tree``, wherever their parts lie, whole and in host memory."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has, on the devices of all."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
