"""Rows of labeled data from files, TFDS or docstrings, with reports of invalid rows.

A row is a dict of column values. It keeps its place of origin, so that messages can name the line.
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lmjax.configuration import NonNegativeInt, check_ranges
from lmjax.data.corpora import prepared_dataset
from lmjax.data.files import BadRowError, fault_of, find_files, is_path
from lmjax.data.formats import Row, Sentence, file_rows, holds_rows
from lmjax.errors import ConfigError

OnBadRows = Literal["refuse", "skip"]
SPLITS = ("train", "validation", "test")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HELD_OUT_PERCENT = 10
_REMEDY = "set config.data.on_bad_rows='skip' to drop them"
_NAMED = 3  # maximum number of bad rows quoted in a message


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Config of labeled data.

    Attributes:
      train: training rows: a path or glob of .jsonl, .json, .csv, .tsv or CoNLL columns (.conll,
        .conllu, .bio, .iob), optionally compressed (.gz, .xz); a TFDS name; or 'pydocs', rows
        derived from docstrings, without downloads.
      validation: rows to evaluate after every epoch. '' holds out a tenth of `train`, by a hash of
        the row, or of the document if CoNLL columns mark several. A TFDS name may include a split:
        'glue/mnli:validation_matched'.
      test: rows for the reported score; '' uses `validation`. For several sets with separate
        scores: a block of paths by name, or 'name=path,name=path'.
      header: whether the first line of .csv and .tsv files contains the column names. Otherwise
        columns are named '0', '1', ..., as is always the case for CoNLL files.
      on_bad_rows: 'refuse' raises an error that names invalid rows; 'skip' drops them and reports
        their number.
      train_rows: number of training rows to use, drawn with the seed; 0 = all.
      cache_dir: see `lmjax.data.cache`.
    """

    train: str
    validation: str = ""
    test: str | Mapping[str, str] = ""
    header: bool = True
    on_bad_rows: OnBadRows = "refuse"
    train_rows: NonNegativeInt = 0
    cache_dir: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.train:
            raise ConfigError("train: empty; set a path, a TFDS name or 'pydocs'")
        if self.on_bad_rows not in ("refuse", "skip"):
            raise ConfigError(f"on_bad_rows: '{self.on_bad_rows}' is not one of refuse, skip")


