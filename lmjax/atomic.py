"""Files that are written atomically: readers see the old content or the new, never a part."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a UTF-8 file beside its place and moves it there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may write it
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(
    path: pathlib.Path, values: Any, default: Callable[[Any], Any] | None = None
) -> None:
    """Writes a JSON file.

    Args:
      default: converts values that JSON has no form of, as in `json.dumps`.
    """
    write_text(path, json.dumps(values, indent=2, default=default) + "\n")
