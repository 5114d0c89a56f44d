"""Atomic file writes: readers see either the old or the new content, never a part."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a temporary UTF-8 file in the same directory and moves it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # unique per process
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
      default: converts values that JSON does not support, as in `json.dumps`.
    """
    write_text(path, json.dumps(values, indent=2, default=default) + "\n")
