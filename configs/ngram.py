"""N-gram models; for experiments.ngram.

  python -m experiments.ngram --config=configs/ngram.py --workdir=runs/kn5
  python -m experiments.ngram --config=configs/ngram.py:katz --workdir=runs/katz3 \
      --config.order=3 --config.data.corpus='texts/*.txt'

The size is the smoothing; lmjax/models/ngram_estimation.py describes each of them. The tokenizer
is that of configs/gpt.py:tiny.
"""

from ml_collections import ConfigDict

from lmjax.configuration import size_of

SMOOTHINGS = (
    "modified_kneser_ney",
    "kneser_ney",
    "jelinek_mercer",
    "katz",
    "stupid_backoff",
)


def get_config(smoothing: str = "modified_kneser_ney") -> ConfigDict:
    """Returns the config of one of SMOOTHINGS."""
    return ConfigDict(
        {
            "smoothing": size_of(SMOOTHINGS, smoothing),
            "order": 5,
            # Tokens of a trained tokenizer are too frequent for Good-Turing's counts of 1-grams.
            "discount_fallback": smoothing == "katz",
            "data": {"tokenizer": {"kind": "bpe", "vocab_size": 8_192, "lowercase": False}},
        }
    )
