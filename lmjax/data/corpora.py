"""Corpora of plain documents behind one interface: embedded, text files, TFDS."""

import codecs
import contextlib
import dataclasses
import glob
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import absl.logging

from lmjax.data.cache import cache_directory, prepared
from lmjax.errors import ConfigError

Open = Callable[[], BinaryIO]

_SUFFIXES = (".txt", ".gz", ".xz")
_CHECKED_BYTES = 1 << 20
_HELD_OUT_PERCENT = 2
_SECONDS_FOR_NETWORK = 4.0
SPLITS = ("train", "validation", "all")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
      name: for people.
      fingerprint: changes when the documents do.
      documents: call it for a fresh iterator over the texts.
      size: number of documents, None where it is not known beforehand.
    """

    name: str
    fingerprint: str
    documents: Callable[[], Iterator[str]]
    size: int | None = None


def is_text(spec: str) -> bool:
    """Whether `spec` names text files and not a TFDS dataset."""
    if spec == "pydocs" or _is_prepared_directory(spec):
        return False
    looks = any(c in spec for c in "*?[") or spec.endswith(_SUFFIXES) or spec[:1] in ("/", ".", "~")
    return looks or os.path.exists(spec)


def _is_prepared_directory(spec: str) -> bool:
    return pathlib.Path(spec).expanduser().joinpath("dataset_info.json").is_file()


def check_corpus(spec: str, where: str = "config.data.corpus", cache_dir: str = "") -> None:
    """Refuses, within seconds, a corpus that is not there or is no text.

    Text files are decoded as far as their first megabyte; what comes later is checked
    when it is read.

    Raises:
      ConfigError: no such file, nothing in it, not UTF-8, no such TFDS dataset, or one that
        is not prepared and whose host does not answer.
    """
    if not spec:
        raise ConfigError(f"{where}: empty; give a path, a glob, a TFDS name or 'pydocs'")
    if is_text(spec):
        for path in text_files(spec, where):
            _check_text(path, where)
    elif spec != "pydocs":
        builder = _tfds_builder(spec, where, cache_directory(cache_dir))
        if not builder.is_prepared():
            _check_reachable(builder, spec, where)


def open_corpus(
    spec: str,
    split: str,
    *,
    text_feature: str = "text",
    cache_dir: str = "",
    where: str = "config.data.corpus",
) -> Corpus:
    """Opens a split of a corpus.

    Args:
      spec: 'pydocs', the embedded corpus; a path or glob of .txt, .gz or .xz files, whose
        documents are separated by blank lines; the name of a TFDS dataset, or a directory
        in which one was prepared with file_format='array_record'.
      split: 'train', 'validation' or 'all'. Text files, and TFDS datasets without a
        validation split, hold out 2% of their documents by a hash of the text.
      text_feature: the TFDS feature that holds the text.
      cache_dir: see `cache_directory`.
      where: the config field, for error messages.

    Raises:
      ConfigError: see `check_corpus`.
    """
    if split not in SPLITS:
        raise ValueError(f"split '{split}' is not one of {SPLITS}")
    check_corpus(spec, where, cache_dir)
    if is_text(spec):
        return _text_corpus(text_files(spec, where), spec, split, where)
    return _tfds_corpus(spec, split, text_feature, cache_dir, where)


def text_files(spec: str, where: str) -> list[pathlib.Path]:
    """The files of a path or glob, by name."""
    spec = os.path.expanduser(spec)
    if os.path.isdir(spec):
        raise ConfigError(f"{where}: '{spec}' is a directory; give a glob such as '{spec}/*.txt'")
    if os.path.exists(spec):
        return [pathlib.Path(spec)]
    paths = [pathlib.Path(p) for p in sorted(glob.glob(spec, recursive=True))]
    paths = [p for p in paths if p.is_file()]
    if not paths:
        raise ConfigError(f"{where}: no such file '{spec}'; give a path, a glob or a TFDS name")
    return paths


def open_file(path: pathlib.Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz or .xz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _check_text(path: pathlib.Path, where: str) -> None:
    """Decodes the first megabyte."""
    with _readable(path, where), open_file(path) as file:
        head = file.read(_CHECKED_BYTES)
        more = bool(file.read(1))
    if not head.strip() and not more:
        raise ConfigError(f"{where}: '{path}' is empty; give a file with text")
    _decode(head, path, 0, where, whole=not more)


def _decode(data: bytes, path: pathlib.Path, offset: int, where: str, whole: bool = True) -> str:
    """Text of bytes; unless `whole`, the last character may be cut."""
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0]
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: '{path}' is not UTF-8 at byte {offset + error.start:,}; convert it, for"
            " example with iconv -t utf-8"
        ) from None


@contextlib.contextmanager
def _readable(path: pathlib.Path, where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"{where}: cannot read '{path}' ({error}); is it whole?") from error


def _blocks(path: pathlib.Path, where: str) -> Iterator[str]:
    """Blocks of lines between blank lines."""
    block: list[str] = []
    offset = 0
    with _readable(path, where), open_file(path) as file:
        for line in file:
            text = _decode(line, path, offset, where)
            offset += len(line)
            if text.strip():
                block.append(text)
            elif block:
                yield "".join(block).strip()
                block = []
    if block:
        yield "".join(block).strip()


def _held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < _HELD_OUT_PERCENT


def _of_split(documents: Iterator[str], split: str) -> Iterator[str]:
    if split == "all":
        return documents
    return (text for text in documents if _held_out(text) == (split == "validation"))


def _text_corpus(paths: list[pathlib.Path], spec: str, split: str, where: str) -> Corpus:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(path.suffix.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        digest.update(b"\0")

    def documents() -> Iterator[str]:
        every = (text for path in paths for text in _blocks(path, where))
        return _of_split(every, split)

    return Corpus(spec, f"text-{digest.hexdigest()}-{split}", documents)


def _tfds_builder(spec: str, where: str, cache: pathlib.Path) -> Any:
    """The builder where TFDS keeps its data, or in our cache when it is not prepared there."""
    import tensorflow_datasets as tfds  # slow to import

    # It warns of every dataset that is not in its own catalogue.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        if spec == "pydocs":
            from lmjax.data.pydocs import Pydocs

            return Pydocs(data_dir=str(cache / "tfds"))
        if _is_prepared_directory(spec):
            return tfds.builder_from_directory(os.path.expanduser(spec))
        builder = tfds.builder(spec)
        return builder if builder.is_prepared() else tfds.builder(spec, data_dir=cache / "tfds")
    except Exception as error:
        raise ConfigError(
            f"{where}: '{spec}' is no file and TFDS cannot open it ({_first_line(error)}); give a"
            " path, a glob, a TFDS name such as 'lm1b', or 'pydocs'"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_reachable(builder: Any, spec: str, where: str) -> None:
    """Asks the host of the first download for a connection: TFDS itself retries for minutes."""
    urls = list(builder.url_infos or ())  # None where nothing is downloaded, as of docstrings
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

    # In a thread: looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_FOR_NETWORK)
    if not answers:
        raise ConfigError(
            f"{where}: '{spec}' is not prepared and {address.hostname} does not answer; prepare it"
            " where it can be downloaded, with file_format='array_record', and set TFDS_DATA_DIR"
        )


def prepared_dataset(spec: str, cache_dir: str, where: str) -> Any:
    """The TFDS builder of `spec`, 'pydocs' too, with its data on disk.

    Raises:
      ConfigError: TFDS does not know it, or cannot prepare it here.
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
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is about to do
                builder.download_and_prepare(file_format="array_record")
        except Exception as error:
            raise ConfigError(
                f"{where}: TFDS cannot prepare '{spec}' here ({_first_line(error)}); prepare it"
                " where it can be downloaded, with file_format='array_record', and set"
                " TFDS_DATA_DIR"
            ) from error

    return prepared(cache / f"tfds-{spec.replace('/', '-')}", read, make)


