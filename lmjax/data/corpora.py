"""A common interface to corpora: embedded, text files, TFDS and custom readers."""

import codecs
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import absl.logging

from lmjax.configuration import build_typed
from lmjax.data.cache import prepared
from lmjax.data.files import (
    check_is_text,
    check_line_ends,
    decoded,
    find_files,
    form_of,
    is_path,
    is_prepared_directory,
    is_text,
    json_row,
    json_texts,
    open_file,
    read_lines,
    readable,
)
from lmjax.errors import ConfigError, first_line
from lmjax.host import cache_directory

_CHECKED_BYTES = 1 << 20
_HELD_OUT_PERCENT = 2
_SECONDS_FOR_NETWORK = 4.0
SPLITS = ("train", "validation", "all")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
      name: human-readable name.
      fingerprint: string that changes when the documents change.
      documents: function that returns a new iterator over the texts.
      size: number of documents, or None if it is not known in advance.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class CorpusReader:
    """Base class of corpus readers: a frozen dataclass that is configured in place of a path.

    A config refers to it by import path, and it may live outside this package:
    `config.data.corpus = {"type": "my_package.Reader", "folder": "texts"}`.
    """

    @property
    def version(self) -> str:
        """Version of the documents, which together with the fields identifies them.

        Tokens are computed once and cached by the reader's import path, fields and version. If the
        documents can change without a change of the fields, for example because the reader reads
        files, the version must change with the documents: use a digest or a revision.
        """
        return ""

    def check(self) -> None:
        """Raises ConfigError, within seconds, if the documents cannot be read."""

    def documents(self) -> Iterator[str]:
        """Returns all documents, always in the same order.

        Callers strip leading and trailing white space and drop empty documents.
        """
        raise NotImplementedError


def check_corpus(
    spec: str | Mapping[str, Any],
    where: str = "config.data.corpus",
    cache_dir: str = "",
    text_feature: str = "text",
) -> None:
    """Checks, within seconds, that a corpus exists and is text.

    Only the first megabyte of a text file is decoded; the rest is checked when it is read.

    Raises:
      ConfigError: the file does not exist, is empty, is not UTF-8 or is not a text format; the
        TFDS dataset does not exist, or is not prepared and its host does not answer; or the reader
        cannot be built or rejects its fields.
    """
    if not isinstance(spec, str):
        _reader(spec, where)
        return
    if not spec:
        raise ConfigError(f"{where}: empty; give a path, a glob, a TFDS name or 'pydocs'")
    if _is_files(spec):
        for path in _text_files(spec, where):
            _check_text(path, where, text_feature)
    elif spec != "pydocs":
        builder = _tfds_builder(spec, where, cache_directory(cache_dir))
        if not builder.is_prepared():
            _check_reachable(builder, spec, where)


def open_corpus(
    spec: str | Mapping[str, Any],
    split: str,
    *,
    text_feature: str = "text",
    cache_dir: str = "",
    where: str = "config.data.corpus",
) -> Corpus:
    """Opens a split of a corpus.

    Args:
      spec: 'pydocs', the embedded corpus; a path or glob of text files, optionally compressed
        (.gz, .xz), with documents separated by blank lines, or of JSON lines (.jsonl) with one
        document per line; the name of a TFDS dataset, or a directory with one prepared with
        file_format='array_record'; or a block with the type and the fields of a `CorpusReader`.
      split: 'train', 'validation' or 'all'. Files, readers, and TFDS datasets without a validation
        split hold out 2% of their documents by a hash of the text.
      text_feature: the column of JSON lines, or the TFDS feature, that contains the text.
      cache_dir: see `cache_directory`.
      where: the config field or flag, for error messages.

    Raises:
      ConfigError: see `check_corpus`.
    """
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is not one of {SPLITS}")
    if not isinstance(spec, str):
        return _read_corpus(spec, split, where)
    check_corpus(spec, where, cache_dir, text_feature)
    if _is_files(spec):
        return _text_corpus(spec, split, text_feature, where)
    return _tfds_corpus(spec, split, text_feature, cache_dir, where)


def _is_files(spec: str) -> bool:
    return spec != "pydocs" and is_path(spec)


def _text_files(spec: str, where: str) -> list[pathlib.Path]:
    paths = find_files(spec, where, is_text)
    for path in paths:
        check_is_text(path, where)
        if not path.is_file():
            raise ConfigError(
                f"{where}: '{path}' is not a regular file; a corpus must be readable more than once"
            )
    return paths


def _head(path: pathlib.Path, where: str) -> tuple[bytes, bool]:
    """Returns the first megabyte, and whether that is the whole file."""
    with readable(path, where), open_file(path) as file:
        return file.read(_CHECKED_BYTES), not file.read(1)


