"""The errors a user can cause."""


class ConfigError(ValueError):
    """A setting that cannot work.

    The message is one line that names the field and the remedy; programs print it
    without a traceback and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        """Takes the message; line breaks in what it quotes are written as escapes."""
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))
