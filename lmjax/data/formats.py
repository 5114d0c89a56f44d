"""Readers of row files: JSON, CSV, TSV, CoNLL columns and SemEval-2010's marked sentences.

An invalid row is replaced by a BadRowError; an error of the whole file raises ConfigError.
"""

import collections
import csv
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmjax.data.files import (
    COLUMNS,
    TABLES,
    BadRowError,
    form_of,
    json_row,
    json_value,
    read_lines,
)
from lmjax.errors import ConfigError

Row = dict[str, Any]
_Numbered = Iterator[tuple[int, Row | BadRowError]]  # by line

_MARKED = re.compile(r"[ \t]*[0-9]+\t.*<e1>")
_TAG = re.compile(r"</?e([12])>")
_DOCUMENT = re.compile(r"-DOCSTART-|#begin document (\(.*?\))|#end document")
_NEW_DOCUMENT = re.compile(r"#\s*newdoc\b(?:\s+id\s*=\s*(\S.*))?")


class Sentence(Row):
    """The columns of a sentence in CoNLL format: {'0': [...], '1': [...], ..., '-1': [...]}.

    Attributes:
      lines: line number of each token.
      document: name of the sentence's document; '' if the file does not mark documents.
    """

    def __init__(self, tokens: Mapping[int, Sequence[str]], document: str) -> None:
        """Takes the cells of each token, by line number."""
        columns = [list(column) for column in zip(*tokens.values(), strict=True)]
        super().__init__({str(i): column for i, column in enumerate(columns)})
        # Columns are also counted from the end: the last one is '-1'.
        self.update({str(i - len(columns)): column for i, column in enumerate(columns)})
        self.lines = tuple(tokens)
        self.document = document


def holds_rows(path: pathlib.Path) -> bool:
    """Whether `file_rows` can read a file of this name."""
    return form_of(path) in (*TABLES, *COLUMNS, ".txt")


