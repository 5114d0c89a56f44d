"""The errors a user can cause."""


class ConfigError(ValueError):
    """A setting that cannot work.

    The message is one line that names the field and the remedy; programs print it
    without a traceback and exit with code 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, as far as its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
