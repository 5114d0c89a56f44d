"""The errors that inputs can cause."""

from typing import Any

import numpy as np


class ConfigError(ValueError):
    """A setting that cannot work.

    The message is one line that names the field and the remedy; programs print it
    without a traceback and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        """Takes the message; line breaks in what it quotes are written as escapes."""
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))


class NonFiniteError(ArithmeticError):
    """A model computed NaN or infinity where a score is needed.

    Programs print the message without a traceback and exit with code 3.
    """


def require_finite(values: Any, what: str) -> None:
    """Refuses to go on with NaN or infinity.

    Args:
      values: array of floats, or what NumPy makes one of.
      what: names the values in the message.

    Raises:
      NonFiniteError: some of `values` are not finite.
    """
    array = np.asarray(values, np.float64)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise NonFiniteError(
            f"{what}: {bad} of {array.size} numbers are not finite; the model is damaged, or it"
            " overflows on this input"
        )


def first_line(error: BaseException) -> str:
    """What an error says, as far as its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
