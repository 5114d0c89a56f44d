"""Which department a question is for: the first thing that a support desk asks itself."""

import dataclasses
from collections.abc import Iterator

from lmjax.data import docstrings
from lmjax.data.rows import Row
from lmjax.tasks.classification import Classification


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Intents(Classification):
    """Classification of questions; without a file, about parameters, by subpackage."""

    def embedded(self, split: str, cache_dir: str) -> Iterator[Row]:
        for row in docstrings.intent_rows(split, cache_dir):
            yield {"text": row["text"], "gold": row["label"]}