def _check_text(path: pathlib.Path, where: str, text_feature: str) -> None:
    """Decodes the first megabyte."""
    head, whole = _head(path, where)
    text = decoded(head, str(path), 0, where, whole)
    check_line_ends(text, str(path), where)
    nul = text.count("\0")
    if nul > len(text) / 10:
        raise ConfigError(
            f"{where}: {nul:,} of the first {len(text):,} characters of '{path}' are NUL, so it is"
            " not UTF-8 text; convert it, for example with iconv -f utf-16le -t utf-8"
        )
    if form_of(path) == ".jsonl":
        lines = text.split("\n")
        if not whole:
            lines.pop()
        numbered = enumerate(lines, start=1)
        # The list forces a check of all lines, not only up to the first nonempty one.
        texts = list(_texts_of_lines(numbered, path, where, text_feature))
        empty = not any(map(str.strip, texts))
    else:
        empty = not text.strip()
        first = text.lstrip().partition("\n")[0]
        if form_of(path) != ".txt" and first[:1] == "{" and isinstance(json_row(first), dict):
            raise ConfigError(
                f"{where}: '{path}' begins with a JSON object; rename it to .jsonl if it contains"
                " JSON lines, or to .txt if it is plain text"
            )
    if empty and whole:
        raise ConfigError(f"{where}: '{path}' is empty; give a file with text")


def _documents(path: pathlib.Path, where: str, text_feature: str) -> Iterator[str]:
    """Yields the documents of a file, stripped of white space."""
    lines = read_lines(path, where)
    found = (
        _texts_of_lines(lines, path, where, text_feature)
        if form_of(path) == ".jsonl"
        else _blocks(lines)
    )
    return (text for text in map(str.strip, found) if text)


def _texts_of_lines(
    lines: Iterable[tuple[int, str]], path: pathlib.Path, where: str, text_feature: str
) -> Iterator[str]:
    return json_texts(lines, str(path), where, text_feature, _setting(where))


def _setting(where: str) -> str:
    """Returns the field or flag that selects the text column of the corpus at `where`."""
    return "config.data.text_feature" if where.startswith("config.") else "--text_feature"


