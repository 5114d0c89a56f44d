"""Errors caused by invalid inputs."""

from typing import Any

import numpy as np


class ConfigError(ValueError):
    """An invalid setting.

    The message is one line that names the field and the remedy. Programs print it without a
    traceback and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        """Escapes line breaks in the message, which may quote input."""
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))


class NonFiniteError(ArithmeticError):
    """A model computed NaN or infinity instead of a score.

    Programs print the message without a traceback and exit with code 3.
    """


def require_finite(values: Any, what: str) -> None:
    """Checks that all values are finite.

    Args:
      values: array-like of floats.
      what: name of the values, for the error message.

    Raises:
      NonFiniteError: some of `values` are NaN or infinite.
    """
    array = np.asarray(values, np.float64)
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise NonFiniteError(
            f"{what}: {bad} of {array.size} numbers are not finite; the model is damaged, or it"
            " overflows on this input"
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