@dataclasses.dataclass
class Notes:
    """Counts of problems by kind, with the places of the first few."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, where: str = "", count: int = 1) -> None:
        """Counts problems of a kind, found at `where`."""
        if count:
            self.counts[kind] += count
        if where and len(self.named) < _NAMED:
            self.named.append(f"{where}: {kind}")


def read_split(
    config: RowsConfig,
    split: str,
    parse: Callable[[Row], Row | list[Row | BadRowError]],
    embedded: Callable[[str, str], Iterator[Row]],
    notes: Notes,
) -> list[Row]:
    """Returns the valid rows of a split, in the order of the source.

    Args:
      split: 'train', 'validation' or 'test'.
      parse: converts column values to one or several rows of a task; raises BadRowError, or
        returns it in a list.
      embedded: (split, cache_dir) -> parsed rows derived from docstrings.
      notes: records skipped rows.

    Returns:
      Rows with their place under 'where'; [] if the config has no source for `split`.

    Raises:
      ConfigError: there is no such source, it has no valid rows, or it has bad rows and the config
        does not skip them.
    """
    spec, part, where = _source_of(config, split)
    if not spec:
        return []
    if spec == "pydocs":
        rows = list(embedded(split, config.cache_dir))
        found = [{**row, "where": f"pydocs {split} {i}"} for i, row in enumerate(rows)]
        if not found:
            raise ConfigError(f"{where}: no docstring gives a row of this task; set a path")
        return found
    raw = raw_rows(spec, split, config, where)
    if not part:
        return parse_rows(raw, parse, config.on_bad_rows, spec, where, notes)
    every = list(raw)
    held_out = _held_out([values for _, values in every])
    own = [row for row, held in zip(every, held_out, strict=True) if held == (part != "train")]
    if every and not own:
        raise ConfigError(
            f"{where}: none of the {len(every)} rows of '{spec}' is in the {part} split; set"
            " config.data.validation to a file with rows for it"
        )
    others = len(every) - len(own)
    return parse_rows(own, parse, config.on_bad_rows, spec, where, notes, others=others)


def parse_rows(
    raw: Iterable[tuple[str, Row | BadRowError]],
    parse: Callable[[Row], Row | list[Row | BadRowError]],
    rule: OnBadRows,
    spec: str,
    where: str,
    notes: Notes,
    remedy: str = _REMEDY,
    others: int = 0,
) -> list[Row]:
    """Parses the result of `raw_rows` and returns the valid rows, like `read_split`.

    Args:
      spec: source of the rows, for error messages.
      where: the config field or flag of the source.
      remedy: alternative to fixing bad rows, for error messages.
      others: number of further rows in the source that belong to another split.

    Raises:
      ConfigError: see `read_split`.
    """
    bad: list[tuple[str, str]] = []
    rows: list[Row] = []
    for place, values in raw:
        parsed = _parsed(values, parse)
        for row in parsed if isinstance(parsed, list) else [parsed]:
            if isinstance(row, BadRowError):
                bad.append((place_of(row, place, values), str(row)))
            else:
                document = values.document if isinstance(values, Sentence) else ""
                rows.append(row | {"where": place} | ({"document": document} if document else {}))
    total = len(bad) + len(rows) + others
    if not total:
        raise ConfigError(f"{where}: '{spec}' has no rows; give a file with rows")
    settle(bad, rule, where, total, notes, remedy)
    if not rows:
        raise ConfigError(
            f"{where}: none of the {len(bad)} rows of '{spec}' is valid: {bad[0][0]}:"
            f" {_one_line(bad[0][1])}"
        )
    return rows


def _parsed(
    values: Row | BadRowError, parse: Callable[[Row], Row | list[Row | BadRowError]]
) -> Row | BadRowError | list[Row | BadRowError]:
    try:
        if isinstance(values, BadRowError):
            raise values
        parsed = parse(values)
    except BadRowError as error:
        return error
    return [sound(row) for row in (parsed if isinstance(parsed, list) else [parsed])]


def sound(row: Row | BadRowError) -> Row | BadRowError:
    """Returns a parsed row, or a BadRowError if a value is not a valid text or number."""
    fault = fault_of(row) if isinstance(row, dict) else ""
    return BadRowError(fault) if fault else row


def place_of(error: BadRowError, where: str, values: Any = None) -> str:
    """Returns the place of the error in a row.

    Args:
      where: the place of the row.
      values: the columns of the row, if available.
    """
    if error.within == "":
        return where
    if not isinstance(error.within, int):
        return f"{where}, {error.within}"
    if isinstance(values, Sentence):
        return f"{where.rpartition(':')[0]}:{values.lines[error.within]}"
    return f"{where}, word {error.within + 1}"


def settle(
    bad: list[tuple[str, str]],
    rule: OnBadRows,
    where: str,
    total: int,
    notes: Notes,
    remedy: str = _REMEDY,
) -> None:
    """Raises ConfigError for bad rows, or counts them if `rule` is 'skip'.

    Args:
      bad: (place, reason) of each bad row.
      where: the config field of the file.
      total: total number of rows.
      remedy: alternative to fixing the rows.
    """
    if not bad:
        return
    bad = [(place, _one_line(why)) for place, why in bad]
    if rule == "refuse":
        named = "; ".join(f"{place}: {why}" for place, why in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ConfigError(
            f"{where}: {len(bad)} of {total} rows are invalid: {named}{more}; fix them, or {remedy}"
        )
    for place, why in bad:
        notes.add(f"skipped: {why.split(' (')[0]}", place)


def _one_line(text: str) -> str:
    """Escapes control characters in a message that may quote a row."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def draw(rows: list[Row], count: int, seed: int) -> list[Row]:
    """Draws `count` rows without replacement, keeping their order; 0 = all."""
    if not 0 < count < len(rows):
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return [rows[i] for i in sorted(chosen)]