def file_rows(
    path: pathlib.Path, header: bool, where: str
) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yields (place, columns) of each row of a file.

    Args:
      header: whether the first line of .csv and .tsv files contains the column names.
      where: the config field or flag of the file, for error messages.

    Raises:
      ConfigError: the file has an unknown format, cannot be read, or has an invalid header.
    """
    form = form_of(path)
    if not holds_rows(path):
        raise ConfigError(
            f"{where}: '{path}': unknown format '{form}'; use one of"
            f" {', '.join((*TABLES, *COLUMNS))}, or .txt with CoNLL columns or SemEval-2010's"
            " marked sentences"
        )
    lines = read_lines(path, where, ends=form in (".json", ".csv"))
    if form == ".json":
        rows = _json_list("".join(line for _, line in lines), path, where)
        yield from ((f"{path.name}[{i}]", row) for i, row in enumerate(rows, start=1))
        return
    if form == ".jsonl":
        found: _Numbered = ((n, json_row(line)) for n, line in lines if line.strip())
    elif form == ".csv":
        found = _table(_csv_records(lines), path, header, where)
    elif form == ".tsv":  # as in GLUE: quotes have no special meaning
        cells = ((n, line.split("\t")) for n, line in lines if line)
        found = _table(cells, path, header, where)
    else:
        found = _sentences(lines, path, form == ".conllu")
    yield from ((f"{path.name}:{number}", row) for number, row in found)


def _json_list(text: str, path: pathlib.Path, where: str) -> list[Row | BadRowError]:
    """Returns the rows of a list of objects, at top level or under 'data' (SQuAD)."""
    try:
        values = json_value(text)
    except ValueError as error:
        raise ConfigError(f"{where}: '{path}' is not JSON ({error})") from error
    if isinstance(values, BadRowError):
        raise ConfigError(f"{where}: '{path}': {values}; rename one of them")
    rows = values.get("data") if isinstance(values, dict) else values
    if not isinstance(rows, list):
        others = [
            name
            for name, value in (values.items() if isinstance(values, dict) else ())
            if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        remedy = "write it to a .jsonl file, one object per line"
        if others:
            remedy = (
                f"there are lists under {', '.join(map(repr, others))}: write one to a .jsonl file,"
                f" for example with jq -c '.[{json.dumps(others[0])}][]' {path.name} > rows.jsonl"
            )
        raise ConfigError(
            f"{where}: '{path}' has no list of rows at top level or under 'data'; {remedy}"
        )
    good = dict | BadRowError
    return [row if isinstance(row, good) else BadRowError("not a JSON object") for row in rows]


class _Rereadable:
    """An iterator over numbered lines to which lines can be put back.

    Attributes:
      taken: lines read since it was last cleared.
    """

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._again: collections.deque[tuple[int, str]] = collections.deque()
        self.taken: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.taken.append(self._again.popleft() if self._again else next(self._lines))
        return self.taken[-1][1]

    def put_back(self, lines: Sequence[tuple[int, str]]) -> None:
        self._again.extendleft(reversed(lines))


def _csv_records(
    lines: Iterator[tuple[int, str]],
) -> Iterator[tuple[int, list[str] | BadRowError]]:
    """Yields the cells of each CSV record (RFC 4180), with the number of its first line.

    A record with an unterminated quote is one bad row, at the line where the quote opens. Reading
    continues with the next line, so that the cell does not swallow the following rows.
    """
    csv.field_size_limit(sys.maxsize)
    source = _Rereadable(lines)
    reader = csv.reader(source, strict=True)
    while True:
        source.taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line" in str(error):
                yield source.taken[-1][0], BadRowError("a CR outside quotes")
                continue
            opened = _opening([line for _, line in source.taken])
            source.put_back(source.taken[opened + 1 :])
            why = "a quoted cell that is not closed, or contains a quote that is not doubled"
            yield source.taken[opened][0], BadRowError(why)
            continue
        if cells:
            yield source.taken[0][0], cells


def _opening(lines: Sequence[str]) -> int:
    """Returns the index of the line on which the last quoted cell of a bad record begins."""
    state, opened = "begin", 0
    for i, line in enumerate(lines):
        for character in line:
            if state == "quoted":
                state = "closed" if character == '"' else "quoted"
            elif character == '"' and state == "begin":
                state, opened = "quoted", i
            elif character == '"' and state == "closed":  # it was doubled
                state = "quoted"
            elif character in ",\r\n":
                state = "begin"
            elif state == "closed":
                return opened
            else:
                state = "plain"
    return opened


def _table(
    records: Iterable[tuple[int, list[str] | BadRowError]],
    path: pathlib.Path,
    header: bool,
    where: str,
) -> _Numbered:
    names: list[str] | None = None
    for number, cells in records:
        if names is None and header:
            names = _header(cells, f"{where}: '{path}', line {number}")
        elif isinstance(cells, BadRowError):
            yield number, cells
        else:
            names = names or [str(i) for i in range(len(cells))]
            if len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            else:
                why = f"number of cells differs from columns ({len(cells)}, {len(names)})"
                yield number, BadRowError(why)


def _header(cells: list[str] | BadRowError, place: str) -> list[str]:
    if isinstance(cells, BadRowError):
        raise ConfigError(f"{place}: {cells}; fix the header")
    name, count = collections.Counter(cells).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{place}: {count} columns are named '{name}'; rename them")
    return cells


def _sentences(lines: Iterator[tuple[int, str]], path: pathlib.Path, universal: bool) -> _Numbered:
    """Reads CoNLL columns or SemEval-2010 sentences, as detected from the first line."""
    for number, line in lines:
        if line.strip():
            every = itertools.chain([(number, line)], lines)
            yield from _marked(every) if _MARKED.match(line) else _conll(every, path, universal)


def _conll(lines: Iterable[tuple[int, str]], path: pathlib.Path, universal: bool) -> _Numbered:
    """Reads one token per line, with blank lines between sentences.

    Columns are separated by tabs or, except in CoNLL-U, by spaces if a line has no tab. Lines that
    mark documents are skipped ('-DOCSTART-', '#begin document'). In CoNLL-U files, comments,
    multiword tokens ('1-2') and empty nodes ('1.1') are skipped too.
    """
    tokens: dict[int, list[str]] = {}  # by line
    bad: tuple[int, BadRowError] | None = None
    document, width = "", 0
    for number, line in itertools.chain(lines, [(0, "")]):
        line = line.rstrip(" \t")
        mark = (_NEW_DOCUMENT if universal else _DOCUMENT).match(line)
        if line and not mark:
            if universal and line.startswith("#"):
                continue
            apart = universal or "\t" in line
            cells = line.split("\t") if apart else re.split(" +", line.lstrip(" "))
            if not universal or re.fullmatch("[0-9]+", cells[0]):
                tokens[number] = cells
            elif not re.fullmatch("[0-9]+[-.][0-9]+", cells[0]):
                why = "no word number before the first tab of a line (CoNLL-U)"
                bad = bad or (number, BadRowError(why))
            continue
        if bad:
            yield bad
        elif tokens:
            widths = {n: len(cells) for n, cells in tokens.items()}
            if width not in widths.values():
                width = collections.Counter(widths.values()).most_common(1)[0][0]
            other = next((n for n, found in widths.items() if found != width), None)
            if other is None:
                yield next(iter(tokens)), Sentence(tokens, document)
            else:
                why = f"lines of a sentence differ in their columns ({widths[other]}, not {width})"
                yield other, BadRowError(why)
        tokens, bad = {}, None
        if mark:
            ended = line.startswith("#end")
            document = "" if ended else (mark[1] or f"{path.name}:{number}")


def _marked(lines: Iterable[tuple[int, str]]) -> _Numbered:
    """Reads SemEval-2010 task 8: numbered sentences with two tagged entities, and relations.

    Comments are skipped. Columns: 'id', 'text' without the tags, 'head' and 'tail' (begin and end
    of the characters of e1 and e2), and 'label' if a relation follows the sentence.
    """
    waiting: tuple[int, Row | BadRowError] | None = None  # until its relation is read
    for number, line in lines:
        line = line.strip(" \t")
        if not line or line.startswith("Comment"):
            continue
        begin = re.match(r"([0-9]+)\t", line)
        if begin and waiting:
            yield waiting
        if begin:
            waiting = number, _marked_sentence(begin[1], line[begin.end() :])
        elif waiting:
            place, row = waiting
            yield place, row | {"label": line} if isinstance(row, dict) else row
            waiting = None
        else:
            yield number, BadRowError("neither a numbered sentence nor the relation after one")
    if waiting:
        yield waiting


def _marked_sentence(number: str, text: str) -> Row | BadRowError:
    text = text.strip(" \t").removeprefix('"').removesuffix('"')
    row: Row = {"id": number, "text": ""}
    end = 0
    for tag in _TAG.finditer(text):
        row["text"] += text[end : tag.start()]
        row.setdefault("head" if tag[1] == "1" else "tail", []).append(len(row["text"]))
        end = tag.end()
    row["text"] += text[end:]
    if any(len(row.get(which, ())) != 2 for which in ("head", "tail")):
        return BadRowError("not exactly one <e1>...</e1> and one <e2>...</e2>")
    return row
