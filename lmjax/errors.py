"""The errors a user can cause."""


class ConfigError(ValueError):
    """A setting that cannot work.

    The message is one line that names the field and the remedy; programs print it
    without a traceback and exit with code 2.
    """
