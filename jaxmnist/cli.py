"""What the commands share: exit codes, and bad input told in one line instead of a traceback."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable

from absl import app, flags, logging

from jaxmnist.errors import DivergenceError, UserError


def run(command: Callable[[], None], parse: Callable[[list[str]], None], usage: str) -> None:
    """Parses the flags, runs ``command`` and ends the process.

    Exits with 0, 2 (input the user can mend), 130 (Ctrl-C) or 1 (anything else).

    Args:
      command: runs after the flags are parsed.
      parse: parses and checks the flags; raises ``UserError`` for those that cannot be used.
      usage: what --help prints.
    """
    sys.unraisablehook = _insist_on_ctrl_c
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × and ─ shows ?

    def flags_parser(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv):
            print(usage)
            sys.exit(0)
        logging.set_verbosity(logging.FATAL)  # libraries log at length what one line says better
        parse(argv)
        return argv

    try:
        app.run(lambda _: command(), flags_parser=flags_parser)
    except UserError as error:
        sys.exit(_complain(error, 2))
    except DivergenceError as error:
        sys.exit(_complain(error, 1))
    except BrokenPipeError:  # the reader of stdout has left, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted; the same command goes on from the newest checkpoint", 130))


def parse_flags(argv: list[str]) -> None:
    """Parses absl's flags.

    Raises:
      UserError: for flags and values that cannot be used, and for other arguments.
    """
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, OSError) as error:
        raise UserError(f"{' '.join(str(error).split())}: see --help") from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: see --help")


def _complain(message: object, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code


def _insist_on_ctrl_c(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends a Ctrl-C again that came in a garbage collection, where Python drops it."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
