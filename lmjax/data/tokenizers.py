"""Tokenizers, trained (see tokenizer_training.py) or loaded, all with the same six roles.

They are based on Hugging Face's `tokenizers`. For every objective, special tokens have the roles
pad, unk, cls, sep, mask and eod; a token is added for each role that a loaded tokenizer lacks.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmjax.configuration import Interval, check_ranges
from lmjax.data.plain_text import is_refusal, named, respelt
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError, first_line

Kind = Literal["wordpiece", "bpe", "unigram"]

# Tokens that may play each role in common tokenizers; the first one that exists is used. Our own
# come first, then those of BERT, XLNet, RoBERTa and GPT-2.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eod": ("[EOD]", "<eod>", "<|endoftext|>"),
}
_SPACE, _BYTE_SPACE, _CONTINUES = "▁", "Ġ", "##"
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese and Khmer (except for vowels
# that follow a consonant), and Han and kana with their punctuation.
_CLAUSE_LETTER = re.compile(
    r"[\u0e01-\u0e2e\u0e40-\u0e44\u0e81-\u0eae\u0ec0-\u0ec4\u0edc-\u0edf\u0f40-\u0f6c"
    r"\u1000-\u102a\u1780-\u17b3]"
)
_IDEOGRAPH = re.compile(
    r"[\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20"
    r"\uff61-\uff9f\U00020000-\U0003ffff]"
)
# GPT-2's spelling of bytes: printable Latin-1 characters as they are, others from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE}
_BYTES |= {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - {*_PRINTABLE}))}
_MOST_BYTES = 64 << 20  # per file; published vocabularies of 260,000 tokens have 35 MB
_MOST_IDS = 1 << 20  # published vocabularies have up to 900,000
_MOST_ADDED = 1 << 16  # published vocabularies have a few thousand


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Config of a tokenizer.

    Attributes:
      path: a tokenizer.json, or a directory that contains one (or a BERT vocab.txt, or GPT-2's
        vocab.json and merges.txt); '' trains a tokenizer on the corpus.
      kind: kind of a trained tokenizer: 'wordpiece' (BERT), 'bpe' (byte-level, GPT-2) or
        'unigram' (SentencePiece, XLNet).
      vocab_size: size of a trained tokenizer, including special tokens; small corpora give fewer.
      lowercase: whether a trained tokenizer or a vocab.txt lowercases text and strips accents.
    """

    path: str = ""
    kind: Kind = "wordpiece"
    vocab_size: Annotated[int, Interval("[100, 2**24]")] = 8192
    lowercase: bool = True

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kind not in ("wordpiece", "bpe", "unigram"):
            raise ConfigError(f"kind: '{self.kind}' is not one of wordpiece, bpe, unigram")
        if self.kind == "bpe" and self.vocab_size < 300:
            raise ConfigError(f"vocab_size: {self.vocab_size} is too small; bpe needs at least 300")


