"""Whether a docstring describes or commands: two styles, of which each text has a twin."""

import dataclasses
from collections.abc import Iterator

from lmjax.data import docstrings
from lmjax.data.rows import Row
from lmjax.tasks.classification import Classification


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Mood(Classification):
    """Classification of styles; without a file, of the mood of a function's summary."""

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.mood_rows(split, cache_dir):
            yield {"text": row["text"], "gold": row["label"], "other": row["other"]}
