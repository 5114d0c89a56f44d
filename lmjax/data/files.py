"""Finding, decompressing, decoding and splitting text files, shared by all readers.

Lines end only at LF or CRLF, and a byte order mark at the beginning of a file is not part of its
text. Error messages name the file and the line.
"""

import codecs
import collections
import contextlib
import difflib
import glob
import gzip
import itertools
import json
import lzma
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from lmjax.errors import ConfigError

Reads = Callable[[pathlib.Path], bool]

TABLES = (".jsonl", ".json", ".csv", ".tsv")
COLUMNS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".annotated")
_PACKED = (".gz", ".xz")
_ROWS = (*TABLES, *COLUMNS, ".ndjson", ".parquet", ".arrow", ".feather")
_ARCHIVES = (".zip", ".tar", ".tgz", ".txz", ".bz2", ".zst", ".lz4", ".7z", ".rar")
_GLOB = "*?["
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_BOM = b"\xef\xbb\xbf"
_LISTED = 10_000  # maximum number of files of a directory to list for a hint


class BadRowError(ValueError):
    """An invalid row; the message gives the reason.

    Attributes:
      within: the invalid part of the row: the index of a token, or a name; '' = the whole row.
    """

    def __init__(self, message: str, within: int | str = "") -> None:
        super().__init__(message)
        self.within = within


def form_of(path: str | pathlib.Path) -> str:
    """Returns the lowercase file extension, ignoring that of compression, such as '.txt'."""
    return pathlib.Path(_unpacked(path)).suffix.lower()


def _unpacked(path: str | pathlib.Path) -> str:
    return str(path)[:-3] if str(path).lower().endswith(_PACKED) else str(path)


def name_of(path: pathlib.Path) -> str:
    """Returns the file name without extensions: 'hypernym' for 'hypernym.jsonl.gz'."""
    return pathlib.Path(_unpacked(path.name)).stem


def is_path(spec: str) -> bool:
    """Whether `spec` refers to files, not to a TFDS dataset."""
    if is_prepared_directory(spec):
        return False
    looks = any(c in spec for c in _GLOB) or spec[:1] in ("/", ".", "~")
    known = (*_ROWS, *_ARCHIVES, *_PACKED, ".txt")
    return looks or spec.lower().endswith(known) or os.path.exists(spec)


def is_prepared_directory(spec: str) -> bool:
    """Whether `spec` is a directory with a dataset prepared by TFDS."""
    return pathlib.Path(spec).expanduser().joinpath("dataset_info.json").is_file()


def is_text(path: pathlib.Path) -> bool:
    """Whether `check_is_text` accepts a file of this name."""
    return form_of(path) == ".jsonl" or form_of(path) not in (*_ROWS, *_ARCHIVES)


def check_is_text(path: pathlib.Path, where: str) -> None:
    """Checks that a file is text: plain text, or JSON lines with a text column.

    Raises:
      ConfigError: the file contains rows or is an archive.
    """
    if is_text(path):
        return
    form = form_of(path)
    if form in _ARCHIVES:
        raise ConfigError(
            f"{where}: '{path}': '{form}' archives are not supported; extract it, or compress its"
            " files individually as .gz or .xz"
        )
    remedy = """write its texts to a .jsonl file, one {"text": "..."} per line"""
    if form in (".json", ".ndjson"):
        remedy = f"if each line is an object, rename it to .jsonl; if not, {remedy}"
    raise ConfigError(f"{where}: '{path}': a '{form}' file contains rows, not plain text; {remedy}")


