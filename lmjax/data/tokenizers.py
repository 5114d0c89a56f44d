"""Tokenizers, trained (see tokenizer_training.py) or loaded, all with the same six roles.

On Hugging Face's `tokenizers`. Whatever objective reads them, ids have the roles pad,
unk, cls, sep, mask and eod; a loaded tokenizer that lacks one gets a token for it.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import string
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lmjax.configuration import Interval, check_ranges
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError

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

    Attributes:
      roles: 'pad', 'unk', 'cls', 'sep', 'mask', 'eod' -> id.
      fingerprint: changes when any id does.
      as_loaded: the tokenizer.json without tokens that were added for roles.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        self._inner = inner
        self.as_loaded = inner.to_str()
        inner.no_padding()
        inner.no_truncation()
        missing = {role: names[0] for role, names in ROLES.items() if not self._find(names)}
        if missing:
            inner.add_special_tokens(list(missing.values()))
            logging.getLogger(__name__).info("tokens added: %s", ", ".join(missing.values()))
        self.roles = {role: self._id(names) for role, names in ROLES.items()}
        self.fingerprint = hashlib.blake2b(inner.to_str().encode(), digest_size=16).hexdigest()

    def _find(self, names: Sequence[str]) -> str | None:
        return next((n for n in names if self._inner.token_to_id(n) is not None), None)

    def _id(self, names: Sequence[str]) -> int:
        return next(i for n in names if (i := self._inner.token_to_id(n)) is not None)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._inner.get_vocab_size(with_added_tokens=True)

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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32 [tokens]; on all cores."""
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids of each text, int32 [tokens], and which characters each token is, [tokens, 2].

        A token of byte-level BPE or SentencePiece may begin with the space before it.
        """
        encoded = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.asarray(e.ids, np.int32), np.asarray(e.offsets, np.int32).reshape(-1, 2))
            for e in encoded
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens written out."""
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, index: int) -> str:
        """The piece with an id."""
        return self._inner.id_to_token(int(index)) or ""

    def save(self, path: str | pathlib.Path) -> None:
        """Writes a tokenizer.json that `load_tokenizer` and `transformers` read."""
        self._inner.save(str(path))

    def vocabulary(self, counts: np.ndarray) -> Vocabulary:
        """What objectives need to know, with `counts` [size] of the training tokens."""
        special = np.zeros(self.size, bool)
        special[list(self.roles.values())] = True
        for index, token in self._inner.get_added_tokens_decoder().items():
            special[index] |= token.special
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
    if not place.exists():
        raise ConfigError(f"{where}: no such file '{path}'; give a tokenizer.json or ''")
    if place.is_dir():
        found = [place / name for name in ("tokenizer.json", "vocab.txt", "vocab.json")]
        place = next((file for file in found if file.exists()), place)
    try:
        if place.name.endswith("vocab.txt"):
            return Tokenizer(_from_bert(place, lowercase))
        if place.name == "vocab.json":
            return Tokenizer(_from_gpt2(place))
        if place.is_file():
            json.loads(place.read_text(encoding="utf-8"))
            return Tokenizer(tokenizers.Tokenizer.from_file(str(place)))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where}: '{place}' is no tokenizer ({first})") from error
    raise ConfigError(f"{where}: '{path}' holds no tokenizer.json, vocab.txt or vocab.json")


def wordpiece(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's: basic tokenization, then the longest piece that fits."""
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


def _from_bert(path: pathlib.Path, lowercase: bool) -> tokenizers.Tokenizer:
    # Not splitlines: the separators that it knows beside \n may be tokens themselves.
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    inner = wordpiece({token: i for i, token in enumerate(tokens)}, lowercase)
    inner.add_special_tokens([t for t in ROLES["cls"] + ROLES["sep"] if t in tokens])
    return inner


def _from_gpt2(path: pathlib.Path) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE.from_file(str(path), str(path.with_name("merges.txt"))))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return inner
