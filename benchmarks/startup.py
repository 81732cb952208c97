"""Seconds from the import of the package to the first training step, and the memory of a run.

    python benchmarks/startup.py [--recipes model3 …] [--repeats 3]

Each run is `python -m jaxmnist.main` for an epoch in a process of its own: cold with an empty
compilation cache, warm with the one that the cold run left.

Result, 2026-11-27, two cores of an AMD EPYC (Zen 5), jax 0.10.2, 3 repeats: model3 5.9 s cold, of
which 4.6 s compilation, 2.3 s warm, 1.12 GB; lightweight 6.7 s, of which 5.4 s, 2.4 s, 1.22 GB; the
others 3.9 to 5.7 s cold, 1.9 to 2.3 s warm, 0.84 to 1.19 GB.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import peers

from jaxmnist import published


def run_once(recipe: str, cache: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds to the first step, seconds of compilation in it, peak memory in GB.

    Python itself starts before, in some hundredths of a second.
    """
    command = [
        *(sys.executable, "-m", "jaxmnist.main", "--config", recipe),
        *("--workdir", str(folder / "run"), "--restart"),
        "--config.num_epochs=1",  # whole, or the program of its last batch would be missing
    ]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"ready to train ([\d.]+) s .* took ([\d.]+) s", output)
    if process.returncode or not found:
        sys.exit(f"{' '.join(command)} failed:\n{output}")
    return float(found[1]), float(found[2]), usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to the first step and peak memory.")
    recipes = list(published.load_all())
    parser.add_argument("--recipes", nargs="+", default=recipes, choices=recipes, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{peers.hardware()}, jax {jax.__version__}; median of {arguments.repeats} (largest)\n")
    print(
        "| recipe | cold, s | of it compilation | warm, s | of it compilation | peak memory, GB |"
    )
    print(f"| --- {'| --: ' * 5}|")
    for recipe in arguments.recipes:
        cold, warm = [], []
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for runs in (cold, warm):
                    runs.append(run_once(recipe, Path(folder, "cache"), Path(folder)))
        cells = [
            f"{statistics.median(values):.1f} ({max(values):.1f})"
            for runs in (cold, warm)
            for values in list(zip(*runs, strict=True))[:2]
        ]
        memory = max(run[2] for run in cold + warm)
        print(f"| {recipe} | {' | '.join(cells)} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