def find_files(
    spec: str, where: str, reads: Reads, directories: bool = False
) -> list[pathlib.Path]:
    """Returns the files that match a path or glob, sorted by name.

    Args:
      spec: path or glob.
      where: the config field or flag of `spec`, for error messages.
      reads: whether the caller can read a file, judged by its name.
      directories: whether a directory is accepted and stands for its readable files.

    Raises:
      ConfigError: no file matches, or `spec` is a directory; the message suggests globs that match
        existing files.
    """
    spec = os.path.expanduser(spec)
    if os.path.isdir(spec):
        inside = [path for path in _matches(os.path.join(glob.escape(spec), "*")) if reads(path)]
        if directories and inside:
            return inside
        raise ConfigError(f"{where}: '{spec}' is a directory; {_globs(spec, reads)}")
    if os.path.exists(spec):
        return [pathlib.Path(spec)]
    paths = _matches(spec)
    if not paths:
        raise ConfigError(f"{where}: no such file '{spec}'; {_instead(spec, reads)}")
    return paths


def _matches(pattern: str) -> list[pathlib.Path]:
    names = sorted(set(glob.glob(pattern, recursive=True)))
    return [pathlib.Path(name) for name in names if os.path.isfile(name)]


def _globs(directory: str, reads: Reads) -> str:
    """Suggests globs to use in place of a directory."""
    others: set[str] = set()
    for inner in ("*", os.path.join("*", "*")):
        pattern = os.path.join(glob.escape(directory), inner)
        listed = map(pathlib.Path, itertools.islice(glob.iglob(pattern), _LISTED))
        endings: collections.Counter[str] = collections.Counter()
        for path in listed:
            stem = name_of(path)
            if path.is_file() and stem.upper() not in ("README", "LICENSE"):
                ending = path.name.removeprefix(stem)
                endings[ending] += reads(path)
                others.add(ending)
        if len(others) > 1:
            del endings[""]  # a glob that matches these also matches the others
        if +endings:
            found = [
                f"'{pattern}{glob.escape(ending)}' ({n:,} file{'s' if n > 1 else ''})"
                for ending, n in (+endings).most_common(3)
            ]
            return f"give a glob such as {' or '.join(found)}"
    named = f", but {', '.join(sorted(filter(None, others))[:6])}" if others else ""
    return f"it has no readable file{named}; give a path or a glob"


def _instead(spec: str, reads: Reads) -> str:
    """Suggests a replacement for a path or glob that matches nothing."""
    directory, name = os.path.split(spec)
    found = [directory or "."] if os.path.isdir(directory or ".") else glob.glob(directory)
    if any(c in name for c in _GLOB) and len(found) == 1 and os.path.isdir(found[0]):
        return _globs(found[0], reads)
    with contextlib.suppress(OSError):
        close = difflib.get_close_matches(name, os.listdir(directory or "."), n=1)
        if close:
            return f"did you mean '{os.path.join(directory, close[0])}'?"
    return "give a path or a glob"


def open_file(path: pathlib.Path) -> BinaryIO:
    """Opens a file in binary mode, decompressing .gz and .xz."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


@contextlib.contextmanager
def readable(path: pathlib.Path, where: str) -> Iterator[None]:
    """Converts errors of missing or damaged files to ConfigError."""
    try:
        yield
    except _DAMAGE as error:
        raise _unreadable(path, where, error) from error


def _unreadable(path: pathlib.Path, where: str, error: Exception, line: int = 0) -> ConfigError:
    what = error.strerror if isinstance(error, OSError) and error.strerror else error
    place = f" after line {line:,}" if line else ""
    return ConfigError(f"{where}: cannot read '{path}'{place} ({what}); is it complete?")


def read_lines(path: pathlib.Path, where: str, ends: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file with their numbers, counted from 1.

    Args:
      where: the config field or flag of the file, for error messages.
      ends: whether to keep line endings.

    Raises:
      ConfigError: the file is missing or damaged, is not UTF-8, or has CR line endings.
    """
    number = 0
    try:
        with open_file(path) as file:
            for number, line in lines_of(file, str(path), where, ends):
                yield number, line
    except _DAMAGE as error:
        raise _unreadable(path, where, error, number) from error


