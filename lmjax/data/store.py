"""Token ids on disk: computed once, cached by a content hash, and memory-mapped."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self

import numpy as np

from lmjax.data.cache import prepared
from lmjax.data.corpora import Corpus, check_corpus, open_corpus
from lmjax.data.sentences import RULES_VERSION, split_sentences
from lmjax.data.tokenizer_training import TRAINING_VERSION, train_tokenizer
from lmjax.data.tokenizers import Tokenizer, TokenizerConfig, load_tokenizer
from lmjax.errors import ConfigError
from lmjax.host import cache_directory
from lmjax.progress import track

_VERSION = 2  # version of the file format and of the text that tokenizers read
_MANIFEST = "manifest.json"
_ARRAYS = ("tokens", "sentence_offsets", "document_offsets", "counts")
_DOCUMENTS_A_CHUNK = 512
# Signs of text that was damaged or decoded wrongly before it came here.
_ODD_CHARACTERS = {"\0": "NUL characters", "\ufffd": "replacement characters (U+FFFD)"}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Config of text and its tokenizer.

    Attributes:
      corpus: 'pydocs', a path or glob of text files or JSON lines, a TFDS name, or a block with the
        type and the fields of a `CorpusReader`; see `open_corpus`.
      validation_corpus: a corpus, in the same format, used entirely as held-out text; '' uses the
        validation split of `corpus`.
      text_feature: the column of JSON lines, or the TFDS feature, that contains the text.
      tokenizer: a tokenizer to train on the training split, or to load.
      cache_dir: directory of prepared data; '' = $LMJAX_CACHE or ~/.cache/lmjax.
    """

    corpus: str | Mapping[str, Any] = "pydocs"
    validation_corpus: str | Mapping[str, Any] = ""
    text_feature: str = "text"
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    cache_dir: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """The token ids of one split, without special tokens.

    Attributes:
      tokens: uint16 or uint32 [tokens].
      sentence_offsets: int64 [sentences + 1] into tokens.
      document_offsets: int64 [documents + 1] into sentences.
      document_token_offsets: int64 [documents + 1] into tokens.
      counts: int64 [vocabulary], number of occurrences of each id.
      bytes, words: number of UTF-8 bytes and of white-space-separated words in the text.
      fingerprint: hash of the text, the tokenizer and the sentence splitting rule.
    """

    tokens: np.ndarray
    sentence_offsets: np.ndarray
    document_offsets: np.ndarray
    document_token_offsets: np.ndarray
    counts: np.ndarray
    bytes: int
    words: int
    fingerprint: str

    @property
    def n_documents(self) -> int:
        return len(self.document_offsets) - 1

    @property
    def n_sentences(self) -> int:
        return len(self.sentence_offsets) - 1

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, directory: pathlib.Path) -> Self | None:
        """Opens the store in `directory`; returns None if it is missing or incomplete."""
        try:
            manifest = json.loads((directory / _MANIFEST).read_text())
            for name in _ARRAYS:
                if (directory / name).stat().st_size != manifest["sizes"][name]:
                    return None
        except (OSError, ValueError, KeyError, TypeError):
            return None

        def array(name: str, dtype: str) -> np.ndarray:
            if not manifest["sizes"][name]:
                return np.zeros(0, dtype)
            return np.memmap(directory / name, dtype, "r")

        offsets = array("sentence_offsets", "int64")
        documents = array("document_offsets", "int64")
        return cls(
            tokens=array("tokens", manifest["dtype"]),
            sentence_offsets=offsets,
            document_offsets=documents,
            document_token_offsets=np.asarray(offsets)[documents],
            counts=np.asarray(array("counts", "int64")),
            bytes=manifest["bytes"],
            words=manifest["words"],
            fingerprint=manifest["fingerprint"],
        )


def check_data(config: DataConfig) -> None:
    """Checks, within seconds, that the text and the tokenizer exist.

    Raises:
      ConfigError: see `check_corpus` and `load_tokenizer`.
    """
    options = {"cache_dir": config.cache_dir, "text_feature": config.text_feature}
    check_corpus(config.corpus, **options)
    if config.validation_corpus:
        check_corpus(config.validation_corpus, "config.data.validation_corpus", **options)
    if config.tokenizer.path:
        load_tokenizer(config.tokenizer.path, config.tokenizer.lowercase)


def prepare(
    config: DataConfig, splits: Sequence[str] = ("train", "validation")
) -> tuple[Tokenizer, dict[str, TokenStore]]:
    """Returns the tokenizer and the token ids of each split, cached or newly computed.

    Raises:
      ConfigError: the corpus is not available, or one of its splits is empty.
    """
    corpora = {split: open_split(config, split) for split in splits}
    train = corpora.get("train") or open_split(config, "train")
    tokenizer = _tokenizer(config, train)
    return tokenizer, {
        split: _store(config, corpus, tokenizer, split) for split, corpus in corpora.items()
    }


def open_split(config: DataConfig, split: str) -> Corpus:
    """Opens the documents of a split, 'train' or 'validation'."""
    options = {"text_feature": config.text_feature, "cache_dir": config.cache_dir}
    if split == "validation" and config.validation_corpus:
        where = "config.data.validation_corpus"
        return open_corpus(config.validation_corpus, "all", where=where, **options)
    whole = split == "train" and bool(config.validation_corpus)
    return open_corpus(config.corpus, "all" if whole else split, **options)


