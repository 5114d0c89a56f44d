"""Rows of labelled data from files, TFDS or the docstrings; what is wrong with one is told.

A row is a dict of what its columns hold. Where it came from stays with it, so that a message
can name the line.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from lmjax.configuration import NonNegativeInt, check_ranges
from lmjax.data.corpora import open_file, prepared_dataset, text_files
from lmjax.errors import ConfigError

OnBadRows = Literal["refuse", "skip"]
Row = dict[str, Any]
SPLITS = ("train", "validation", "test")

_COLUMNS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".annotated")
_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", *_COLUMNS)
_MARKED = re.compile(r"\s*\d+\t[^\n]*<e1>")
_TAG = re.compile(r"</?e([12])>")
_HELD_OUT_PERCENT = 10
_NAMED = 3  # bad rows that a message quotes


class BadRowError(ValueError):
    """A row that a task cannot use; the message says why."""


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Labelled data.

    Attributes:
      train: rows to learn from: a path or glob of .jsonl, .json, .csv, .tsv or CoNLL columns
        (.conll, .conllu, .bio, .iob), packed as .gz or .xz or not; a TFDS name; 'pydocs',
        rows made of docstrings, without any download.
      validation: rows to look at after every epoch; '' holds out a tenth of `train`, by a
        hash of the row. A TFDS name may say its split: 'glue/mnli:validation_matched'.
      test: rows that the reported score is of; '' reports on `validation`. Several sets with
        scores of their own: a block of paths by name, or 'name=path,name=path'.
      header: whether the first line of .csv and .tsv names the columns; without it they are
        '0', '1', ..., as columns of CoNLL files always are.
      on_bad_rows: 'refuse' stops at rows that cannot be used, and names them; 'skip' leaves
        them out, counts them and says so in the report.
      train_rows: how many of the training rows are used, drawn by the seed; 0 = all.
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
            raise ConfigError("train: empty; give a path, a TFDS name or 'pydocs'")
        if self.on_bad_rows not in ("refuse", "skip"):
            raise ConfigError(f"on_bad_rows: '{self.on_bad_rows}' is not one of refuse, skip")


@dataclasses.dataclass
class Notes:
    """What was not as it should be, counted by kind, with the first few named."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    named: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, where: str = "", count: int = 1) -> None:
        """Counts something, found at `where`."""
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
    """The usable rows of a split, in the order of the source.

    Args:
      split: 'train', 'validation' or 'test'.
      parse: from what the columns hold to what a task reads, one row or several; raises
        BadRowError, or returns it among several.
      embedded: (split, cache_dir) -> rows made of docstrings, already parsed.
      notes: takes what is skipped.

    Returns:
      Rows with their place under 'where'; [] where the config names nothing for `split`.

    Raises:
      ConfigError: nothing there, nothing usable in it, or bad rows that are not to be skipped.
    """
    spec, part, where = _source_of(config, split)
    if not spec:
        return []
    if spec == "pydocs":
        rows = list(embedded(split, config.cache_dir))
        found = [{**row, "where": f"pydocs {split} {i}"} for i, row in enumerate(rows)]
        if not found:
            raise ConfigError(f"{where}: no docstring here gives a row of this task")
        return found
    bad: list[tuple[str, str]] = []
    rows, total = [], 0
    for place, values in raw_rows(spec, split, config, where):
        if part and part != _part_of(values):
            total += 1
            continue
        try:
            if isinstance(values, BadRowError):
                raise values
            parsed = parse(values)
        except BadRowError as error:
            parsed = [error]
        several = parsed if isinstance(parsed, list) else [parsed]
        total += len(several)
        for row in several:
            if isinstance(row, BadRowError):
                bad.append((place, str(row)))
            else:
                rows.append({**row, "where": place})
    if not total:
        raise ConfigError(f"{where}: '{spec}' holds no rows; give a file with some")
    settle(bad, config.on_bad_rows, where, total, notes)
    if not rows:
        raise ConfigError(
            f"{where}: none of the {total} rows of '{spec}' can be used;"
            f" {bad[0][0] + ': ' + bad[0][1] if bad else 'no row fell into this part'}"
        )
    return rows


