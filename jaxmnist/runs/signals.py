"""Ctrl-C and SIGTERM: at once while the libraries load, then as a request, heard in between."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

_ASKING = (signal.SIGINT, signal.SIGTERM)


def die_of_ctrl_c() -> None:
    """Lets Ctrl-C end the process at once and without a word, until ``raise_on_ctrl_c``.

    For the imports, which take seconds: a KeyboardInterrupt in them ends in a traceback, or is
    dropped where a garbage collection runs. Where Ctrl-C is ignored, it stays so, as in what a
    script starts with &.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_ctrl_c() -> None:
    """Makes Ctrl-C a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopRequest:
    """Within its ``with`` block the first Ctrl-C or SIGTERM is only noted, in ``cause``.

    The second one does what it always does. What is ignored stays so. Outside the main thread,
    which alone hears signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.cause: signal.Signals | None = None
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self._restore()
        self.cause = signal.Signals(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None is a handler that Python did not install and cannot put back: that of JAX.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in _ASKING if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._restore()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Holds the first Ctrl-C or SIGTERM back until the end of its ``with`` block."""
    with StopRequest() as stop:
        yield
    if stop.cause:
        signal.raise_signal(stop.cause)
