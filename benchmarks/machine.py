"""What a benchmark ran on."""

import os
from pathlib import Path

import jax


def hardware() -> str:
    """Processor or GPU, by the name it gives itself."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else "CPU"
    return f"{name}, {os.cpu_count()} cores"
