"""Fixed-length examples of a tokenised corpus, one class per way of cutting it.

Each class is a frozen dataclass whose fields are the fields of `config.data.examples`;
its `source` turns a token store into a random-access source of rows.
"""

from lmjax.data.examples.electra import ElectraPairs
from lmjax.data.examples.packed import Packed
from lmjax.data.examples.pairs import SegmentPairs
from lmjax.data.examples.source import Examples, Source
from lmjax.data.examples.stream import SegmentStream

__all__ = [
    "ElectraPairs",
    "Examples",
    "Packed",
    "SegmentPairs",
    "SegmentStream",
    "Source",
]
