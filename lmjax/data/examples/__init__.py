"""Fixed-length examples of a tokenized corpus, one class per format.

Each class is a frozen dataclass whose fields are the fields of `config.data.examples`. Its method
`source` converts a token store to a random-access source of rows.
"""

from lmjax.data.examples.electra import ElectraPairs
from lmjax.data.examples.full_sentences import FullSentences
from lmjax.data.examples.packed import Packed
from lmjax.data.examples.pairs import SegmentPairs
from lmjax.data.examples.source import Examples, Source
from lmjax.data.examples.stream import SegmentStream

__all__ = [
    "ElectraPairs",
    "Examples",
    "FullSentences",
    "Packed",
    "SegmentPairs",
    "SegmentStream",
    "Source",
]
