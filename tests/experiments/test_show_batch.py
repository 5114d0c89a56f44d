"""What is shown of a batch."""

import numpy as np

from experiments.show_batch import describe
from tests import tiny


class Words:
    """A tokenizer that names ids."""

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(f"w{i}" for i in ids)


def test_the_rarest_rows_come_first_without_their_padding() -> None:
    batch = {
        "tokens": np.array([[6, 7, 8, 0], [40, 41, 42, 43], [6, 6, 6, 6]]),
        "segment_ids": np.array([[1, 1, 2, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),
    }
    first, second = describe(batch, Words(), tiny.VOCABULARY.log_frequency, 2)  # type: ignore[arg-type]
    # Frequencies of the tiny vocabulary rise with the id.
    assert first.splitlines()[1] == "w6 w6 w6 w6"
    assert second.startswith("row 0: 3 tokens, 2 documents, unigram score")
    assert second.splitlines()[1] == "w6 w7 w8"
