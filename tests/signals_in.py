"""Signals that come at a certain place of the training."""

import contextlib
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from jaxmnist.training.programs import Programs


@contextlib.contextmanager
def signal_in_segment(number: int, sent: signal.Signals) -> Iterator[None]:
    """The signal comes while the run trains its segment of this number, counted from 1."""
    calls, train_segment = itertools.count(1), Programs.train

    def train_and_hear(self: Programs, *args: Any):
        if next(calls) == number:
            signal.raise_signal(sent)
        return train_segment(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "train", train_and_hear)
        yield
