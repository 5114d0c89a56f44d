"""Tokenizers, trained (see tokenizer_training.py) or loaded, all with the same six roles.

On Hugging Face's `tokenizers`. Whatever objective reads them, ids have the roles pad,
unk, cls, sep, mask and eod; a loaded tokenizer that lacks one gets a token for it.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
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

# What plays each role in the tokenizers that people use, the first that is there. Our own
# come first; then BERT, XLNet, RoBERTa, GPT-2.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "eod": ("[EOD]", "<eod>", "<|endoftext|>"),
}
_SPACE, _BYTE_SPACE, _CONTINUES = "▁", "Ġ", "##"
_MOST_BYTES = 64 << 20  # of a file; published vocabularies of 260,000 tokens have 35 MB
_MOST_IDS = 1 << 20  # published vocabularies end at 900,000
_MOST_ADDED = 1 << 16  # and have a few thousand added tokens


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer.

    Attributes:
      path: a tokenizer.json, or a directory that holds one (or a BERT vocab.txt, or GPT-2's
        vocab.json and merges.txt); '' trains one on the corpus.
      kind: of a trained one: 'wordpiece' (BERT), 'bpe' (byte-level, GPT-2) or 'unigram'
        (SentencePiece's, XLNet).
      vocab_size: of a trained one, special tokens included; fewer where the corpus has
        no more.
      lowercase: of a trained one, and of a vocab.txt: lower case, accents stripped.
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
            raise ConfigError(f"vocab_size: {self.vocab_size} is too few; bpe needs at least 300")


class Tokenizer:
    """Text to ids and back, without special tokens added.

    Text is text: where it spells a special token out, such as '[MASK]', it is read in letters,
    unless the caller asks otherwise. Of the special ids, plain text gives at most that of `unk`.

    Attributes:
      roles: 'pad', 'unk', 'cls', 'sep', 'mask', 'eod' -> id.
      size: the largest id + 1.
      fingerprint: changes when any id does.
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
        # Those that say so, and those that play a role, by id.
        tokens = inner.get_added_tokens_decoder().items()
        self._special = {index: token.content for index, token in tokens if token.special}
        self._special |= {ids[name]: name for name in names.values()}
        self.fingerprint = hashlib.blake2b(inner.to_str().encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same ids, with special tokens spelt as no text spells them.

        The library's own `encode_special_tokens` leaves a special token to the model, and a
        model whose vocabulary has it (XLNet's '<mask>') makes the special id of it again.
        """
        return respelt(self._inner, self._special.values())

    def to_json(self, rows: int) -> str:
        """The tokenizer.json of a model whose table has so many rows.

        Tokens that were added for roles are in it as far as the table has rows for them.
        """
        inner = tokenizers.Tokenizer.from_str(self._as_loaded)
        inner.add_special_tokens([t for t in self._missing if (self.token_id(t) or 0) < rows])
        return inner.to_str()

    def with_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """A copy that has these special tokens too, behind all others where they are new.

        Those that were added for roles belong to it as if it had been loaded with them.
        """
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        inner.add_special_tokens(list(tokens))
        return Tokenizer(inner)

    def token_id(self, token: str) -> int | None:
        """The id of a piece, None where there is no such piece."""
        return self._inner.token_to_id(token)

    @property
    def kind(self) -> str:
        """What makes tokens of words: 'WordPiece', 'BPE', 'Unigram' or 'WordLevel'."""
        return type(self._inner.model).__name__

    def encode_batch(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[np.ndarray]:
        """Ids of each text, int32 [tokens]; on all cores.

        Args:
          special_tokens: whether '[MASK]' in a text is the special token, as in a prompt.

        Raises:
          ConfigError: a text that cannot be read, named.
        """
        inner = self._inner if special_tokens else self._plain
        with named(texts):
            encoded = inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids of each text, int32 [tokens], and which characters each token is, [tokens, 2].

        A token of byte-level BPE or SentencePiece may begin with the space before it. Special
        tokens and errors are as those of `encode_batch`.
        """
        with named(texts):
            encoded = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.asarray(e.ids, np.int32), np.asarray(e.offsets, np.int32).reshape(-1, 2))
            for e in encoded
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens written out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, index: int) -> str:
        """The piece with an id."""
        return self._special.get(int(index)) or self._inner.id_to_token(int(index)) or ""

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a tokenizer.json that `load_tokenizer` and `transformers` read."""
        self._inner.save(str(path))

    def vocabulary(self, counts: np.ndarray) -> Vocabulary:
        """What objectives need to know, with `counts` [size] of the training tokens."""
        special = np.zeros(self.size, bool)
        special[list(self._special)] = True
        pieces = [self.token(i) for i in range(self.size)]
        continues = isinstance(self._inner.model, models.WordPiece)
        starts = np.array([_starts_word(piece, continues) for piece in pieces]) | special
        smoothed = np.asarray(counts, np.float64) + 1.0
        return Vocabulary(
            size=self.size,
            **self.roles,
            special=special,
            starts_word=starts,
            log_frequency=np.log(smoothed / smoothed.sum()).astype(np.float32),
        )


def _first(inner: tokenizers.Tokenizer, names: Sequence[str]) -> str | None:
    """The first of the tokens that there is."""
    return next((name for name in names if inner.token_to_id(name) is not None), None)


def _starts_word(piece: str, continues: bool) -> bool:
    """Whether a piece begins a word: XLNet's `_is_start_piece`, and WordPiece's own mark."""
    if continues:
        return not piece.startswith(_CONTINUES)
    return piece[:1] in (_SPACE, _BYTE_SPACE, "<", "Ċ", "ĉ") or piece[:1] in string.punctuation


def load_tokenizer(
    path: str, lowercase: bool = True, where: str = "config.data.tokenizer.path"
) -> Tokenizer:
    """Loads a tokenizer.json, or a directory with one, with vocab.txt, or with GPT-2's files.

    Raises:
      ConfigError: nothing there that can be read.
    """
    place = pathlib.Path(path)
    if not os.path.exists(place):  # which is False, too, where one may not look
        raise ConfigError(f"{where}: no such file '{path}'; give a tokenizer.json or ''")
    if place.is_dir():
        found = [place / name for name in ("tokenizer.json", "vocab.txt", "vocab.json")]
        place = next((file for file in found if file.exists()), place)
    if not place.is_file():
        raise ConfigError(f"{where}: '{path}' holds no tokenizer.json, vocab.txt or vocab.json")
    try:
        if place.name.endswith("vocab.txt"):
            return Tokenizer(_from_bert(place, lowercase))
        if place.name == "vocab.json":
            return Tokenizer(_from_gpt2(place))
        return Tokenizer(_from_json(_read(place)))
    except BaseException as error:
        if not is_refusal(error):
            raise
        raise ConfigError(f"{where}: '{place}' is no tokenizer ({first_line(error)})") from error


def _read(path: pathlib.Path) -> str:
    """The text of a file, without a byte order mark; a line may end as on Windows."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB, which no vocabulary needs")
    return data.decode().removeprefix("\ufeff").replace("\r\n", "\n")