class Tokenizer:
    """Converts text to ids and back, without adding special tokens.

    A special token that is spelled out in text, such as '[MASK]', is read as ordinary characters
    unless the caller requests otherwise. Plain text gives no special id except that of `unk`.

    Attributes:
      roles: 'pad', 'unk', 'cls', 'sep', 'mask', 'eod' -> id.
      size: the largest id + 1.
      fingerprint: string that changes when any id changes.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        inner.no_padding()
        inner.no_truncation()
        found = {role: _first(inner, names) for role, names in ROLES.items()}
        added = {token.content for token in inner.get_added_tokens_decoder().values()}
        inner.add_special_tokens([name for name in found.values() if name and name not in added])
        self._as_loaded = inner.to_str()
        self._missing = [ROLES[role][0] for role, name in found.items() if name is None]
        if self._missing:
            inner.add_special_tokens(self._missing)
            logging.getLogger(__name__).info("tokens added: %s", ", ".join(self._missing))
        self._inner = inner
        ids = inner.get_vocab(with_added_tokens=True)
        names = {role: name or ROLES[role][0] for role, name in found.items()}
        self.roles = {role: ids[name] for role, name in names.items()}
        self.size = 1 + max(ids.values())
        # Tokens that are marked as special, and those with a role, by id.
        tokens = inner.get_added_tokens_decoder().items()
        self._special = {index: token.content for index, token in tokens if token.special}
        self._special |= {ids[name]: name for name in names.values()}
        self.fingerprint = hashlib.blake2b(inner.to_str().encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A tokenizer with the same ids whose special tokens cannot occur in text.

        The library's `encode_special_tokens` passes a special token to the model as text, but a
        model whose vocabulary contains it (XLNet's '<mask>') still gives the special id.
        """
        return respelt(self._inner, self._special.values())

    def to_json(self, rows: int) -> str:
        """Returns the tokenizer.json of a model whose token table has `rows` rows.

        It includes tokens that were added for roles if the table has rows for them.
        """
        inner = tokenizers.Tokenizer.from_str(self._as_loaded)
        inner.add_special_tokens([t for t in self._missing if (self.token_id(t) or 0) < rows])
        return inner.to_str()

    def with_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """Returns a copy with additional special tokens; new ones get the highest ids.

        Tokens that were added for roles count as loaded in the copy.
        """
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        inner.add_special_tokens(list(tokens))
        return Tokenizer(inner)

    def token_id(self, token: str) -> int | None:
        """Returns the id of a piece, or None if it does not exist."""
        return self._inner.token_to_id(token)

    @property
    def kind(self) -> str:
        """Kind of the model: 'WordPiece', 'BPE', 'Unigram' or 'WordLevel'."""
        return type(self._inner.model).__name__

    def encode_batch(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[np.ndarray]:
        """Returns the ids of each text, int32 [tokens], computed on all cores.

        Args:
          special_tokens: whether '[MASK]' in a text is the special token, as in a prompt.

        Raises:
          ConfigError: a text is not valid; the message names it.
        """
        inner = self._inner if special_tokens else self._plain
        with named(texts):
            encoded = inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns ids of each text, int32 [tokens], and character ranges, [tokens, 2].

        A token of byte-level BPE or SentencePiece may include the preceding space. Special tokens
        and errors are as in `encode_batch`.
        """
        with named(texts):
            encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.asarray(e.ids, np.int32), np.asarray(e.offsets, np.int32).reshape(-1, 2))
            for e in encoded
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Converts ids to text, with special tokens spelled out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, index: int) -> str:
        """Returns the piece of an id."""
        return self._special.get(int(index)) or self._inner.id_to_token(int(index)) or ""

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a tokenizer.json for `load_tokenizer` and `transformers`."""
        self._inner.save(str(path))

    def vocabulary(self, counts: np.ndarray) -> Vocabulary:
        """Returns the vocabulary for objectives. counts: [size], of the training tokens."""
        special = np.zeros(self.size, bool)
        special[list(self._special)] = True
        pieces = [self.token(i) for i in range(self.size)]
        if self.kind == "WordPiece":
            starts = np.array([_starts_wordpiece(piece) for piece in pieces])
        else:
            read = _first_of_bytes if '"type":"ByteLevel"' in self._as_loaded else str
            starts = np.array([_starts_piece(piece, read(piece)) for piece in pieces])
        smoothed = np.asarray(counts, np.float64) + 1.0
        return Vocabulary(
            size=self.size,
            **self.roles,
            special=special,
            starts_word=starts | special,
            log_frequency=np.log(smoothed / smoothed.sum()).astype(np.float32),
        )


def _first(inner: tokenizers.Tokenizer, names: Sequence[str]) -> str | None:
    """Returns the first token that exists, or None."""
    return next((name for name in names if inner.token_to_id(name) is not None), None)


def _starts_wordpiece(piece: str) -> bool:
    """Whether a piece begins a word: the '##' rule, except in scripts without spaces.

    Han characters need no exception, since BERT makes each of them a word.
    """
    rest = piece.removeprefix(_CONTINUES)
    return rest == piece or bool(_CLAUSE_LETTER.match(rest))


def _starts_piece(piece: str, text: str) -> bool:
    """Whether a piece begins a word: XLNet's `_is_start_piece`, or a script without spaces.

    text: what the piece spells, at least its first character.
    """
    first = piece[:1]
    if first in (_SPACE, _BYTE_SPACE, "<", "Ċ", "ĉ") or first in string.punctuation:
        return True
    return bool(_CLAUSE_LETTER.match(text) or _IDEOGRAPH.match(text))


def _first_of_bytes(piece: str) -> str:
    """Returns the first character of a byte-level piece, or one of its script if it is cut off."""
    try:
        data = bytes(_BYTES[character] for character in piece)
    except KeyError:  # an added token, which is text
        return piece
    # The first of three bytes tells Han and kana from other scripts.
    return (data[:4] + b"\x81" * (3 - len(data))).decode(errors="replace")


def load_tokenizer(
    path: str, lowercase: bool = True, where: str = "config.data.tokenizer.path"
) -> Tokenizer:
    """Loads a tokenizer.json, or a directory with one, with vocab.txt, or with GPT-2's files.

    Raises:
      ConfigError: there is no readable tokenizer at `path`.
    """
    place = pathlib.Path(path)
    if not os.path.exists(place):  # also False without permission to look
        raise ConfigError(f"{where}: no such file '{path}'; give a tokenizer.json or ''")
    if place.is_dir():
        found = [place / name for name in ("tokenizer.json", "vocab.txt", "vocab.json")]
        place = next((file for file in found if file.exists()), place)
    if not place.is_file():
        raise ConfigError(f"{where}: '{path}' has no tokenizer.json, vocab.txt or vocab.json")
    try:
        if place.name.endswith("vocab.txt"):
            return Tokenizer(_from_bert(place, lowercase))
        if place.name == "vocab.json":
            return Tokenizer(_from_gpt2(place))
        return Tokenizer(_from_json(_read(place)))
    except BaseException as error:
        if not is_refusal(error):
            raise
        raise ConfigError(f"{where}: '{place}' is not a tokenizer ({first_line(error)})") from error


def _read(path: pathlib.Path) -> str:
    """Reads a text file without its byte order mark, converting CRLF to LF."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB, too large for a vocabulary")
    return data.decode().removeprefix("\ufeff").replace("\r\n", "\n")


def _from_json(text: str) -> tokenizers.Tokenizer:
    """Builds a tokenizer from tokenizer.json, checking what the library silently accepts."""
    values = json.loads(text)
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict) or not model.get("vocab"):
        raise ValueError("it has no 'model' with a 'vocab'")
    if isinstance(model["vocab"], dict):
        whole = _whole(model["vocab"])
        if len(whole) > len(model["vocab"]):
            model["vocab"] = whole
            text = json.dumps(values)
    elif not isinstance(model["vocab"], list) or len(model["vocab"]) > _MOST_IDS:
        raise ValueError(f"its 'vocab' is neither a map nor a list of at most {_MOST_IDS:,} pieces")
    added = values.get("added_tokens") or []
    if len(added) > _MOST_ADDED:
        raise ValueError(f"it has more than {_MOST_ADDED:,} added tokens")
    unknown = _unknown(model)
    playing = [role for role, names in ROLES.items() if unknown in names and role != "unk"]
    if playing and "ByteLevel" not in text:  # which has no unknown bytes
        raise ValueError(
            f"its unknown token is {unknown!r}, which is also the token for {playing[0]}"
        )
    inner = tokenizers.Tokenizer.from_str(text)
    # The library gives added tokens consecutive ids, ignoring those in the file.
    for token in added:
        index = inner.token_to_id(token["content"])
        if index != token["id"]:
            raise ValueError(
                f"the added token {token['content']!r} has id {token['id']}, but {index} by its"
                " position; ids must follow the vocabulary's without gaps"
            )
    return inner


def _whole(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Fills gaps in the ids of a vocabulary with tokens that cannot occur in text.

    The library assumes that the next id is the number of tokens.
    """
    if not vocabulary:
        raise ValueError("it has no tokens")
    tokens: dict[int, str] = {}
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < _MOST_IDS:
            raise ValueError(f"the token {token!r} has id {index!r}, not below {_MOST_IDS:,}")
        if index in tokens:
            raise ValueError(f"the tokens {tokens[index]!r} and {token!r} both have id {index}")
        tokens[index] = token
    gaps = [i for i in range(max(tokens) + 1) if i not in tokens]
    if len(gaps) > len(tokens):
        raise ValueError(
            f"only {len(tokens):,} of its {len(gaps) + len(tokens):,} ids have a token"
        )
    return {**vocabulary, **{f"[no token {i}]": i for i in gaps}}


def _unknown(model: Mapping[str, Any]) -> str | None:
    """Returns the unknown token of the 'model' in a tokenizer.json, or None."""
    if isinstance(model["vocab"], dict):
        return model.get("unk_token")
    index = model.get("unk_id")
    return None if index is None else model["vocab"][index][0]


def wordpiece(
    vocabulary: dict[str, int], lowercase: bool, unknown: str = "[UNK]"
) -> tokenizers.Tokenizer:
    """Builds BERT's tokenizer: basic tokenization, then longest-match pieces."""
    model = models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=200)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _from_bert(path: pathlib.Path, lowercase: bool) -> tokenizers.Tokenizer:
    # Not splitlines, since its separators other than \n may be tokens.
    lines = _read(path).split("\n")
    # An empty line takes an id without a token; the last of duplicate lines counts, as in BERT.
    vocabulary = {token: i for i, token in enumerate(lines) if token}
    twice = sum(map(bool, lines)) - len(vocabulary)
    if twice:
        logging.getLogger(__name__).warning(
            "%s: %d lines repeat a token; the last line gives its id", path, twice
        )
    unknown = next((name for name in ROLES["unk"] if name in vocabulary), None)
    if unknown is None:
        raise ValueError("it has no line '[UNK]' for unknown words")
    return wordpiece(_whole(vocabulary), lowercase, unknown)


def _from_gpt2(path: pathlib.Path) -> tokenizers.Tokenizer:
    vocabulary = json.loads(_read(path))
    if not isinstance(vocabulary, dict):
        raise ValueError("not a JSON object")
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise ValueError("no merges.txt next to it")
    pairs = []
    for number, line in enumerate(_read(merges).split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"merges.txt:{number}: {line!r} is not a pair of pieces")
        pairs.append((pair[0], pair[1]))
    inner = tokenizers.Tokenizer(models.BPE(_whole(vocabulary), pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if "<mask>" in vocabulary:  # RoBERTa's token includes the space before it
        inner.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    else:
        inner.add_special_tokens(["<|endoftext|>"])
    return inner
