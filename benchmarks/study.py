"""What the recipes reach: many seeds of each, a line a run in results/study.jsonl.

    python benchmarks/study.py [--recipes model3 compact …] [--seeds 20]
    python benchmarks/study.py --peer torch --recipes model3 --seeds 44
    python benchmarks/study.py --report

Trains what the file lacks: seeds 0 to N-1 of each recipe, as jaxmnist.main does, some at a time in
one program; with --peer torch the same recipe in PyTorch, a seed in a process of one thread on each
core. It goes on after any interruption; in PyTorch with the seeds that had not ended. Let nothing
else run beside it where the lines' images/s count.

--report prints the table of the README and draws figures/study.png, out of the file alone. Lines of
another version of the package, or of a recipe that set other fields, are kept there and not mixed
in: the newest version and today's recipe count.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import study_report
from machine import hardware

import jaxmnist
from jaxmnist import published, recipes
from jaxmnist.errors import UserError
from jaxmnist.networks import target
from jaxmnist.runs import train
from jaxmnist.training import parallel

RESULTS = Path(__file__).parent / "results" / "study.jsonl"
Line = dict[str, Any]


def line(
    recipe: str, fields: Line, seed: int, params: int, accuracies: Sequence[float], rate: float
) -> Line:
    """One run; of several best epochs the first counts.

    Args:
      fields: what the recipe set when the run began, see ``study_report.fields``.
      accuracies: percent, after each epoch.
      rate: images/s of training, median of the epochs, of all seeds that shared the program.
    """
    best = max(accuracies)
    return {
        "recipe": recipe,
        "seed": seed,
        "params": params,
        "epochs": len(accuracies),
        "final_accuracy": accuracies[-1],
        "best_accuracy": best,
        "best_epoch": accuracies.index(best) + 1,
        "accuracies": list(accuracies),
        "images_per_second": rate,
        "device": hardware(),
        "jax_version": jax.__version__,
        "version": jaxmnist.__version__,
        "fields": fields,
    }


def lines_of(recipe: str, fields: Line, workdir: Path) -> list[Line]:
    """A line a seed of a finished run."""
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    params = json.loads((workdir / "summary.json").read_text())["params"]
    lines = []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        accuracies = [row["eval_accuracy"] for row in own]
        rate = statistics.median(row["images_per_second"] for row in own)
        lines.append(line(recipe, fields, seed, params, accuracies, rate) | {"peer": "jaxmnist"})
    return lines


def add(new: Line, results: Path) -> None:
    """At once, so that nothing is lost."""
    with results.open("a") as file:
        file.write(json.dumps(new) + "\n")
        file.flush()
        os.fsync(file.fileno())


def alone(results: Path) -> filelock.BaseFileLock:
    """Keeps a second process from training what this one is going to add; until it is released.

    Raises:
      UserError: where one is at it.
    """
    lock = filelock.FileLock(results.with_suffix(".lock"), blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{results.name} is being added to by another process") from error
    return lock


def missing(recipe: str, seeds: int, peer: str, results: Path) -> list[int]:
    runs = study_report.runs(study_report.read(results), recipe, peer)
    done = {run["seed"] for run in runs if run["version"] == jaxmnist.__version__}
    return [seed for seed in range(seeds) if seed not in done]


def blocks(seeds: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """First seed and number of seeds that follow each other, at most ``size``."""
    rest = list(seeds)
    while rest:
        count = 1
        while count < min(size, len(rest)) and rest[count] == rest[0] + count:
            count += 1
        yield rest[0], count
        rest = rest[count:]


def study_jaxmnist(names: Sequence[str], seeds: int, workdir: Path) -> None:
    parallel.use_every_core()
    # One more seed of each device than fits at once would wait for all the others.
    together = target.current().members * max(2, jax.device_count())
    for recipe in names:
        config = recipes.load(recipe)
        fields = study_report.fields(recipe)
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
        for first, count in blocks(missing(recipe, seeds, "jaxmnist", RESULTS), together):
            config.seed, config.num_seeds = first, count
            folder = workdir / jaxmnist.__version__ / f"{recipe}-{digest}-{first}-{count}"
            train.run(config.copy_and_resolve_references(), folder)
            for new in lines_of(recipe, fields, folder):
                add(new, RESULTS)


def study_torch(names: Sequence[str], seeds: int) -> None:
    known = list(published.load_all())
    if others := [name for name in names if name not in known]:
        raise UserError(
            f"--recipes {' '.join(others)}: PyTorch has only the published ones, {', '.join(known)}"
        )
    import study_torch as peer
    import torch

    fields = {recipe: study_report.fields(recipe) for recipe in names}
    tasks = [
        (recipe, seed) for recipe in names for seed in missing(recipe, seeds, "torch", RESULTS)
    ]
    with multiprocessing.get_context("spawn").Pool(parallel.cores(), maxtasksperchild=1) as pool:
        for run in pool.imap_unordered(peer.run, tasks):
            recipe, seed, params, accuracies, rate = run
            done = line(recipe, fields[recipe], seed, params, accuracies, rate)
            add(done | {"peer": "torch", "torch_version": torch.__version__}, RESULTS)
            print(f"{recipe}, seed {seed}: {accuracies[-1]:.2f} %", flush=True)


def at_least_one(text: str) -> int:
    """For argparse: how many, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs: give 1 or more")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Many seeds of each recipe.")
    every = list(published.load_all())
    parser.add_argument("--recipes", nargs="+", choices=recipes.names(), default=every)
    parser.add_argument("--seeds", type=at_least_one, default=20)
    parser.add_argument("--peer", choices=["jaxmnist", "torch"], default="jaxmnist")
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        study_report.report(RESULTS)
        return
    names = list(dict.fromkeys(arguments.recipes))
    lock = alone(RESULTS)
    if arguments.peer == "torch":
        study_torch(names, arguments.seeds)
    else:
        study_jaxmnist(names, arguments.seeds, arguments.workdir)
    lock.release()
    for recipe in names:
        there = study_report.runs(study_report.read(RESULTS), recipe, arguments.peer)
        print(f"{recipe}: {len(there)} seeds are in {RESULTS.name}")


if __name__ == "__main__":
    study_report.tell_in_one_line(main)
