"""Tokenizers: the same ids every time, roles, and what is refused."""

import json
import lzma
import pathlib
import subprocess
import sys
import time
import unicodedata
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

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


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_scripts_without_spaces_start_words(kind: str) -> None:
    texts = ["今天天气很好我们去公园吧", "วันนี้อากาศดีเราไปสวนสาธารณะกัน", "ひらがなとカタカナ"]
    config = TokenizerConfig("", kind, 300, lowercase=False)  # type: ignore[arg-type]
    tokenizer = train_tokenizer([*texts, "an english text"], config)  # BPE cuts characters
    starts_word = tokenizer.vocabulary(np.zeros(tokenizer.size)).starts_word
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        place, first = 0, []  # the character with which each piece begins; '' inside a character
        letters: Any = text
        if kind == "bpe":  # a piece has a character for each byte
            letters = [x for c in text for x in (c, *[""] * (len(c.encode()) - 1))]
        for piece in map(tokenizer.token, ids):
            first.append(letters[place])
            place += len(piece.removeprefix("##").removeprefix("▁"))
        assert place == len(letters)
        # Vowels and tones that follow a Thai consonant, and BERT's words of kana.
        follow = {"", *"ะาำ"} | {c for c in text if unicodedata.category(c) == "Mn"}
        if kind == "wordpiece" and text == texts[2]:
            follow |= set(text[1:])
        want = [i == 0 or c not in follow for i, c in enumerate(first)]
        if kind == "bpe" and text == texts[1]:  # a consonant that is cut looks like a vowel
            assert not (starts_word[ids] & ~np.array(want))[np.array(first) == ""].any()
        else:
            assert starts_word[ids].tolist() == want


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
        ({"kind": "bpe", "vocab_size": 200}, "vocab_size: 200 is too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TokenizerConfig(**settings)


def test_more_characters_than_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size: 100 is too small"):
        trained("unigram", vocab_size=100)


def test_what_is_no_tokenizer_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for path, says in [
        (tmp_path / "missing.json", "no such file"),
        (tmp_path / "text.json", "is not a tokenizer"),
        (tmp_path / "other.json", "is not a tokenizer"),
        (tmp_path, "has no tokenizer.json"),
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


NAMES = [name for names in ROLES.values() for name in names]
SPELT = [
    *NAMES,
    "a [MASK] b[PAD]c <mask>d",
    "[EOD]\n<|endoftext|>",
    "".join(NAMES),
    "\uff3bMASK\uff3d",
]


def reads_letters(tokenizer: Tokenizer) -> None:
    """Checks that texts which spell special tokens out give none, but for what is unknown."""
    special = tokenizer.vocabulary(np.zeros(tokenizer.size)).special
    special[tokenizer.roles["unk"]] = False
    read = tokenizer.encode_batch(SPELT)
    offsets = [ids for ids, _ in tokenizer.encode_with_offsets(SPELT)]
    for text, ids, same in zip(SPELT, read, offsets, strict=True):
        assert len(ids) and not special[ids].any(), text
        np.testing.assert_array_equal(ids, same)
    mask = tokenizer.roles["mask"]
    assert mask in tokenizer.encode_batch([tokenizer.token(mask)], special_tokens=True)[0]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_spells_special_tokens_out_gives_none(kind: Any, lowercase: bool) -> None:
    config = TokenizerConfig("", kind, 700, lowercase)
    for texts in (TEXTS, [*TEXTS, *SPELT * 20]):
        tokenizer = train_tokenizer(texts, config)
        assert list(tokenizer.roles.values()) == [0, 1, 2, 3, 4, 5]
        reads_letters(tokenizer.with_tokens(["[E1]"]))


def unigram() -> tokenizers.Tokenizer:
    """XLNet's: the special tokens are pieces, with the best score of all."""
    names = ["<unk>", "<pad>", "<cls>", "<sep>", "<mask>", "<eod>"]
    letters = sorted({*"".join(SPELT), "▁"})
    pieces = [(name, 0.0) for name in names] + [(letter, -5.0) for letter in letters]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def words() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "a": 2}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def merged() -> tokenizers.Tokenizer:
    """BPE whose merges make a special token."""
    letters = sorted({*"".join(SPELT), " ", "\n"})
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    for piece in ("<m", "<ma", "<mas", "<mask", "<mask>"):
        vocabulary[piece] = len(vocabulary)
    merges = [("<", "m"), ("<m", "a"), ("<ma", "s"), ("<mas", "k"), ("<mask", ">")]
    return tokenizers.Tokenizer(models.BPE(vocabulary, merges))


def normalised() -> tokenizers.Tokenizer:
    """A special token that is looked for in the normalized text."""
    values = values_of(trained("bpe"))
    values["added_tokens"][4]["normalized"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(values))


@pytest.mark.parametrize("make", [unigram, words, merged, normalised])
def test_a_model_that_has_them_gives_none(make: Any, tmp_path: pathlib.Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    reads_letters(load_tokenizer(str(tmp_path)))


def test_other_added_tokens_stay_what_they_are(tmp_path: pathlib.Path) -> None:
    inner = tokenizers.Tokenizer.from_str(json.dumps(values_of(trained("wordpiece"))))
    inner.add_tokens(["then-what"])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    (ids,) = tokenizer.encode_batch(["then-what [MASK]"])
    assert tokenizer.token(ids[0]) == "then-what" and tokenizer.roles["mask"] not in ids
    assert not tokenizer.vocabulary(np.zeros(tokenizer.size)).special[ids[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_cannot_be_read_is_named(kind: Any) -> None:
    tokenizer = trained(kind)
    for texts, says in [
        (
            ["fine", "half \ud83d of one"],
            r"text 1: an unpaired surrogate \(U\+D83D\) at char.* 5,",
        ),
        (["fine", None], "text 1: expected a str, got NoneType"),
        ([3.5], "text 0: expected a str, got float"),
    ]:
        for read in (
            tokenizer.encode_batch,
            tokenizer.encode_with_offsets,
            lambda texts: train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=300)),
        ):
            with pytest.raises(ConfigError, match=says) as caught:
                read(texts)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_line_without_spaces_takes_seconds(
    kind: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    line = "".join(rng.choice([*"abcdefghijklmnopqrstuvwxyz"], 400_000))
    config = TokenizerConfig(kind=kind, vocab_size=700)
    begin = time.monotonic()
    tokenizer = train_tokenizer([*TEXTS, line], config)
    (ids,) = tokenizer.encode_batch([line])
    assert time.monotonic() - begin < 20  # without a bound it takes minutes
    assert len(ids) == 1 or len(ids) > len(line) // 10
    said = capfd.readouterr().err
    assert "dropped 390,000 characters at the ends of words of more than 10,000" in said
    # What is learnt is learnt from the beginning, and from words as they are.
    assert tokenizer.fingerprint == train_tokenizer([*TEXTS, line[:10_000]], config).fingerprint
    assert not capfd.readouterr().err


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOD]", "a", "##b", "\u2028"]


@pytest.mark.parametrize(
    ("lines", "a", "size"),
    [
        ("\ufeff" + "\n".join(VOCABULARY), 6, 9),
        ("\r\n".join(VOCABULARY) + "\r\n", 6, 9),
        ("\n".join(VOCABULARY) + "\n\n\n", 6, 9),
        ("\n".join([*VOCABULARY[:6], "", "", *VOCABULARY[6:]]), 8, 11),
        ("\n".join([*VOCABULARY, "a"]), 9, 10),  # the last of two counts, as in BERT's own
        ("\n".join([*VOCABULARY, "a", "c", "a"]), 11, 12),
    ],
    ids=["mark", "windows", "empty at the end", "empty", "twice", "three times"],
)
def test_a_vocabulary_is_read_as_bert_does(
    lines: str, a: int, size: int, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "vocab.txt").write_bytes(lines.encode())
    tokenizer = load_tokenizer(str(tmp_path))
    assert list(tokenizer.roles.values()) == [0, 1, 2, 3, 4, 5]
    assert tokenizer.size == len(tokenizer.vocabulary(np.zeros(tokenizer.size)).special) == size
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", "[MASK]"])] == [[a], [1, 1, 1]]
    assert tokenizer.encode_batch(["[MASK]"], special_tokens=True)[0].tolist() == [4]
    # An id for a role comes behind all of them.
    added = tokenizer.with_tokens(["[E1]"])
    assert added.token_id("[E1]") == size == added.size - 1


def test_gpt2s_files_may_have_marks_and_windows_lines(tmp_path: pathlib.Path) -> None:
    vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", "a", "b", "ab", "Ġ"])}
    for mark, end in (("", "\n"), ("\ufeff", "\r\n")):
        merges = f"{mark}#version: 0.2{end}a b{end}"
        (tmp_path / "vocab.json").write_bytes(f"{mark}{json.dumps(vocabulary)}".encode())
        (tmp_path / "merges.txt").write_bytes(merges.encode())
        tokenizer = load_tokenizer(str(tmp_path))
        assert tokenizer.roles["eod"] == 0 and tokenizer.size == 10
        assert tokenizer.encode_batch(["ab a"])[0].tolist() == [3, 4, 1]
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ConfigError, match=r"merges\.txt:2: 'a b c' is not a pair of pieces"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"no merges\.txt next to it"):
        load_tokenizer(str(tmp_path))


def values_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_json(tokenizer.size))