def _tfds_corpus(spec: str, split: str, feature: str, cache_dir: str, where: str) -> Corpus:
    builder = prepared_dataset(spec, cache_dir, where)
    info = builder.info
    if feature not in info.features:
        known = ", ".join(info.features)
        raise ConfigError(
            f"config.data.text_feature: '{spec}' has no feature '{feature}'; it has: {known}"
        )
    of_file, by_hash = _tfds_split(info.splits, split)
    source = builder.as_data_source(split=of_file)

    def documents() -> Iterator[str]:
        texts = (source[i][feature].decode("utf-8").strip() for i in range(len(source)))
        return _of_split((text for text in texts if text), by_hash)

    size = len(source) if by_hash == "all" else None
    name = f"{info.full_name}-{feature}-{of_file}-{by_hash}"
    return Corpus(spec, hashlib.blake2b(name.encode(), digest_size=16).hexdigest(), documents, size)


def _tfds_split(splits: Any, split: str) -> tuple[str, str]:
    """(TFDS split, which part of it by hash) for our split."""
    if split == "all":
        return "all", "all"
    if split == "validation":
        for name in ("validation", "valid", "dev"):
            if name in splits:
                return name, "all"
    held_out = any(name in splits for name in ("validation", "valid", "dev"))
    train = "train" if "train" in splits else next(iter(splits))
    return train, "all" if held_out else split
