"""A progress bar for work without other output."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.console
import rich.progress

T = TypeVar("T")

_QUIET_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
    """Yields `items` and reports progress on stderr.

    It shows a bar with the remaining time on a terminal, and otherwise prints a line every ten
    seconds. It shows nothing for work that takes less than two seconds.

    Args:
      total: number of items; None = unknown.
    """
    console = rich.console.Console(stderr=True)
    began = last = time.monotonic()
    bar: rich.progress.Progress | None = None
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - began < _QUIET_SECONDS:
                continue
            if console.is_terminal:
                if bar is None:
                    bar = _bar(console)
                    bar.start()
                    task = bar.add_task(description, total=total)
                bar.update(task, completed=done)
            elif now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                of = f"/{total:,.0f}" if total else ""
                print(f"{description}: {done:,}{of}", file=sys.stderr, flush=True)
    finally:
        if bar is not None:
            bar.stop()


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
