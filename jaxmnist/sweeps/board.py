"""What a sweep says: on a terminal a live table of the best trials, otherwise a line a trial."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxmnist.runs import report

_SHOWN = 10
Result = Mapping[str, Any]


def went_through(record: Result, num_epochs: int) -> bool:
    """Whether a trial was trained to its end; ``num_epochs`` are those of the recipe."""
    return record["epochs"] == record["settings"].get("num_epochs", num_epochs)


def best_first(records: Iterable[dict[str, Any]], num_epochs: int) -> list[dict[str, Any]]:
    """Those that were not stopped come first, or went further, or are right more often."""

    def merit(record: Result) -> tuple[bool, float, float, int]:
        whole = went_through(record, num_epochs)
        further = 0 if whole else -record["epochs"]
        return not whole, further, -record["final_accuracy"]["mean"], record["trial"]

    return sorted(records, key=merit)


def accuracy_text(record: Result) -> str:
    """'99.31 ± 0.04 %', without the spread where there is one seed."""
    found = record["final_accuracy"]
    spread = "" if found["sd"] is None else f" ± {found['sd']:.2f}"
    return f"{found['mean']:.2f}{spread} %"


def settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={_shown(value)}" for field, value in settings.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Board:
    """Hears of a sweep's progress; see ``fit.Progress``."""

    def __init__(
        self, fields: Sequence[str], num_epochs: int, trials: int, records: Sequence[dict[str, Any]]
    ):
        """``records``: what there is already."""
        self._fields, self._num_epochs, self._trials = fields, num_epochs, trials
        self._records = records
        self._line, self._images, self._since = "", 0, time.monotonic()
        console = Console(file=sys.stdout)
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=4,
            transient=True,
            redirect_stderr=False,
        )
        self._terminal = console.is_terminal

    def __enter__(self) -> "Board":
        if self._terminal:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._terminal:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            report.say(text)

    def begin(self, what: str) -> None:
        """What is in work from now on."""
        self._line, self._images, self._since = what, 0, time.monotonic()
        self._place = ""

    def update(self, epoch: int, step: int, images: int, loss: float, accuracy: float) -> None:
        self._images += images
        rate = self._images / (time.monotonic() - self._since)
        self._place = (
            f": epoch {epoch}, step {step}, loss {loss:.4f}, "
            f"accuracy {accuracy:.2f} %, {rate:,.0f} images/s"
        )

    def finished(self, record: Result, records: Sequence[dict[str, Any]]) -> None:
        """A trial has come to its end; ``records`` are all there are."""
        self._records = records
        whole = went_through(record, self._num_epochs)
        how = "" if whole else f" after {record['epochs']} epochs"
        self.say(
            f"trial {record['trial']}: {accuracy_text(record)}{how}, {record['params']:,} "
            f"parameters, {settings_text(record['settings'])} ({len(records)} of {self._trials})"
        )

    def table(self, records: Sequence[dict[str, Any]]) -> Table:
        """The best trials."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        leaves = [field.rpartition(".")[2] for field in self._fields]
        names = leaves if len(set(leaves)) == len(leaves) else self._fields
        for name in ("trial", "accuracy", "epochs", "params", *names):
            table.add_column(name, justify="right", overflow="fold")
        for record in best_first(records, self._num_epochs)[:_SHOWN]:
            cells = str(record["trial"]), accuracy_text(record), str(record["epochs"])
            values = (_shown(record["settings"][field]) for field in self._fields)
            table.add_row(*cells, f"{record['params']:,}", *values)
        return table

    def _render(self) -> Group:
        lines = [Text(f"{self._line}{self._place}", overflow="ellipsis", no_wrap=True)]
        if self._records:
            return Group(self.table(self._records), *lines)
        return Group(*lines)

    _place = ""

    def summary(self, records: Sequence[dict[str, Any]]) -> None:
        """The end: the best trials, to stay."""
        width = None if self._terminal else 160
        Console(file=sys.stdout, width=width).print(self.table(records))