def column(values: Mapping[str, Any], name: str, field: str, block: str = "config.task.") -> Any:
    """Returns the value of a row in a column.

    Args:
      values: the row.
      name: name of the column.
      field: config field, in `block`, that sets the name.

    Raises:
      BadRowError: there is no such column, or its value is not a valid text or number.
    """
    if name not in values or values[name] is None:
        known = ", ".join(k for k in values if k is not None)
        raise BadRowError(f"no column '{name}' ({block}{field}; the row has: {known})")
    if fault := fault_of(values[name]):
        raise BadRowError(f"{fault} (column '{name}')")
    return values[name]


def _source_of(config: RowsConfig, split: str) -> tuple[str, str, str]:
    """Returns (source, part of it or '' for all, config field)."""
    if split == "train":
        shared = not config.validation and config.train != "pydocs"
        return config.train, "train" if shared else "", "config.data.train"
    if split == "validation" and not config.validation:
        return config.train, "" if config.train == "pydocs" else "validation", "config.data.train"
    return getattr(config, split), "", f"config.data.{split}"


def _held_out(rows: Sequence[Row | BadRowError]) -> list[bool]:
    """Returns which rows are held out: a tenth by hash, or of documents if there are several."""
    documents: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row, Sentence) and row.document:
            documents.setdefault(row.document, []).append(row)
    hashes = {name: _hash(inside) for name, inside in documents.items()}
    # Hashes depend on contents only, so copies of a document are always in the same split.
    ordered = sorted(set(hashes.values()), key=lambda value: (value % 100, value))
    tenth = sum(value % 100 < _HELD_OUT_PERCENT for value in ordered)
    chosen = set(ordered[: min(max(1, tenth), len(ordered) - 1)])

    def held(row: Row | BadRowError) -> bool:
        if isinstance(row, Sentence) and row.document and len(ordered) > 1:
            return hashes[row.document] in chosen
        return _hash(row) % 100 < _HELD_OUT_PERCENT

    return [held(row) for row in rows]


def _hash(values: Any) -> int:
    text = (
        "" if isinstance(values, BadRowError) else json.dumps(values, sort_keys=True, default=str)
    )
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def raw_rows(
    spec: str, split: str, config: RowsConfig, where: str
) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yields (place, columns) of each row of files or of a TFDS dataset.

    Args:
      spec: a path, a glob or a TFDS name.
      split: split of a TFDS dataset, if `spec` does not include it.
      where: the config field or flag of `spec`, for error messages.

    Raises:
      ConfigError: an error of the whole file, not of a single row.
    """
    if not is_path(spec):
        yield from _tfds_rows(spec, split, config.cache_dir, where)
        return
    for path in find_files(spec, where, holds_rows):
        yield from file_rows(path, config.header, where)


def _tfds_rows(spec: str, split: str, cache_dir: str, where: str) -> Iterator[tuple[str, Row]]:
    name, _, wanted = spec.partition(":")
    builder = prepared_dataset(name, cache_dir, where)
    wanted = wanted or split
    if wanted not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise ConfigError(f"{where}: '{name}' has no split '{wanted}'; name one of: {known}")
    source = builder.as_data_source(split=wanted)
    for i in range(len(source)):
        yield f"{name} {wanted} {i}", _plain(source[i], builder.info.features)


def _plain(value: Any, feature: Any) -> Any:
    """Converts bytes to text, classes to names and arrays to lists."""
    if isinstance(value, dict):
        return {k: _plain(v, feature[k]) for k, v in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            return BadRowError(f"not UTF-8 at byte {error.start:,}")
    of_items = getattr(feature, "feature", feature)  # the feature of a sequence's items
    if isinstance(value, np.ndarray | list):
        return [_plain(v, of_items) for v in value]
    if hasattr(of_items, "int2str") and int(value) >= 0:
        return of_items.int2str(int(value))
    return value.item() if isinstance(value, np.generic) else value
