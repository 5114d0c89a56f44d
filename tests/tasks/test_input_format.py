"""How each family reads its texts."""

import numpy as np
import pytest

from lmjax.tasks.input_format import InputFormat
from tests.tasks import small


@pytest.fixture(scope="module")
def made() -> dict[str, InputFormat]:
    found = small.vocabulary(small.tokenizer())
    return {f: InputFormat(small.model(f, found.size), found) for f in small.FAMILIES}


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_one_text_and_a_pair(made: dict[str, InputFormat]) -> None:
    v = made["bert"].vocabulary
    a, b = ids(50, 51), ids(60)
    for family in ("bert", "electra"):
        one, two = made[family].join(a), made[family].join(a, b)
        assert one.tokens.tolist() == [v.cls, 50, 51, v.sep]
        assert two.tokens.tolist() == [v.cls, 50, 51, v.sep, 60, v.sep]
        assert two.token_types.tolist() == [0, 0, 0, 0, 1, 1]
    one, two = made["xlnet"].join(a), made["xlnet"].join(a, b)
    assert one.tokens.tolist() == [50, 51, v.sep, v.cls]
    assert one.token_types.tolist() == [0, 0, 0, 2]
    assert two.tokens.tolist() == [50, 51, v.sep, 60, v.sep, v.cls]
    assert two.token_types.tolist() == [0, 0, 0, 1, 1, 2]
    one, two = made["gpt"].join(a), made["gpt"].join(a, b)
    assert one.tokens.tolist() == [v.eod, 50, 51, v.cls]
    assert two.tokens.tolist() == [v.eod, 50, 51, v.sep, 60, v.cls]
    for form in made.values():
        one, two = form.join(a), form.join(a, b)
        assert len(one.tokens) == len(one.token_types) == 2 + form.special_tokens(pair=False)
        assert len(two.tokens) == len(two.token_types) == 3 + form.special_tokens(pair=True)
        assert one.tokens[one.first : one.first + 2].tolist() == [50, 51]
        assert two.tokens[two.second] == 60


def test_cut_is_berts_truncation(made: dict[str, InputFormat]) -> None:
    def truncate(a: list[int], b: list[int], most: int) -> None:  # _truncate_seq_pair
        while len(a) + len(b) > most:
            (a if len(a) > len(b) else b).pop()

    form = made["bert"]
    for m in range(1, 12):
        for n in range(1, 12):
            for length in range(5, 20):
                a, b = list(range(m)), list(range(n))
                truncate(a, b, length - 3)
                first, second, cut = form.cut(np.arange(m), np.arange(n), length)
                assert second is not None
                assert (first.tolist(), second.tolist()) == (a, b), (m, n, length)
                assert cut == (m + n > length - 3)
    first, second, cut = form.cut(np.arange(9), None, 8)
    assert (first.tolist(), second, cut) == ([0, 1, 2, 3, 4, 5], None, True)