def settle(
    bad: list[tuple[str, str]],
    rule: OnBadRows,
    where: str,
    total: int,
    notes: Notes,
    remedy: str = "config.data.on_bad_rows='skip' leaves them out",
) -> None:
    """Refuses or counts bad rows, as the config says.

    Args:
      bad: (where, why) of each.
      where: the config field that named the file.
      total: how many rows there were.
      remedy: what can be done but mending them.
    """
    if not bad:
        return
    if rule == "refuse":
        named = "; ".join(f"{place}: {why}" for place, why in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise ConfigError(
            f"{where}: {len(bad)} of {total} rows cannot be used: {named}{more}; mend them, or"
            f" {remedy}"
        )
    for place, why in bad:
        notes.add(f"skipped: {why.split(' (')[0]}", place)


def draw(rows: list[Row], count: int, seed: int) -> list[Row]:
    """`count` of the rows, drawn without replacement, in their order; 0 = all."""
    if not 0 < count < len(rows):
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return [rows[i] for i in sorted(chosen)]


def column(values: Mapping[str, Any], name: str, field: str) -> Any:
    """What a row has in a column; a missing one is a bad row.

    Args:
      name: of the column, as the config's `field` says.
    """
    if name not in values or values[name] is None:
        known = ", ".join(k for k in values if k is not None)
        raise BadRowError(f"no column '{name}' (config.task.{field}; the row has: {known})")
    return values[name]


def _source_of(config: RowsConfig, split: str) -> tuple[str, str, str]:
    """(what to read, which part of it, the config field)."""
    if split == "train":
        shared = not config.validation and config.train != "pydocs"
        return config.train, "train" if shared else "", "config.data.train"
    if split == "validation" and not config.validation:
        return config.train, "" if config.train == "pydocs" else "validation", "config.data.train"
    return getattr(config, split), "", f"config.data.{split}"


def _part_of(values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str) if isinstance(values, dict) else ""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    held_out = int.from_bytes(digest, "big") % 100 < _HELD_OUT_PERCENT
    return "validation" if held_out else "train"


def raw_rows(
    spec: str, split: str, config: RowsConfig, where: str
) -> Iterator[tuple[str, Row | BadRowError]]:
    """(place, columns) of each row of files or of a TFDS dataset."""
    plain = spec.removesuffix(".gz").removesuffix(".xz")
    looks = any(c in spec for c in "*?[") or spec[:1] in ("/", ".", "~")
    if not looks and not plain.endswith(_SUFFIXES) and not pathlib.Path(spec).exists():
        yield from _tfds_rows(spec, split, config.cache_dir, where)
        return
    for path in text_files(spec, where):
        plain_name = path.name.removesuffix(".gz").removesuffix(".xz")
        suffix = pathlib.Path(plain_name).suffix.lower()
        if suffix not in (*_SUFFIXES, ".txt"):
            raise ConfigError(
                f"{where}: '{path}': what is in a '{suffix}' file? Known are"
                f" {', '.join(_SUFFIXES)}, and .txt with CoNLL columns or"
                " SemEval-2010's marked sentences"
            )
        try:
            with open_file(path) as file:
                # Not universal newlines: CSV fields may hold some.
                text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="").read()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{where}: '{path}' is not UTF-8 at byte {error.start:,}; convert it, for example"
                " with iconv -t utf-8"
            ) from None
        except (OSError, EOFError) as error:
            raise ConfigError(f"{where}: cannot read '{path}' ({error}); is it whole?") from error
        if suffix == ".jsonl":
            yield from _json_lines(text, path)
        elif suffix == ".json":
            yield from _json_rows(text, path, where)
        elif suffix in (".csv", ".tsv"):
            yield from _tables(text, path, suffix, config.header)
        elif _MARKED.match(text):
            yield from _marked(text, path)
        else:
            yield from _conll(text, path, suffix == ".conllu")


def _json_lines(text: str, path: pathlib.Path) -> Iterator[tuple[str, Row | BadRowError]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path.name}:{number}", json_row(line)


def json_row(line: str) -> Row | BadRowError:
    """The object of a line of JSON lines, or why there is none."""
    try:
        values = json.loads(line)
    except ValueError as error:
        return BadRowError(f"no JSON ({error})")
    return values if isinstance(values, dict) else BadRowError("no JSON object")


