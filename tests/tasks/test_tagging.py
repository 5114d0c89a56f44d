"""Tags on first tokens: words and tokens matched, windows, predictions put together."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from lmjax.data.rows import BadRowError, Notes, RowsConfig, place_of, read_split
from lmjax.errors import ConfigError
from lmjax.tasks.tagging import Tagging, first_tokens, words_of_tokens
from tests.tasks import small

pytest.importorskip("seqeval", reason="seqeval is not installed")


def task(tokenizer: Any, family: str = "bert", **fields: Any) -> Tagging:
    vocabulary = small.vocabulary(tokenizer)
    model = small.model(family, vocabulary.size)
    return Tagging(vocabulary=vocabulary, model=model, length=16, **fields)


def test_the_line_of_a_bad_tag_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.conll").write_text("a O\nb B-X\n\na O\nb O\nc X\n\na O\nb B-Y\n")
    made = task(small.tokenizer(), words="0", tags="-1")
    config = RowsConfig(train="none.csv", test=str(tmp_path / "c.conll"))
    with pytest.raises(ConfigError, match=r"1 of 3 rows .* c\.conll:6: 'X' is not a BIO tag"):
        read_split(config, "test", made.parse, made.embedded, Notes())
    # CoNLL-U has lines that are no word.
    (tmp_path / "u.conllu").write_text("# x\n1-2\tab\tO\n1\ta\tO\n2\tb\tX\n")
    made = task(small.tokenizer(), words="1", tags="-1")
    config = RowsConfig(train="none.csv", test=str(tmp_path / "u.conllu"))
    with pytest.raises(ConfigError, match=r"u\.conllu:4: 'X' is not a BIO tag"):
        read_split(config, "test", made.parse, made.embedded, Notes())
    bound = made.bind([{"words": ["a"], "gold": ["O"]}])
    with pytest.raises(BadRowError, match="'B-Y' is not in the set") as caught:
        bound.check({"words": ["a", "b"], "gold": ["O", "B-Y"]})
    assert place_of(caught.value, "c.conll:8") == "c.conll:8, word 2"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tokens_are_matched_with_their_words(kind: str) -> None:
    tokenizer = small.tokenizer(kind)
    rng = np.random.default_rng(0)
    letters = [*"abdefgklmnou", "-", ",", "é"]
    for _ in range(50):
        words = ["".join(rng.choice(letters, rng.integers(1, 7))) for _ in range(6)]
        ((ids, offsets),) = tokenizer.encode_with_offsets([" ".join(words)])
        found = words_of_tokens(words, offsets)
        # Independently: character by character.
        text_words = [w for w, word in enumerate(words) for _ in [*word, " "]]
        spaces = [c == " " for word in words for c in [*word, " "]]
        for token, (begin, end) in enumerate(offsets):
            touched = {text_words[i] for i in range(begin, end) if not spaces[i]}
            expected = touched.pop() if touched else -1
            assert found[token] == expected, (words, offsets.tolist(), token)
        first = first_tokens(found)
        assert len(first) == len(ids)
        for w in range(len(words)):
            places = np.flatnonzero(found == w)
            assert len(places) == 0 or np.flatnonzero(first == w).tolist() == [places[0]]


@pytest.mark.parametrize("family", small.FAMILIES)
def test_long_sentences_are_read_in_windows_that_overlap(family: str) -> None:
    """Each word once, where most of what is around it is seen."""
    tokenizer = small.tokenizer()
    made = dataclasses.replace(task(tokenizer, family), labels=("O", "B-X"))
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(20):
        words = ["".join(rng.choice(list("bdfgaeiouklmn"), rng.integers(1, 9))) for _ in range(20)]
        rows.append({"words": words, "gold": [str(rng.choice(["O", "B-X"])) for _ in words]})
    notes = Notes()
    examples = made.encode(rows, tokenizer, notes, training=True)
    assert notes.counts["split into windows of 16 tokens"] == 20
    read: dict[int, list[int]] = {i: [] for i in range(20)}
    room = 16 - made.form.special_tokens(pair=False)
    texts = tokenizer.encode_with_offsets([" ".join(row["words"]) for row in rows])
    firsts = [
        first_tokens(words_of_tokens(row["words"], offsets)).tolist()
        for row, (_, offsets) in zip(rows, texts, strict=True)
    ]
    begin = made.form.join(np.zeros(0, np.int32)).first
    for example in examples:
        assert len(example["tokens"]) <= 16
        ids, first = texts[int(example["row"])][0].tolist(), firsts[int(example["row"])]
        own = example["tokens"][begin : begin + len(example["tokens"]) - 2].tolist()
        starts = [i for i in range(len(ids)) if ids[i : i + len(own)] == own]
        for place in np.flatnonzero(example["word"] >= 0):
            token = first.index(int(example["word"][place]))
            start = token - (int(place) - begin)
            assert start in starts
            # On both sides a quarter of a window, or all that there is.
            assert min(token, token - start) >= min(token, room // 4)
            end = start + len(own)
            assert end - token > min(len(ids) - token - 1, room // 4)
        row = rows[int(example["row"])]
        for place in np.flatnonzero(example["word"] >= 0):
            word = int(example["word"][place])
            read[int(example["row"])].append(word)
            piece = tokenizer.token(example["tokens"][place])
            assert row["words"][word].startswith(piece)
            assert made.labels[example["tags"][place]] == row["gold"][word]
        assert ((example["tags"] >= 0) == (example["word"] >= 0)).all()
    assert all(words == list(range(20)) for words in read.values())
    # Perfect logits give perfect tags, whatever the windows.
    outputs = [{"logits": 9.0 * (example["tags"][:, None] == [0, 1])} for example in examples]
    predictions = made.predict(rows, examples, outputs)
    assert all(p["prediction"] == p["gold"] for p in predictions)
    assert made.scores(predictions)["span_f1"] == 1


def test_words_without_tokens_are_counted_and_given_the_usual_tag() -> None:
    tokenizer = small.tokenizer()
    rows = [{"words": ["bak", "\u200b", "dal"], "gold": ["B-X", "O", "O"]}]
    made = task(tokenizer).bind(rows)
    notes = Notes()
    (example,) = made.encode(rows, tokenizer, notes, training=False)
    assert notes.counts == {"words without tokens, given 'O'": 1}
    outputs = [{"logits": np.tile([0.0, 1.0], (len(example["tokens"]), 1))}]
    (found,) = made.predict(rows, [example], outputs)
    assert found["prediction"] == ["B-X", "O", "B-X"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": ["a"]}, "no column 'tags'"),
        ({"words": "a b", "tags": ["O"]}, "no list of strings in column 'words'"),
        ({"words": ["a", "b"], "tags": ["O"]}, "1 tags for 2 words"),
        ({"words": [], "tags": []}, "no words"),
        ({"words": [" "], "tags": ["O"]}, "an empty word"),
        ({"words": ["a"], "tags": ["NOUN"]}, "'NOUN' is not a BIO tag"),
    ],
)
def test_bad_rows(values: dict[str, Any], message: str) -> None:
    tokenizer = small.tokenizer()
    with pytest.raises(BadRowError, match=message):
        task(tokenizer).parse(values)
    if "NOUN" in message:
        task(tokenizer, score="words").parse(values)


def test_an_unknown_tag_does_not_fit() -> None:
    made = task(small.tokenizer()).bind([{"words": ["a"], "gold": ["O"]}])
    with pytest.raises(BadRowError, match="tag 'B-Z' is not in the set"):
        made.check({"words": ["a"], "gold": ["B-Z"]})


def test_the_baseline_is_each_words_usual_tag() -> None:
    train = [{"words": ["Bak", "bak", "bak", "dal", "x"], "gold": ["B-X", "B-X", "O", "O", "O"]}]
    rows = [{"words": ["bak", "dal", "new"], "gold": ["B-X", "O", "B-X"]}]
    made = task(small.tokenizer()).bind(train)
    (scores,) = made.baselines(train, rows).values()
    assert scores["precision"] == 1
    assert scores["recall"] == 0.5