def without(values: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**values, **changes})


def with_vocabulary(**changes: Any) -> Any:
    def change(values: dict[str, Any]) -> str:
        return without(values, model={**values["model"], **changes})

    return change


def added(index: Any, content: Any) -> Any:
    def change(values: dict[str, Any]) -> str:
        one = {**values["added_tokens"][-1], "id": index, "content": content}
        return without(values, added_tokens=[*values["added_tokens"], one])

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: "[" * 100_000, "recursion"),
        (lambda values: " " * (65 << 20), "more than 64 MiB"),
        (lambda values: json.dumps([values]), "no 'model' with a 'vocab'"),
        (lambda values: without(values, model="BPE"), "no 'model' with a 'vocab'"),
        (with_vocabulary(vocab={}), "no 'model' with a 'vocab'"),
        (with_vocabulary(vocab="abc"), "'vocab' is neither a map"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": 10**9}), "'a' has id 1000000000, not below"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": -1}), "'a' has id -1"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": True}), "'a' has id True"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": "1"}), "'a' has id '1'"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": 0}), r"'\[UNK\]' and 'a' both have id 0"),
        (with_vocabulary(vocab={"[UNK]": 0, "a": 99}), "only 2 of its 100 ids have a token"),
        (
            with_vocabulary(unk_token="[MASK]"),
            r"unknown token is '\[MASK\]', which is also the token for mask",
        ),
        (added(10**9, "new"), "'new' has id 1000000000, but 700 by its position"),
        (added(701, "new"), "'new' has id 701, but 700 by its position"),
        (added(3, "new"), "'new' has id 3, but 700 by its position"),
        (added(700, 5), "invalid type: integer"),
        (added(700, "half \ud83d"), "hex escape"),
        (
            lambda values: without(values, added_tokens=[0] * 70_000),
            "more than 65,536 added tokens",
        ),
    ],
)
def test_a_hostile_tokenizer_is_one_clear_error(
    change: Any, says: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(change(values_of(trained("wordpiece"))))
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=says) as caught:
        load_tokenizer(str(tmp_path))
    assert time.monotonic() - begin < 10
    assert "is not a tokenizer (" in str(caught.value) and "\n" not in str(caught.value)


def test_what_panics_in_the_library_is_one_clear_error(tmp_path: pathlib.Path) -> None:
    values = values_of(trained("bpe"))
    model = {**values["model"], "continuing_subword_prefix": "longer than any piece is"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, "model": model}))
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_ids_without_a_token_are_counted(tmp_path: pathlib.Path) -> None:
    values = values_of(trained("wordpiece"))
    gone = values["model"]["vocab"].pop("then")
    (tmp_path / "tokenizer.json").write_text("\ufeff" + json.dumps(values), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path))
    whole = trained("wordpiece")
    assert tokenizer.size == whole.size and tokenizer.roles == whole.roles
    assert tokenizer.token(gone + 1) == whole.token(gone + 1)
    assert gone not in tokenizer.encode_batch(["then"])[0]


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
