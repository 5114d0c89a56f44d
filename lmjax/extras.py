"""Optional dependencies: a missing one is reported with the extra that installs it."""

import importlib
from typing import Any

from lmjax.errors import ConfigError


def require(module: str, extra: str, purpose: str) -> Any:
    """Imports an optional dependency.

    Args:
      module: its import path, such as 'sklearn.feature_extraction.text'.
      extra: the extra of lmjax that installs it.
      purpose: begins the message: the field or flag that needs the package, and what for.

    Returns:
      The module.

    Raises:
      ConfigError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise ConfigError(
            f"{purpose} needs {package}, which cannot be imported{reason};"
            f" pip install 'lmjax[{extra}]'"
        ) from error


def installed(module: str) -> bool:
    """Whether an optional dependency can be imported. Imports it."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