def _blocks(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yields blocks of lines separated by blank lines (empty or white space only)."""
    block: list[str] = []
    for _, line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    yield "\n".join(block)


def _held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < _HELD_OUT_PERCENT


def _of_split(documents: Iterator[str], split: str) -> Iterator[str]:
    if split == "all":
        return documents
    return (text for text in documents if _held_out(text) == (split == "validation"))


def _reader(spec: Mapping[str, Any], where: str) -> CorpusReader:
    reader: CorpusReader = build_typed(spec, where, CorpusReader)
    try:
        reader.check()
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error
    return reader


def _read_corpus(spec: Mapping[str, Any], split: str, where: str) -> Corpus:
    reader = _reader(spec, where)
    # Includes the defaults of unset fields.
    fields = json.dumps(dataclasses.asdict(reader), sort_keys=True, default=str)
    digest = hashlib.blake2b(digest_size=16)
    for part in (spec["type"], fields, reader.version):
        digest.update(f"{part}\0".encode())

    def texts() -> Iterator[str]:
        for i, text in enumerate(reader.documents()):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ConfigError(f"{where}: document {i} of {spec['type']} is not a str ({kind})")
            yield text.strip()

    def documents() -> Iterator[str]:
        return _of_split(filter(None, texts()), split)

    return Corpus(spec["type"], f"reader-{digest.hexdigest()}-{split}", documents)


def _text_corpus(spec: str, split: str, text_feature: str, where: str) -> Corpus:
    paths = _text_files(spec, where)
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(path.suffix.encode())
        with readable(path, where), path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        digest.update(b"\0")
        if form_of(path) == ".jsonl":
            digest.update(f"jsonl {text_feature}\0".encode())
        else:  # earlier versions decoded these bytes differently, and may have cached the tokens
            head, _ = _head(path, where)
            digest.update(b"BOM\0" if head.startswith(codecs.BOM_UTF8) else b"")
            digest.update(b"CRLF\0" if b"\r\n" in head else b"")

    def documents() -> Iterator[str]:
        every = (text for path in paths for text in _documents(path, where, text_feature))
        return _of_split(every, split)

    return Corpus(spec, f"text-{digest.hexdigest()}-{split}", documents)


def _tfds_builder(spec: str, where: str, cache: pathlib.Path) -> Any:
    """Returns a builder for TFDS's data directory, or for our cache if not prepared there."""
    import tensorflow_datasets as tfds  # slow to import

    # It warns about every dataset that is not in its catalog.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        if spec == "pydocs":
            from lmjax.data.pydocs import Pydocs

            return Pydocs(data_dir=str(cache / "tfds"))
        if is_prepared_directory(spec):
            return tfds.builder_from_directory(os.path.expanduser(spec))
        builder = tfds.builder(spec)
        return builder if builder.is_prepared() else tfds.builder(spec, data_dir=cache / "tfds")
    except Exception as error:
        if _needs_tensorflow(error, spec):
            raise ConfigError(
                f"{where}: TFDS needs TensorFlow, which is not installed, to prepare '{spec}';"
                " prepare it where that is installed, with file_format='array_record', and set"
                " TFDS_DATA_DIR (reading does not need TensorFlow), or give files"
            ) from error
        raise ConfigError(
            f"{where}: '{spec}' is not a file and TFDS cannot open it ({first_line(error)}); give a"
            " path, a glob, a TFDS name such as 'lm1b', or 'pydocs'"
        ) from error


def _needs_tensorflow(error: BaseException, spec: str) -> bool:
    """Whether a dataset is unavailable because TensorFlow is missing."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ImportError) and "tensorflow" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("tensorflow") or not isinstance(
        error, tfds.core.DatasetNotFoundError
    ):
        return False
    # Without TensorFlow, TFDS does not find datasets whose code is installed.
    name = re.split("[/:]", spec)[0]
    code = pathlib.Path(tfds.__file__).parent
    places = (f"url_checksums/{name}.txt", f"*/{name}.py", f"*/{name}/__init__.py")
    return name.isidentifier() and any(any(code.glob(place)) for place in places)


def _check_reachable(builder: Any, spec: str, where: str) -> None:
    """Tries to connect to the host of the first download, since TFDS retries for minutes."""
    urls = list(builder.url_infos or ())  # None if nothing is downloaded, as for docstrings
    if not urls or urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(urls[0])
    port = address.port or {"http": 80, "ftp": 21}.get(address.scheme, 443)
    answers: list[bool] = []

    def ask() -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address.hostname, port), _SECONDS_FOR_NETWORK),
        ):
            answers.append(True)

    # In a thread, because name lookup has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_FOR_NETWORK)
    if not answers:
        raise ConfigError(
            f"{where}: '{spec}' is not prepared and {address.hostname} does not answer; prepare it"
            " where it can be downloaded, with file_format='array_record', and set TFDS_DATA_DIR"
        )


def prepared_dataset(spec: str, cache_dir: str, where: str) -> Any:
    """Returns the TFDS builder of `spec`, which may be 'pydocs', with its data on disk.

    Raises:
      ConfigError: TFDS does not know the dataset, or cannot prepare it here.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    cache = cache_directory(cache_dir)

    def read() -> Any:
        builder = _tfds_builder(spec, where, cache)
        return builder if builder.is_prepared() else None

    def make() -> None:
        builder = _tfds_builder(spec, where, cache)
        _check_reachable(builder, spec, where)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its plans
                builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            what = "it needs TensorFlow" if _needs_tensorflow(error, spec) else first_line(error)
            raise ConfigError(
                f"{where}: TFDS cannot prepare '{spec}' here ({what}); prepare it where it"
                " can be downloaded, with file_format='array_record', and set TFDS_DATA_DIR"
            ) from error

    return prepared(cache / f"tfds-{spec.replace('/', '-')}", read, make)


def _tfds_corpus(spec: str, split: str, feature: str, cache_dir: str, where: str) -> Corpus:
    builder = prepared_dataset(spec, cache_dir, where)
    info = builder.info
    if feature not in info.features:
        known = ", ".join(info.features)
        raise ConfigError(
            f"{_setting(where)}: '{spec}' has no feature '{feature}'; it has: {known}"
        )
    of_file, by_hash = _tfds_split(info.splits, split)
    source = builder.as_data_source(split=of_file)

    def texts() -> Iterator[str]:
        for i in range(len(source)):
            try:
                yield source[i][feature].decode("utf-8").strip()
            except (AttributeError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{_setting(where)}: feature '{feature}' of '{spec}' is not UTF-8 text in"
                    f" document {i} ({error})"
                ) from error

    def documents() -> Iterator[str]:
        return _of_split(filter(None, texts()), by_hash)

    size = len(source) if by_hash == "all" else None
    name = f"{info.full_name}-{feature}-{of_file}-{by_hash}"
    return Corpus(spec, hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), documents, size)


def _tfds_split(splits: Any, split: str) -> tuple[str, str]:
    """Returns (TFDS split, part of it selected by hash) for one of our splits."""
    if split == "all":
        return "all", "all"
    if split == "validation":
        for name in ("validation", "valid", "dev"):
            if name in splits:
                return name, "all"
    held_out = any(name in splits for name in ("validation", "valid", "dev"))
    train = "train" if "train" in splits else next(iter(splits))
    return train, "all" if held_out else split
