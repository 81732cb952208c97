"""What the accuracies of several seeds come to."""

from collections.abc import Sequence

import numpy as np
from scipy import special  # scipy.stats would take half a second to import

from jaxmnist.runs.workdir import Row

Summary = dict[str, float | None]


def of_seeds(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Summary]:
    """Of the evaluation accuracies in ``rows``: those of the last epoch, and each seed's best."""
    curves = [[row["eval_accuracy"] for row in rows if row["seed"] == seed] for seed in seeds]
    return {
        "final_accuracy": summary([curve[-1] for curve in curves]),
        "best_accuracy": summary([max(curve) for curve in curves]),
    }


def summary(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation, extremes, half-width of the mean's 95 % t-interval.

    ``sd`` and ``ci95`` are None for a single value, which says nothing about them.
    """
    several = len(values) > 1
    sd = float(np.std(values, ddof=1)) if several else None
    ci95 = float(special.stdtrit(len(values) - 1, 0.975) * sd / len(values) ** 0.5) if sd else sd
    return {
        "mean": float(np.mean(values)),
        "sd": sd,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "ci95": ci95,
    }
