"""Optional dependencies; errors name the extra that installs a missing one."""

import importlib
from typing import Any

from lmjax.errors import ConfigError


def require(module: str, extra: str, purpose: str) -> Any:
    """Imports an optional dependency.

    Args:
      module: import path, such as 'sklearn.feature_extraction.text'.
      extra: the extra of lmjax that installs it.
      purpose: beginning of the error message: the field or flag that needs the package, and why.

    Returns:
      The module.

    Raises:
      ConfigError: the dependency is not installed or cannot be imported.
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
    """Whether an optional dependency can be imported; imports it."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
