"""What the commands share: exit codes, recipes, and bad input told in one line."""

import contextlib
import io
import os
import re
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import platformdirs
from absl import app, flags, logging
from ml_collections import config_flags

from jaxmnist import config, recipes
from jaxmnist.errors import DivergenceError, Stopped, StorageError, UserError
from jaxmnist.runs import signals
from jaxmnist.training import hosts

_LONGEST_ARGUMENT = 3000  # Python cannot print integers of more than 4300 digits


def run(
    command: Callable[[], None],
    parse: Callable[[list[str]], None],
    usage: str,
    on_interrupt: str = "interrupted",
) -> None:
    """Parses the flags, runs ``command`` and ends the process.

    Exits with 0, 2 (input the user can correct), 130 (Ctrl-C), 143 (SIGTERM) or 1 (anything else).

    Args:
      command: runs after the flags are parsed.
      parse: parses and checks the flags; raises ``UserError`` for those that cannot be used.
      usage: what --help prints.
      on_interrupt: what to say after Ctrl-C.
    """
    sys.unraisablehook = _insist_on_ctrl_c
    signals.raise_on_ctrl_c()
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × and ─ shows ?

    def flags_parser(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(argv):
            print(usage, flush=True)
            sys.exit(0)
        logging.set_verbosity(logging.FATAL)  # libraries log at length what one line says better
        with _flag_errors():
            parse(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))  # --flagfile=…
        return argv

    def main(_: list[str]) -> None:
        _keep_compiled_programs()
        command()
        sys.stdout.flush()  # at its end Python would tell at length of a closed pipe or full disk

    try:
        with _ctrl_c_recognized():
            app.run(main, flags_parser=flags_parser)
    except UserError as error:
        sys.exit(_complain(error, 2))
    except DivergenceError as error:
        sys.exit(_complain(error, 1))
    except StorageError as error:
        hosts.leave(_complain(error, 1))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        if reason.startswith("RESOURCE_EXHAUSTED"):
            hosts.leave(
                _complain(
                    f"the device has too little memory ({reason}): train fewer networks at once "
                    "(config.num_seeds, in a sweep --parallel), or take a smaller "
                    "config.batch_size",
                    1,
                )
            )
        if jax.process_count() == 1:
            raise
        hosts.leave(
            _complain(
                f"another process of the run is gone ({reason}): start all of them again; the run "
                "goes on from its newest checkpoint",
                1,
            )
        )
    except Stopped as stopped:
        sys.exit(_complain(stopped, 128 + stopped.cause))
    except BrokenPipeError:  # the reader of stdout has left, as in `… | head`
        _give_up_stdout()
        hosts.leave(1)
    except OSError as error:
        _give_up_stdout()  # where it is the one that failed, a last flush would fail again
        hosts.leave(_complain(f"{error.filename or 'stdout'}: {error.strerror or error}", 1))
    except KeyboardInterrupt:
        hosts.leave(_complain(on_interrupt, 130))
    except Exception:  # whatever it is, the other processes of the run must not wait for this one
        traceback.print_exc()
        hosts.leave(1)


def _replace_closed_streams() -> None:
    """What is said into a closed stdout or stderr (``>&-``) is lost, as in /dev/null.

    Python makes it None; its number would be that of the next file that is opened.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
            if not os.path.exists(f"/dev/fd/{number}"):
                os.dup2(nowhere.fileno(), number)
            setattr(sys, name, nowhere)


def _give_up_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, so that a second start is quick.

    JAX's own settings go before: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = platformdirs.user_cache_path("jaxmnist")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # What cannot be read is compiled again, what cannot be written next time, too.
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache")


def parse_flags(argv: list[str], flag_values: flags.FlagValues, others: bool = False) -> list[str]:
    """Parses a command's flags; with ``others`` it takes other arguments too, and returns them.

    Each command has flag values of its own: absl's global ones would clash where two commands
    have a flag of the same name.

    Raises:
      UserError: for flags and values that cannot be used, and for arguments that it does not take.
    """
    flags.FLAGS(argv[:1])  # absl's own flags, which app.run reads
    for argument in argv:
        if len(argument) > _LONGEST_ARGUMENT:
            raise UserError(f"argument {argument[:40]!r}… is too long: see --help")
    with _flag_errors():
        rest = flag_values(argv)
    if len(rest) > 1 and not others:
        raise UserError(f"unexpected argument {rest[1]!r}: see --help")
    return rest[1:]


@contextlib.contextmanager
def _flag_errors() -> Iterator[None]:
    """Turns what absl says of flags into a ``UserError``."""
    try:
        yield
    except (flags.Error, OSError, ValueError) as error:
        raise UserError(f"{' '.join(str(error).split())}: see --help") from error


def listed(names: Iterable[str], indent: int) -> str:
    """Names as lines of a usage, the further ones indented."""
    return textwrap.fill(", ".join(names), 100 - indent).replace("\n", "\n" + " " * indent)


class Recipe:
    """The flag --config of a command, with a flag --config.FIELD for each field of the recipe."""

    value: config.Config | None = None
    """None where the command did not ask for a recipe."""
    name: str = ""
    """Of the recipe's file, without folder and suffix."""

    def __init__(self, flag_values: flags.FlagValues):
        """``flag_values``: the other flags of the command."""
        self._flag_values = flag_values

    def parse(self, argv: list[str]) -> None:
        """Parses the command's flags, --config among them.

        Raises:
          UserError: as ``parse_flags``; and where the recipe is missing, broken or lacks a field.
        """
        given, argv = _without_recipe(argv)
        for argument in argv[1:]:
            field = re.match(r"--?(?:no)?config\.([^=]*)", argument)
            if field and field[1] not in config.FIELDS:
                raise UserError(f"config.{field[1]} is unknown{config.did_you_mean(field[1])}")
        try:
            recipe = recipes.load(given)
        except UserError as error:
            raise UserError(f"--config: {error}") from error
        flag_values = self._flag_values
        with _flag_errors():  # of the fields' own types: a recipe may say 1 for 1.0, or nothing yet
            config_flags.DEFINE_config_dict(
                "config", config.default_config(), flag_values=flag_values, sys_argv=argv
            )
        parse_flags(argv, flag_values)
        overrides = config_flags.get_override_values(flag_values["config"])
        # A field may refer to another. Where one is missing, `normalized` says so.
        with contextlib.suppress(KeyError), recipe.unlocked(), recipe.ignore_type():
            recipe.update_from_flattened_dict(overrides)
        self.value, self.name = config.normalized(recipe), Path(given).stem


def _without_recipe(argv: list[str]) -> tuple[str, list[str]]:
    """The value of --config, and the other arguments."""
    for place, argument in enumerate(argv):
        if flag := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            given, rest = flag[1], argv[place + 1 :]
            if given is None:
                given, rest = "".join(rest[:1]), rest[1:]
            if any(re.match(r"--?config(=|$)", argument) for argument in rest):
                raise UserError("--config is given twice: name one recipe")
            return given, [*argv[:place], *rest]
    raise UserError(
        f"--config is missing: name a recipe's file or one of {', '.join(recipes.names())}"
    )


def _complain(message: object, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code


@contextlib.contextmanager
def _ctrl_c_recognized() -> Iterator[None]:
    """Raises KeyboardInterrupt where another exception was made of it.

    Python 3.11 does so in a class statement (``__set_name__``), and libraries do while they load.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise


def _insist_on_ctrl_c(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends a Ctrl-C again that came in a garbage collection, where Python drops it."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif str(unraisable.exc_value) != "Event loop is closed":  # Orbax, after a read that failed
        sys.__unraisablehook__(unraisable)