def _tokenizer(config: DataConfig, corpus: Corpus) -> Tokenizer:
    chosen = config.tokenizer
    if chosen.path:
        return load_tokenizer(chosen.path, chosen.lowercase)
    key = _hash(
        corpus.fingerprint, chosen.kind, chosen.vocab_size, chosen.lowercase, TRAINING_VERSION
    )
    path = cache_directory(config.cache_dir) / "tokenizers" / f"{key}.json"

    def read() -> Tokenizer | None:
        with contextlib.suppress(ConfigError):  # missing or incomplete
            return load_tokenizer(str(path))
        return None

    def make() -> None:
        texts = track(corpus.documents(), "training the tokenizer", corpus.size)
        tokenizer = train_tokenizer(_not_empty(texts, corpus), chosen)
        written = _beside(path)
        try:
            tokenizer.save(written)
            with written.open("rb") as file:
                _sync(file)
            os.replace(written, path)
        finally:
            written.unlink(missing_ok=True)

    return prepared(path, read, make)


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Returns a new sibling path of `path`; files there get the permissions of the umask."""
    return path.with_name(f"{path.name}-{secrets.token_hex(8)}")


def _not_empty(texts: Iterable[str], corpus: Corpus) -> Iterator[str]:
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ConfigError(
            f"config.data.corpus: '{corpus.name}' has no documents; give a corpus with text"
        )
    return itertools.chain([first], texts)


def _store(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, split: str) -> TokenStore:
    fingerprint = _hash(corpus.fingerprint, tokenizer.fingerprint, RULES_VERSION, _VERSION)
    directory = cache_directory(config.cache_dir) / "tokens" / fingerprint
    store = prepared(
        directory,
        lambda: TokenStore.open(directory),
        lambda: _write(directory, corpus, tokenizer, fingerprint, split),
    )
    if not len(store.tokens):
        field = "validation_corpus" if split == "validation" else "corpus"
        raise ConfigError(
            f"config.data.{field}: the {split} split of '{corpus.name}' is empty; give more text"
            + (" or a config.data.validation_corpus" if split == "validation" else "")
        )
    return store


def _write(
    directory: pathlib.Path, corpus: Corpus, tokenizer: Tokenizer, fingerprint: str, split: str
) -> None:
    """Writes the store to a temporary directory and moves it into place atomically.

    A killed process leaves a directory with a temporary name, which is never opened. Without
    locks, two processes may each write a store, and the second finds that the first is in place.
    """
    temporary = _beside(directory)
    temporary.mkdir()
    try:
        manifest = _write_arrays(temporary, corpus, tokenizer, split)
        manifest |= {"fingerprint": fingerprint, "corpus": corpus.name}
        with (temporary / _MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=2)
            _sync(file)
        if TokenStore.open(directory) is None:
            shutil.rmtree(directory, ignore_errors=True)  # what exists is incomplete
            os.replace(temporary, directory)
    except OSError:
        if TokenStore.open(directory) is None:  # otherwise another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(
    directory: pathlib.Path, corpus: Corpus, tokenizer: Tokenizer, split: str
) -> dict[str, Any]:
    """Writes the arrays, says what they hold, and returns the manifest."""
    dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)
    counts = np.zeros(tokenizer.size, np.int64)
    size = words = n_tokens = n_sentences = n_documents = read = 0
    odd = dict.fromkeys(_ODD_CHARACTERS, 0)
    with _files(directory, _ARRAYS) as files:
        for name in ("sentence_offsets", "document_offsets"):
            files[name].write(np.zeros(1, np.int64).tobytes())
        for texts in _chunks(track(corpus.documents(), f"tokenizing {split}", corpus.size)):
            sentences = [split_sentences(text) for text in texts]
            ids = tokenizer.encode_batch([s for part in sentences for s in part])
            size += sum(len(text.encode()) for text in texts)
            words += sum(len(text.split()) for text in texts)
            for character in odd:
                odd[character] += sum(text.count(character) for text in texts)
            lengths = np.array([len(i) for i in ids], np.int64)
            of_document = np.repeat(np.arange(len(texts)), [len(part) for part in sentences])
            kept = lengths > 0
            flat = np.concatenate([*ids, np.zeros(0, np.int32)])
            counts += np.bincount(flat, minlength=len(counts))
            files["tokens"].write(flat.astype(dtype).tobytes())
            ends = n_tokens + np.cumsum(lengths[kept])
            files["sentence_offsets"].write(ends.tobytes())
            # Documents without tokens are dropped.
            in_document = np.bincount(of_document[kept], minlength=len(texts))
            document_ends = n_sentences + np.cumsum(in_document)[in_document > 0]
            files["document_offsets"].write(document_ends.astype(np.int64).tobytes())
            n_tokens += int(lengths.sum())
            n_sentences += int(kept.sum())
            n_documents += int((in_document > 0).sum())
            read += len(texts)
        files["counts"].write(counts.tobytes())
        for file in files.values():
            _sync(file)
    said = f"{n_documents:,} documents with {n_sentences / max(n_documents, 1):.1f} sentences each"
    if unknown := int(counts[tokenizer.roles["unk"]]):
        said += f", {unknown / n_tokens:.2%} of the tokens are unknown"
    if read > n_documents:
        said += f", {read - n_documents:,} more without tokens"
    said += "".join(f", {count:,} {_ODD_CHARACTERS[c]}" for c, count in odd.items() if count)
    print(f"{split}: {said}", file=sys.stderr, flush=True)
    return {
        "dtype": dtype.name,
        "bytes": size,
        "words": words,
        "sizes": {name: (directory / name).stat().st_size for name in _ARRAYS},
    }


@contextlib.contextmanager
def _files(directory: pathlib.Path, names: Sequence[str]) -> Iterator[dict[str, BinaryIO]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context((directory / name).open("wb")) for name in names}


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of documents that are long enough to keep all cores busy."""
    documents = iter(documents)
    while chunk := list(itertools.islice(documents, _DOCUMENTS_A_CHUNK)):
        yield chunk


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