def _from_json(text: str) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, after what the library takes without a word."""
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
        raise ValueError(f"its 'vocab' is no map, and no list of at most {_MOST_IDS:,} pieces")
    added = values.get("added_tokens") or []
    if len(added) > _MOST_ADDED:
        raise ValueError(f"it has more than {_MOST_ADDED:,} added tokens")
    unknown = _unknown(model)
    playing = [role for role, names in ROLES.items() if unknown in names and role != "unk"]
    if playing and "ByteLevel" not in text:  # which knows every byte
        raise ValueError(
            f"its token for what is unknown is {unknown!r}, which is that for {playing[0]}"
        )
    inner = tokenizers.Tokenizer.from_str(text)
    # The library gives added tokens the next ids, whatever the file says.
    for token in added:
        index = inner.token_to_id(token["content"])
        if index != token["id"]:
            raise ValueError(
                f"the added token {token['content']!r} has id {token['id']} there, and {index} by"
                " its place; ids count on from the vocabulary's without gaps"
            )
    return inner


def _whole(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """A vocabulary with tokens that no text has at the ids that it leaves out.

    The library takes the number of tokens for the next id.
    """
    if not vocabulary:
        raise ValueError("no tokens in it")
    tokens: dict[int, str] = {}
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < _MOST_IDS:
            raise ValueError(f"the token {token!r} has id {index!r}, not one below {_MOST_IDS:,}")
        if index in tokens:
            raise ValueError(f"the tokens {tokens[index]!r} and {token!r} both have id {index}")
        tokens[index] = token
    gaps = [i for i in range(max(tokens) + 1) if i not in tokens]
    if len(gaps) > len(tokens):
        raise ValueError(
            f"of its {len(gaps) + len(tokens):,} ids only {len(tokens):,} have a token"
        )
    return {**vocabulary, **{f"[no token {i}]": i for i in gaps}}


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token that a model puts where it knows none, of the 'model' in a tokenizer.json."""
    if isinstance(model["vocab"], dict):
        return model.get("unk_token")
    index = model.get("unk_id")
    return None if index is None else model["vocab"][index][0]


def wordpiece(
    vocabulary: dict[str, int], lowercase: bool, unknown: str = "[UNK]"
) -> tokenizers.Tokenizer:
    """BERT's: basic tokenization, then the longest piece that fits."""
    model = models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=200)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _from_bert(path: pathlib.Path, lowercase: bool) -> tokenizers.Tokenizer:
    # Not splitlines: the separators that it knows beside \n may be tokens themselves.
    lines = _read(path).split("\n")
    # An empty line has a number and no token; of two alike the last counts, as in BERT's own.
    vocabulary = {token: i for i, token in enumerate(lines) if token}
    twice = sum(map(bool, lines)) - len(vocabulary)
    if twice:
        logging.getLogger(__name__).warning(
            "%s: %d lines repeat a token; its last line is its id", path, twice
        )
    unknown = next((name for name in ROLES["unk"] if name in vocabulary), None)
    if unknown is None:
        raise ValueError("no line '[UNK]', for words that its pieces do not spell")
    return wordpiece(_whole(vocabulary), lowercase, unknown)


def _from_gpt2(path: pathlib.Path) -> tokenizers.Tokenizer:
    vocabulary = json.loads(_read(path))
    if not isinstance(vocabulary, dict):
        raise ValueError("no JSON object")
    merges = path.with_name("merges.txt")
    if not merges.is_file():
        raise ValueError("no merges.txt beside it")
    pairs = []
    for number, line in enumerate(_read(merges).split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"merges.txt:{number}: {line!r} is no pair of pieces")
        pairs.append((pair[0], pair[1]))
    inner = tokenizers.Tokenizer(models.BPE(_whole(vocabulary), pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return inner
