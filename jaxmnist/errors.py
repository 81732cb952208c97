"""The errors that the commands tell in one line, without a traceback."""

import signal

_LONGEST = 10_000


class OneLineError(Exception):
    """An error whose message is one line, whatever strange names it quotes."""

    def __init__(self, message: object):
        text = str(message)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}…"
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class UserError(OneLineError):
    """Bad usage, configuration or input; the command exits with 2.

    The message names the field or file, the value found and the remedy.
    """


class DivergenceError(OneLineError):
    """The loss became infinite or not a number; the command exits with 1."""


class StorageError(OneLineError):
    """A disk that fails or fills up during a run; the command exits with 1."""


class Stopped(OneLineError):  # noqa: N818 - no error: the user asked for it
    """A run stopped and saved itself because of a signal; the command exits with 128 + signal."""

    def __init__(self, cause: signal.Signals, message: str):
        super().__init__(message)
        self.cause = cause
