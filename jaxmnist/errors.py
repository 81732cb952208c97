"""The errors that the commands tell in one line, without a traceback."""


class UserError(Exception):
    """Bad usage, configuration or input; the command exits with 2.

    The message is one line that names the field or file, the value found and the remedy.
    """


class DivergenceError(Exception):
    """The loss became infinite or not a number; the command exits with 1."""