def _json_rows(
    text: str, path: pathlib.Path, where: str
) -> Iterator[tuple[str, Row | BadRowError]]:
    """A list of objects, bare or under 'data' (SQuAD's)."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: '{path}' is no JSON ({error})") from error
    values = values.get("data") if isinstance(values, dict) else values
    if not isinstance(values, list):
        raise ConfigError(f"{where}: '{path}' holds no list of rows, bare or under 'data'")
    for number, row in enumerate(values, start=1):
        good = row if isinstance(row, dict) else BadRowError("no JSON object")
        yield f"{path.name}[{number}]", good


def _tables(
    text: str, path: pathlib.Path, suffix: str, header: bool
) -> Iterator[tuple[str, Row | BadRowError]]:
    csv.field_size_limit(sys.maxsize)
    if suffix == ".csv":
        reader = csv.reader(io.StringIO(text, newline=""))
    else:  # GLUE's: quotes are characters like others
        reader = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[str] | None = None
    for cells in reader:
        if not cells:
            continue
        if names is None:
            names = cells if header else [str(i) for i in range(len(cells))]
            if header:
                continue
        place = f"{path.name}:{reader.line_num}"
        if len(cells) != len(names):
            yield place, BadRowError(f"not as many cells as columns ({len(cells)}, {len(names)})")
        else:
            yield place, dict(zip(names, cells, strict=True))


def _conll(
    text: str, path: pathlib.Path, universal: bool
) -> Iterator[tuple[str, Row | BadRowError]]:
    """A token a line, a blank line between sentences: {'0': [...], '1': [...], ...}.

    Lines of '-DOCSTART-' are left out; of CoNLL-U files also comments, words that stand for
    several ('1-2') and words that are not in the text ('1.1').
    """
    lines: list[list[str]] = []
    start = 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.strip():
            comment = universal and line.startswith("#")
            cells = line.rstrip().split("\t") if "\t" in line else line.split()
            outside = universal and not cells[0].isdigit()
            if not comment and not outside and not line.startswith("-DOCSTART-"):
                start = number if not lines else start
                lines.append(cells)
        elif lines:
            widths = {len(cells) for cells in lines}
            if len(widths) > 1:
                yield (
                    f"{path.name}:{start}",
                    BadRowError(f"lines of a sentence differ in columns ({sorted(widths)})"),
                )
            else:
                columns = {str(i): list(c) for i, c in enumerate(zip(*lines, strict=True))}
                # Counted from the end, too: the last column is '-1'.
                columns |= {str(i - len(columns)): c for i, c in enumerate(columns.values())}
                yield f"{path.name}:{start}", columns
            lines = []


def _marked(text: str, path: pathlib.Path) -> Iterator[tuple[str, Row | BadRowError]]:
    """SemEval-2010 task 8: a number and a sentence with two entities in tags; its relation.

    Comments are left out. Columns: 'id', 'text' without the tags, 'head' and 'tail' (first and
    behind the last character of e1 and e2), 'label'.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("Comment")]
    for i, (number, line) in enumerate(lines):
        first, _, sentence = line.partition("\t")
        if not first.isdigit() or not sentence:
            continue
        place = f"{path.name}:{number}"
        sentence = sentence.strip().removeprefix('"').removesuffix('"')
        row: Row = {"id": first, "text": ""}
        end = 0
        for tag in _TAG.finditer(sentence):
            row["text"] += sentence[end : tag.start()]
            row.setdefault("head" if tag[1] == "1" else "tail", []).append(len(row["text"]))
            end = tag.end()
        row["text"] += sentence[end:]
        following = lines[i + 1][1] if i + 1 < len(lines) else "\t"
        if "\t" in following:
            yield place, BadRowError("a sentence without a relation below it")
        elif any(len(row.get(which, ())) != 2 for which in ("head", "tail")):
            yield place, BadRowError("not one <e1>...</e1> and one <e2>...</e2>")
        else:
            yield place, row | {"label": following}


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
    """Bytes as text, classes by their names, arrays as lists."""
    if isinstance(value, dict):
        return {k: _plain(v, feature[k]) for k, v in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    of_items = getattr(feature, "feature", feature)  # that of a sequence's items
    if isinstance(value, np.ndarray | list):
        return [_plain(v, of_items) for v in value]
    if hasattr(of_items, "int2str") and int(value) >= 0:
        return of_items.int2str(int(value))
    return value.item() if isinstance(value, np.generic) else value