def lines_of(
    file: Iterable[bytes], name: str, where: str, ends: bool = False
) -> Iterator[tuple[int, str]]:
    """Like `read_lines`, for an open file; `name` is used in error messages."""
    offset = 0
    for number, line in enumerate(file, start=1):
        text = decoded(line, name, offset, where)
        offset += len(line)
        if number == 1 and not line.endswith(b"\n"):
            check_line_ends(text, name, where)
        end = "\r\n" if text.endswith("\r\n") else "\n"
        yield number, text if ends else text.removesuffix(end)


def check_line_ends(text: str, name: str, where: str) -> None:
    """Raises ConfigError if a text has several lines that end in CR."""
    if "\n" not in text and "\r" in text.removesuffix("\r"):
        raise ConfigError(
            f"{where}: '{name}' has CR line endings; convert it, for example with"
            r" tr '\r' '\n'"
        )


def decoded(data: bytes, name: str, offset: int, where: str, whole: bool = True) -> str:
    """Decodes bytes that begin at `offset` of a file, dropping a byte order mark at offset 0.

    Args:
      whole: False if the last character may be truncated.

    Raises:
      ConfigError: the bytes are not UTF-8.
    """
    skipped = len(_BOM) if not offset and data.startswith(_BOM) else 0
    try:
        return codecs.utf_8_decode(data[skipped:], "strict", whole)[0]
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: '{name}' is not UTF-8 at byte {offset + skipped + error.start:,}; convert"
            " it, for example with iconv -t utf-8"
        ) from None


def json_value(text: str) -> Any:
    """Parses JSON; objects with duplicate keys are replaced by a BadRowError.

    Raises:
      ValueError: the text is not JSON; the message gives the position.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno}, column {error.colno}"
            if "\n" in text
            else f"column {error.colno}"
        )
        raise ValueError(f"{error.msg} at {at}") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRowError:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    counts = collections.Counter(name for name, _ in pairs)
    return BadRowError(f"two values are named {counts.most_common(1)[0][0]!r}")


def json_row(line: str) -> dict[str, Any] | BadRowError:
    """Parses a line of JSON lines: an object, or a BadRowError with the reason."""
    try:
        values = json_value(line)
    except ValueError as error:
        return BadRowError(f"not JSON ({error})")
    return values if isinstance(values, dict | BadRowError) else BadRowError("not a JSON object")


def fault_of(value: Any) -> str:
    """Returns why a value, or a nested one, is not a valid text or number; '' if it is valid."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, BadRowError):
            return str(value)
        if isinstance(value, float) and not math.isfinite(value):
            return f"not a finite number ({value})"
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return f"an unpaired surrogate ({value[error.start]!r})"
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
    return ""


def json_texts(
    lines: Iterable[tuple[int, str]], name: str, where: str, column: str, setting: str = ""
) -> Iterator[str]:
    """Yields the texts in a column of JSON lines, skipping blank lines.

    Args:
      name: name of the file, for error messages.
      where: the config field or flag of the file, for error messages.
      column: name of the column.
      setting: the config field or flag that selects the column; '' if there is none.

    Raises:
      ConfigError: a line has no such text; the message names the line.
    """
    for number, line in lines:
        if not line.strip():
            continue
        row = json_row(line)
        if isinstance(row, BadRowError):
            raise ConfigError(f"{where}: {name}:{number}: {row}")
        text = row.get(column)
        if not isinstance(text, str):
            remedy = f"; set {setting} to another column" if setting else ""
            raise ConfigError(
                f"{where}: {name}:{number}: no text in column '{column}' (the line has:"
                f" {', '.join(row)}){remedy}"
            )
        if fault := fault_of(text):
            raise ConfigError(f"{where}: {name}:{number}: {fault}")
        yield text


def read_texts(spec: str, where: str, column: str = "text") -> Iterator[str]:
    """Yields the texts of files: one per line, or those in a column of JSON lines.

    Raises:
      ConfigError: see `find_files`, `read_lines` and `json_texts`.
    """
    for path in find_files(spec, where, is_text):
        check_is_text(path, where)
        lines = read_lines(path, where)
        if form_of(path) == ".jsonl":
            yield from json_texts(lines, str(path), where, column)
        else:
            yield from (line for _, line in lines)
