"""Deterministic tokenizer training: the same documents in the same order give the same ids.

The trainers of Hugging Face's `tokenizers` iterate over hash maps in random order. Byte-level BPE
does not depend on the order; WordPiece and unigram do, and are made deterministic here.
"""

import collections
import json
import re
import sys
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmjax.data.plain_text import check_text
from lmjax.data.tokenizers import ROLES, Tokenizer, TokenizerConfig, wordpiece
from lmjax.errors import ConfigError

TRAINING_VERSION = 3  # part of the cache key of trained tokenizers
_SPECIALS = [names[0] for names in ROLES.values()]  # ids 0 to 5
# Private planes of Unicode that encode the first and the other characters of words.
_FIRST, _OTHER = 0xF0000, 0x100000
_MOST_CHARACTERS = 1000
_REPEATED_AT_ONCE = 10_000
# Training time is quadratic in the length of a word. Only characters that all three kinds treat
# as white space count as such: some kinds drop form feeds and other control characters.
_LONGEST_WORD = 10_000
_SPACELESS = r"[\S\x0b\x0c\x1c-\x1f\x85]"
_LONG_WORD = re.compile(rf"(?<!{_SPACELESS}){_SPACELESS}{{{_LONGEST_WORD + 1},}}")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Trains a tokenizer whose ids 0 to 5 are [PAD] [UNK] [CLS] [SEP] [MASK] [EOD].

    Words of more than 10,000 characters are truncated to 10,000; the number of dropped characters
    is reported on stderr.

    Raises:
      ConfigError: the corpus has more distinct characters than fit in `vocab_size`, or a text is
        not a valid string.
    """
    return Tokenizer(_TRAIN[config.kind](_readable(texts), config))


def _readable(texts: Iterable[str]) -> Iterator[str]:
    """Checks texts and truncates words that are too long."""
    words = left_out = 0
    for place, text in enumerate(texts):
        check_text(text, f"text {place}")
        shorter, count = _LONG_WORD.subn(lambda word: word[0][:_LONGEST_WORD], text)
        words += count
        left_out += len(text) - len(shorter)
        yield shorter
    if words:
        print(
            f"tokenizer training dropped {left_out:,} characters at the ends of words of more than"
            f" {_LONGEST_WORD:,} characters (words: {words:,})",
            file=sys.stderr,
            flush=True,
        )


def _wordpiece(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    """Trains BPE merges on words whose first character is distinct from their other ones.

    The library's WordPiece trainer does the same with '##' before the other characters, but it
    numbers characters in hash map order, and the ids break ties between merges.
    """
    words = _words(texts, config.lowercase)
    characters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    # Otherwise one- and two-letter pieces of rare scripts would fill the vocabulary.
    room = min(_MOST_CHARACTERS, config.vocab_size // 4)
    kept = sorted(characters, key=lambda c: (-characters[c], c))[:room]
    place = {character: i for i, character in enumerate(kept)}
    alphabet = {chr(_FIRST + i) for i in place.values()}

    def lettered() -> Iterator[str]:
        for word, count in words.items():
            if all(character in place for character in word):
                first, *others = (place[character] for character in word)
                letters = chr(_FIRST + first) + "".join(chr(_OTHER + i) for i in others)
                alphabet.update(letters)
                for done in range(0, count, _REPEATED_AT_ONCE):
                    yield f"{letters} " * min(_REPEATED_AT_ONCE, count - done)

    lines = list(lettered())
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(lines, _bpe_trainer(config, sorted(alphabet)))

    def spelled(piece: str) -> str:
        if piece in _SPECIALS:
            return piece
        mark = "##" if ord(piece[0]) >= _OTHER else ""
        return mark + "".join(
            kept[ord(c) - (_OTHER if ord(c) >= _OTHER else _FIRST)] for c in piece
        )

    vocabulary = {spelled(piece): index for piece, index in inner.get_vocab().items()}
    made = wordpiece(vocabulary, config.lowercase)
    made.add_special_tokens(_SPECIALS)
    return made


def _words(texts: Iterable[str], lowercase: bool) -> dict[str, int]:
    """Counts words as WordPiece splits them."""
    basic = wordpiece({"[UNK]": 0}, lowercase)
    normalizer, pre_tokenizer = basic.normalizer, basic.pre_tokenizer
    words: collections.Counter[str] = collections.Counter()
    for text in texts:
        normal = normalizer.normalize_str(text)
        words.update([word for word, _ in pre_tokenizer.pre_tokenize_str(normal)])
    return words


def _bpe_trainer(config: TokenizerConfig, alphabet: list[str]) -> trainers.Trainer:
    return trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_SPECIALS,
        initial_alphabet=alphabet,
        show_progress=False,
    )


def _bpe(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    if config.lowercase:
        inner.normalizer = normalizers.BertNormalizer(clean_text=False, lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(texts, _bpe_trainer(config, alphabet))
    return inner


def _unigram(texts: Iterable[str], config: TokenizerConfig) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.Unigram())
    steps = [
        normalizers.Nmt(),
        normalizers.NFKC(),
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
    ]
    if config.lowercase:
        steps.append(normalizers.BertNormalizer(clean_text=False, lowercase=True))
    inner.normalizer = normalizers.Sequence(steps)
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size,
        special_tokens=_SPECIALS,
        unk_token="[UNK]",
        show_progress=False,
    )
    try:
        inner.train_from_iterator(texts, trainer)
    except Exception as error:
        if "not large enough" not in str(error):
            raise
        raise ConfigError(
            f"config.data.tokenizer.vocab_size: {config.vocab_size} is too small for the corpus's"
            " characters; increase it, or use kind 'bpe'"
        ) from error
    pieces = json.loads(inner.to_str())["model"]["vocab"]
    # A new tokenizer, since the trained one keeps the special token ids of the old order.
    made = tokenizers.Tokenizer(models.Unigram(_in_order(pieces), unk_id=_SPECIALS.index("[UNK]")))
    made.normalizer, made.pre_tokenizer = inner.normalizer, inner.pre_tokenizer
    made.decoder = inner.decoder
    made.add_special_tokens(_SPECIALS)
    return made


def _in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sorts pieces by score, after removing the effects of hash map order on the scores.

    Sums differ in the eleventh digit, so scores are rounded. Training adds dropped characters
    back, in arbitrary order, at the lowest score plus 0.0001 each; they get the lowest score here.
    """
    special = [(piece, 0.0) for piece in _SPECIALS]
    normal = [(piece, score) for piece, score in pieces if piece not in _SPECIALS]
    lowest = min(score for _, score in normal)
    put_back = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in normal)
    rounded = [
        (piece, round(lowest if len(piece) == 1 and score <= put_back else score, 3))
        for piece, score in normal
    ]
    return special + sorted(rounded, key=lambda entry: (-entry[1], entry[0]))


_TRAIN = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}
