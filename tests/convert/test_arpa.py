"""ARPA files: out and in again, read by kenlm, and what is wrong is told with its line."""

import functools
import gzip
import math
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

import lmjax
from lmjax.convert.arpa import read_arpa, write_arpa
from lmjax.convert.ngrams import opened, save_ngrams
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.evaluation.scoring import Passage, passage_scores
from lmjax.models.ngram import Smoothing
from lmjax.models.ngram_estimation import estimate
from tests.words import SIZE, tokenizer

TOKENIZER = tokenizer()
EOD = TOKENIZER.roles["eod"]


def texts(seed: int, count: int) -> list[np.ndarray]:
    """Texts with the unknown token and one that the training text lacks."""
    rng = np.random.default_rng(seed)
    kinds = np.array([1, *range(6, SIZE - 1)])
    found = [rng.choice(kinds, rng.integers(0, 9)) for _ in range(count)]
    return [*found, np.array([23, 6, 23], int)] if seed else found


def join(listed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(listed), np.cumsum([0, *map(len, listed)])


@functools.cache
def model(smoothing: Smoothing = "modified_kneser_ney", end: int = EOD) -> Pretrained:
    found = estimate(
        join(texts(0, 80)),
        SIZE,
        (EOD, end),
        order=3,
        smoothing=smoothing,
        discount_fallback=True,
        held_out=join(texts(1, 20)),
    )
    return opened(found.config, found.params, TOKENIZER)


def scores(one: Pretrained) -> np.ndarray:
    """Of all tokens of some texts and of their ends, in nats."""
    end = one.token_ids["eos_token_id"]
    passages = [Passage(np.append(text, end).astype(np.int32)) for text in texts(2, 20)]
    return np.concatenate([found.logs for found in passage_scores(one, passages)])


SMOOTHINGS: tuple[Smoothing, ...] = ("modified_kneser_ney", "jelinek_mercer", "katz")


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_kenlm_gives_the_same_scores(smoothing: Smoothing, tmp_path: pathlib.Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
    write_arpa(model(smoothing), tmp_path / "lm.arpa")
    theirs = kenlm.Model(str(tmp_path / "lm.arpa"))
    found = [
        log10
        for text in texts(2, 20)
        for log10, *_ in theirs.full_scores(" ".join(map(TOKENIZER.token, text)))
    ]
    np.testing.assert_allclose(found, scores(model(smoothing)) / math.log(10), atol=1e-5)


def test_lmplz_estimates_the_same_model(tmp_path: pathlib.Path) -> None:
    """Of kenlm's `lmplz`, all n-grams with their probabilities and back-off weights."""
    if shutil.which("lmplz") is None:
        pytest.skip("kenlm's lmplz is not on the path")
    listed = [text[text != 1] for text in texts(0, 80)]  # without <unk>, which lmplz refuses
    found = estimate(join(listed), SIZE, (EOD, EOD), order=3, discount_fallback=True)
    write_arpa(opened(found.config, found.params, TOKENIZER), tmp_path / "lm.arpa")
    command = ["lmplz", "-o", "3", "--vocab_pad", str(SIZE), "--discount_fallback", "-S", "100M"]
    done = subprocess.run(
        [*command, "-T", str(tmp_path)],
        input="".join(" ".join(map(TOKENIZER.token, text)) + "\n" for text in listed),
        capture_output=True,
        text=True,
        check=True,
    )
    mine, theirs = (
        {words: [float(p), float(*weight or "0")] for p, words, *weight in map(split, lines)}
        for lines in (
            [line for line in text.splitlines() if "\t" in line]
            for text in ((tmp_path / "lm.arpa").read_text(), done.stdout)
        )
    )
    theirs["<s>"][0] = -99.0  # lmplz writes 0
    assert len(theirs) > 300
    for words, values in theirs.items():
        np.testing.assert_allclose(mine.pop(words), values, atol=1e-5, err_msg=words)
    # Tokens that do not occur have what <unk> has.
    assert set(mine) == {"[PAD]", "[CLS]", "[SEP]", "[MASK]", "w23"}
    np.testing.assert_allclose([*mine.values()], [theirs["<unk>"]] * 5, atol=1e-5)


def split(line: str) -> list[str]:
    return line.split("\t")


@pytest.mark.parametrize("end", [EOD, 3])
def test_a_written_file_is_read_back(end: int, tmp_path: pathlib.Path) -> None:
    """With and without the tokenizer, and with one token or two at the ends of texts."""
    one = model(end=end)
    write_arpa(one, tmp_path / "lm.arpa")
    if end == EOD:  # the tokenizer has one token for both ends
        again = read_arpa(tmp_path / "lm.arpa", TOKENIZER)
        np.testing.assert_allclose(scores(again), scores(one), atol=1e-5)
        write_arpa(again, tmp_path / "again.arpa")
        first, second = (
            [line.split("\t")[1:2] for line in (tmp_path / name).read_text().splitlines()]
            for name in ("lm.arpa", "again.arpa")
        )
        assert first == second and ["<s> w6"] in first
    words = lmjax.load(tmp_path / "lm.arpa")
    assert words.tokenizer is not None and words.task is None
    lines = [" ".join(map(TOKENIZER.token, text)) for text in texts(2, 20)]
    for mine, theirs in zip(
        lmjax.token_scores(words, lines), lmjax.token_scores(one, lines), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_directory_is_what_was_saved(tmp_path: pathlib.Path) -> None:
    save_ngrams(model(), tmp_path / "lm")
    again = lmjax.load(tmp_path / "lm")
    np.testing.assert_array_equal(scores(again), scores(model()))
    with pytest.raises(ConfigError, match=r"--to: .* is not empty"):
        save_ngrams(model(), tmp_path / "lm")
    arrays = tmp_path / "lm" / "ngrams.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a complete file"):
        lmjax.load(tmp_path / "lm")
    save_ngrams(model(end=3), tmp_path / "other")
    arrays.write_bytes((tmp_path / "other" / "ngrams.safetensors").read_bytes()[::-1])
    with pytest.raises(ConfigError, match="not a complete file"):
        lmjax.load(tmp_path / "lm")


def test_damaged_arrays_are_refused(tmp_path: pathlib.Path) -> None:
    import safetensors.numpy

    save_ngrams(model(), tmp_path / "lm")
    path = tmp_path / "lm" / "ngrams.safetensors"
    arrays = safetensors.numpy.load_file(path)
    for name, change, message in (
        ("order_2.tokens", lambda x: x[::-1].copy(), "the 2-grams are damaged"),
        ("order_1.starts", lambda x: x[:-1].copy(), r"'order_1.starts' should be int32\[25\]"),
        ("order_3.log_probs", lambda x: x * np.nan, "the 3-grams are damaged"),
        ("order_3.tokens", lambda x: x.astype(np.int64), "'order_3.tokens' should be int32"),
    ):
        safetensors.numpy.save_file({**arrays, name: change(arrays[name])}, path)
        with pytest.raises(ConfigError, match=message):
            lmjax.load(tmp_path / "lm")


def test_what_has_no_arpa_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="scores of stupid_backoff are none"):
        write_arpa(model("stupid_backoff"), tmp_path / "lm.arpa")
    assert not list(tmp_path.iterdir())


GOOD = """
\\data\\
ngram 1=4
ngram 2=3

\\1-grams:
-99\t<s>\t-0.3
-0.5\t</s>
-0.6\ta\t-0.2
-0.7\tb\t-0.1

\\2-grams:
-0.1\t<s> a
-0.2\ta b
-0.3\tb </s>

\\end\\
"""


def test_a_file_by_hand(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(GOOD.encode()))
    one = lmjax.load(path)
    found = lmjax.token_scores(one, ["a b b", "c"])
    # <unk> is missing, and has log10 p = -100.
    for mine, expected in zip(found, ([-0.1, -0.2, -0.8], [-100.3]), strict=True):
        np.testing.assert_allclose(mine / math.log(10), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r":2: expected '\data\', got 'data'"),
        ("ngram 2=3", "ngram 3=3", r":4: expected 'ngram 2=COUNT', got 'ngram 3=3'"),
        ("ngram 2=3", "ngram 2=x", r":4: expected 'ngram 2=COUNT', got 'ngram 2=x'"),
        ("ngram 2=3", "ngram 2=4", r":17: 3 2-grams, but the header promises 4"),
        ("\\2-grams:", "\\3-grams:", r":12: expected '\2-grams:', got '\3-grams:'"),
        ("-0.5\t</s>", "x\t</s>", r":8: 'x' is not a logarithm"),
        ("-0.5\t</s>", "0.5\t</s>", r":8: '0.5' is not a logarithm"),
        ("-0.5\t</s>", "nan\t</s>", r":8: 'nan' is not a logarithm"),
        ("-0.7\tb\t-0.1", "-0.7\tb\t-inf", r":10: '-inf' is not a logarithm"),
        ("-0.7\tb\t-0.1", "-0.7\ta\t-0.1", r":10: 'a' is listed twice"),
        ("-0.2\ta b", "-0.2\ta", r":14: 2 fields; a 2-gram has 3"),
        ("-0.2\ta b", "-0.2\ta b -0.1", r":14: 4 fields; a 2-gram has 3"),
        ("-0.2\ta b", "-0.2\ta c", r":14: 'c' is not among the 1-grams"),
        ("-0.2\ta b", "-0.2\tb </s>", r":15: the n-gram is listed twice"),
        ("-0.2\ta b", "-0.2\ta <s>", r":14: '<s>' after the first place"),
        ("-0.2\ta b", "-0.2\t</s> b", r":14: '</s>' before the last place"),
        ("\\end\\", "", r":17: the file ends before '\end\'"),
        ("-99\t<s>\t-0.3", "-99\ts\t-0.3", r":12: the 1-grams lack '<s>'"),
    ],
)
def test_what_is_malformed_is_told_with_its_line(
    old: str, new: str, message: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape("lm.arpa" + message)):
        read_arpa(path)


def test_a_context_must_be_listed(tmp_path: pathlib.Path) -> None:
    text = GOOD.replace("ngram 2=3\n", "ngram 2=3\nngram 3=1\n")
    text = text.replace("\\end\\", "\\3-grams:\n-0.1\tb b a\n\n\\end\\")
    (tmp_path / "lm.arpa").write_text(text)
    with pytest.raises(ConfigError, match=r":19: its context is not among the 2-grams"):
        read_arpa(tmp_path / "lm.arpa")


def test_a_file_of_other_words_or_of_a_smaller_vocabulary_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=r":9: 'a' is no token of the tokenizer"):
        read_arpa(path, TOKENIZER)
    words = GOOD.replace("\ta", "\tw6").replace("a\n", "w6\n").replace("b", "w7")
    path.write_text(words)
    read_arpa(path, TOKENIZER)
    unknown = words.replace("1=4", "1=5").replace("\\1-grams:\n", "\\1-grams:\n-1.5\t<unk>\n")
    path.write_text(unknown)
    with pytest.raises(ConfigError, match=r"24 tokens sum to 1\.\d+, .* --vocab_pad=24"):
        read_arpa(path, TOKENIZER)
