"""Tokenizers: the same ids every time, roles, and what is refused."""

import lzma
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from lmjax.data.tokenizer_training import train_tokenizer
from lmjax.data.tokenizers import ROLES, Tokenizer, TokenizerConfig, load_tokenizer
from lmjax.errors import ConfigError

KINDS = ("wordpiece", "bpe", "unigram")

# Enough rare characters and equal counts for any order of a hash map to show.
_MAKE_TEXTS = """
import random
r = random.Random(0)
words = ["".join(r.choices("abcdefghijklmnopqrstuvwxyzäöü", k=r.randint(1, 9))) for _ in range(800)]
texts = [" ".join(r.choices(words, k=40)) + ". Then It's done, isn't it?" for _ in range(60)]
texts.append(" ".join(chr(0x400 + i) + chr(0x4A0 - i) for i in range(90)))
"""
_scope: dict[str, list[str]] = {}
exec(_MAKE_TEXTS, _scope)
TEXTS = _scope["texts"]


def trained(kind: str, vocab_size: int = 700, lowercase: bool = True) -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerConfig("", kind, vocab_size, lowercase))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


def test_other_processes_train_the_same() -> None:
    # Rust's hash maps are seeded by process: one process alone proves little.
    script = _MAKE_TEXTS + (
        "from lmjax.data.tokenizer_training import train_tokenizer\n"
        "from lmjax.data.tokenizers import TokenizerConfig\n"
        f"for kind in {KINDS}:\n"
        "    print(train_tokenizer(texts, TokenizerConfig('', kind, 700)).fingerprint)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    expected = [trained(kind).fingerprint for kind in KINDS]
    assert [run.stdout.split() for run in runs] == [expected, expected]


def test_our_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.roles.values()) == [0, 1, 2, 3, 4, 5]
    assert [tokenizer.token(i) for i in range(6)] == [names[0] for names in ROLES.values()]
    assert 300 < tokenizer.size <= 700


def test_nothing_is_added_and_text_comes_back(tokenizer: Tokenizer) -> None:
    texts = [text.lower() for text in TEXTS[:10]]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not set(ids) & set(tokenizer.roles.values())
        # Lower case takes accents away too; WordPiece does not know where spaces were.
        bare = text.replace(" ", "").translate(str.maketrans("äöü", "aou"))
        assert tokenizer.decode(ids).replace(" ", "") == bare


def test_nothing_to_encode_gives_nothing(tokenizer: Tokenizer) -> None:
    assert [len(ids) for ids in tokenizer.encode_batch(["", "a"])] == [0, 1]
    assert tokenizer.encode_batch([]) == []


def test_bytes_come_back_whole() -> None:
    tokenizer = trained("bpe", lowercase=False)
    texts = ["  Ünïcode\t🙂\r\n\n  indented", "never seen: 漢字", "\x00 control"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(place))
        assert loaded.fingerprint == tokenizer.fingerprint and loaded.roles == tokenizer.roles
        for one, two in zip(loaded.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True):
            np.testing.assert_array_equal(one, two)


def test_vocabulary(tokenizer: Tokenizer) -> None:
    ids = np.concatenate(tokenizer.encode_batch(TEXTS))
    counts = np.bincount(ids, minlength=tokenizer.size)
    vocabulary = tokenizer.vocabulary(counts)
    assert vocabulary.size == tokenizer.size == len(vocabulary.special)
    assert set(np.flatnonzero(vocabulary.special)) == set(tokenizer.roles.values())
    probability = np.exp(vocabulary.log_frequency.astype(np.float64))
    np.testing.assert_allclose(probability, (counts + 1) / (counts + 1).sum(), rtol=1e-4)
    assert vocabulary.log_frequency.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_starts_word_marks_one_start_for_each_word(kind: str) -> None:
    tokenizer = trained(kind)
    vocabulary = tokenizer.vocabulary(np.zeros(tokenizer.size))
    text = " then it done isn it"  # every word known, no punctuation
    (ids,) = tokenizer.encode_batch([text])
    assert vocabulary.starts_word[ids].sum() == 5
    (ids,) = tokenizer.encode_batch([" it, done."])
    assert vocabulary.starts_word[ids].sum() == 4


def test_wordpiece_learns_the_common_word_whole() -> None:
    tokenizer = trained("wordpiece")
    pieces = {tokenizer.token(i) for i in range(tokenizer.size)}
    assert {"then", "done", "isn"} <= pieces
    assert all(len(piece) > 2 for piece in pieces if piece.startswith("##"))
    assert {"a", "##a", "z", "##z"} <= pieces  # no word of known letters is unknown
    (ids,) = tokenizer.encode_batch(["zzqqxxa"])
    assert tokenizer.roles["unk"] not in ids


def test_lowercase_is_a_choice() -> None:
    for kind in KINDS:
        assert "T" in "".join(_pieces(trained(kind, lowercase=False)))
        assert "T" not in "".join(_pieces(trained(kind))) or kind == "bpe"
        one, two = trained(kind).encode_batch(["THEN", "then"])
        np.testing.assert_array_equal(one, two)


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token(i) for i in range(6, tokenizer.size)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "wordpieces"}, "kind: 'wordpieces' is not one of"),
        ({"vocab_size": 20}, "vocab_size: must be at least 100, got 20"),
        ({"kind": "bpe", "vocab_size": 200}, "vocab_size: 200 is too few"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TokenizerConfig(**settings)


def test_more_characters_than_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: 100 has no room"):
        trained("unigram", vocab_size=100)


def test_what_is_no_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for path, says in [
        (tmp_path / "missing.json", "no such file"),
        (tmp_path / "text.json", "is no tokenizer"),
        (tmp_path / "other.json", "is no tokenizer"),
        (tmp_path, "holds no tokenizer.json"),
    ]:
        with pytest.raises(ConfigError, match=says) as caught:
            load_tokenizer(str(path))
        assert str(caught.value).startswith("config.data.tokenizer.path: ")
        assert "\n" not in str(caught.value)


def test_roles_that_a_tokenizer_lacks_are_added(tmp_path: pathlib.Path) -> None:
    names = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "hello", "##s", "\u2028"]
    (tmp_path / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    roles = {"pad": 1, "unk": 4, "cls": 0, "sep": 2, "mask": 8, "eod": 9}
    assert tokenizer.roles == roles and tokenizer.size == 10
    assert tokenizer.vocabulary(np.zeros(10)).special[list(roles.values())].all()


def test_bert(test_data: pathlib.Path) -> None:
    tokenizer = load_tokenizer(str(test_data / "tokenizers" / "bert_uncased_vocab.txt"))
    assert tokenizer.roles == {
        "pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103, "eod": 30522,
    }  # fmt: skip
    (ids,) = tokenizer.encode_batch(["Hello, my dog is cute"])
    assert ids.tolist() == [7592, 1010, 2026, 3899, 2003, 10140]
    cased = load_tokenizer(str(test_data / "tokenizers" / "bert_cased_vocab.txt"), lowercase=False)
    assert cased.encode_batch(["Hello, my dog is cute"])[0][0] == 8667


def test_gpt2(test_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        with lzma.open(test_data / "tokenizers" / f"gpt2_{name}.xz") as file:
            (tmp_path / name).write_bytes(file.read())
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.roles["eod"] == 50256 and tokenizer.size == 50262
    text = "Hello, my dog is cute"
    (ids,) = tokenizer.encode_batch([text])
    assert ids.tolist() == [15496, 11, 616, 3290, 318, 13779]
    assert tokenizer.decode(ids) == text
