"""Settings and fixtures that several test files share."""

import os
import signal
import tempfile
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxmnist import data

# What tests read through a pipe is compared without the colours that these ask rich for.
for _name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)

# Many tests run the same programs: compile each once a session, in subprocesses and in the other
# workers of pytest-xdist as well.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="jaxmnist-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# What a shell starts in the background ignores Ctrl-C, and so would all that tests press it for.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Four devices on whatever machine, for what is split over several; `parallel.use_every_core` gives
# the command line as many as there are cores. Accelerators stay what they are.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)

# Broadcasting between ranks hides mistakes in batch-minor code: it must be written out.
jax.config.update("jax_numpy_rank_promotion", "raise")

# XLA compiles in half the time what then runs more slowly: what tests run, they run for moments.
QUICK_COMPILATION = "--xla_backend_optimization_level=1"
if jax.__version_info__ < (0, 11):  # later ones do not know the flag, and end the process
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """The long tests run the programs as users get them; workers inherit the environment."""
    if "not long" in config.option.markexpr and "PYTEST_XDIST_WORKER" not in os.environ:
        # XLA obeys the last of several equal flags: those of the user.
        os.environ["XLA_FLAGS"] = f"{QUICK_COMPILATION} {os.environ.get('XLA_FLAGS', '')}".rstrip()


@pytest.fixture
def saved_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test has drawn and saved so far."""
    saved, save = [], Figure.savefig

    def record(figure: Figure, *args: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return saved


@pytest.fixture(scope="session")
def mnist() -> tuple[data.Dataset, data.Dataset]:
    """The real training and test set."""
    return data.load("mnist", "train/test")


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory, mnist):
    """A folder of plain IDX files with 640 real training and 200 test images; not to be changed."""
    folder = tmp_path_factory.mktemp("idx")
    for (prefix, size), part in zip((("train", 640), ("t10k", 200)), mnist, strict=True):
        header = np.array([0x803, size, 28, 28], ">u4").tobytes()
        images = header + part.images_NHW[:size].tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        labels = np.array([0x801, size], ">u4").tobytes() + part.labels_N[:size].tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return folder
