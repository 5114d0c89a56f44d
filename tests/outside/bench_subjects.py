"""Subjects of a benchmark, without a library that takes long to import."""

import os
import time

from experiments.bench.rounds import Made


def sleep(seconds: float) -> Made:
    """Waits, and uses no processor."""
    print("what a library prints")
    return lambda: time.sleep(seconds), {"work": 10, "tokens": [1, 2]}


def refuse() -> Made:
    """Cannot be made."""
    raise ValueError("no such size\nand more")


def die() -> Made:
    """Ends its process in the first measured run."""
    runs = iter(range(2))
    return lambda: os._exit(9) if next(runs, None) is None else None, {}
