"""Rows: every format, and what is wrong with one told by its place."""

import json
import lzma
import pathlib
from typing import Any

import pytest

from lmjax.data.rows import BadRowError, Notes, RowsConfig, column, draw, read_split
from lmjax.errors import ConfigError


def parse(values: dict[str, Any]) -> dict[str, Any]:
    if column(values, "a", "text") == "bad":
        raise BadRowError("it is bad")
    return dict(values)


def read(path: Any, split: str = "test", notes: Notes | None = None, **fields: Any) -> list[Any]:
    config = RowsConfig(**{"train": "none.csv", split: str(path), **fields})
    found = read_split(config, split, parse, lambda *_: iter(()), notes or Notes())
    return found


def without_place(rows: list[Any]) -> list[Any]:
    return [{k: v for k, v in row.items() if k != "where"} for row in rows]


def test_every_format_gives_the_same_rows(tmp_path: pathlib.Path) -> None:
    rows = [{"a": "one", "b": "1"}, {"a": 'tw"o', "b": "2"}]
    texts = {
        "r.jsonl": "\n\n".join(map(json.dumps, rows)),
        "r.json": json.dumps(rows),
        "s.json": json.dumps({"version": "x", "data": rows}),
        "r.csv": 'a,b\none,1\n"tw""o",2\n',
        "r.tsv": '\ufeffa\tb\r\none\t1\r\ntw"o\t2\r\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, newline="")
        assert without_place(read(tmp_path / name)) == rows, name
    packed = tmp_path / "r.csv.xz"
    packed.write_bytes(lzma.compress(texts["r.csv"].encode()))
    assert without_place(read(packed)) == rows
    assert read(tmp_path / "r.csv")[1]["where"] == "r.csv:3"


def test_without_a_header_columns_are_numbers(tmp_path: pathlib.Path) -> None:
    (tmp_path / "r.csv").write_text("x,y\n")
    with pytest.raises(ConfigError, match="no column 'a'"):
        read(tmp_path / "r.csv", header=False)
    config = RowsConfig(train=str(tmp_path / "r.csv"), header=False)
    config = RowsConfig(train="t.csv", test=str(tmp_path / "r.csv"), header=False)
    found = read_split(config, "test", dict, lambda *_: iter(()), Notes())
    assert without_place(found) == [{"0": "x", "1": "y"}]


def test_conll_columns(tmp_path: pathlib.Path) -> None:
    (tmp_path / "c.conll").write_text("-DOCSTART- O\n\nEU\tB-X\n's\tO\n\n\nLast B-Y\n")
    config = RowsConfig(train="t.csv", test=str(tmp_path / "c.conll"))
    first, second = read_split(config, "test", dict, lambda *_: iter(()), Notes())
    assert first["0"] == ["EU", "'s"]
    assert first["1"] == first["-1"] == ["B-X", "O"]
    assert first["where"] == "c.conll:3"
    assert second["0"] == second["-2"] == ["Last"]
    (tmp_path / "u.conllu").write_text("# text\n1-2\tdon't\n1\tdo\n1.1\tx\n2\tn't\n\n")
    config = RowsConfig(train="t.csv", test=str(tmp_path / "u.conllu"))
    (row,) = read_split(config, "test", dict, lambda *_: iter(()), Notes())
    assert row["1"] == ["do", "n't"]


def test_bad_rows_are_named_or_counted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": "bad"}\n{"a": "good"}\n{"a"\n[1]\n{"b": "x"}\n{"a": "bad"}\n')
    with pytest.raises(ConfigError) as caught:
        read(path)
    message = str(caught.value)
    assert "config.data.test: 5 of 6 rows are invalid: r.jsonl:1: it is bad" in message
    assert "r.jsonl:3: not JSON" in message
    assert "and 2 more" in message
    assert "on_bad_rows='skip'" in message
    notes = Notes()
    rows = read(path, notes=notes, on_bad_rows="skip")
    assert without_place(rows) == [{"a": "good"}]
    assert notes.counts["skipped: it is bad"] == 2
    assert sum(notes.counts.values()) == 5
    assert len(notes.named) == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e.jsonl", "", "has no rows"),
        ("e.csv", "a,b\n", "has no rows"),
        ("e.csv", "a,b\none\n", "number of cells differs from columns"),
        ("e.conll", "a b\nc\n", "lines of a sentence differ in their columns"),
        ("e.json", "{}", "no list of rows"),
        ("e.json", "{", "is not JSON"),
        ("e.xml", "<a/>", "unknown format '.xml'"),
        ("e.jsonl", '{"a": "bad"}', "it is bad"),
    ],
)
def test_files_that_cannot_be_used(
    name: str, text: str, message: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name)


def test_a_file_with_bad_rows_alone_cannot_be_skipped_away(tmp_path: pathlib.Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": "bad"}\n')
    with pytest.raises(ConfigError, match="none of the 1 rows"):
        read(tmp_path / "r.jsonl", on_bad_rows="skip")


def test_not_utf8_and_not_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"a\ncaf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "r.csv")
    with pytest.raises(ConfigError, match=r"config\.data\.test: no such file"):
        read(tmp_path / "missing.csv")


def test_without_validation_rows_a_tenth_is_held_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"a": f"row {i}"}) + "\n" for i in range(500)))
    config = RowsConfig(train=str(path))
    train, held_out = (
        {r["a"] for r in read_split(config, split, parse, lambda *_: iter(()), Notes())}
        for split in ("train", "validation")
    )
    assert not train & held_out
    assert len(train | held_out) == 500
    assert 30 < len(held_out) < 75
    assert not read_split(config, "test", parse, lambda *_: iter(()), Notes())


def test_draw_is_a_function_of_the_seed() -> None:
    rows = [{"a": i} for i in range(50)]
    assert draw(rows, 0, 1) == draw(rows, 50, 1) == draw(rows, 60, 1) == rows
    drawn = draw(rows, 10, 1)
    assert drawn == draw(rows, 10, 1) != draw(rows, 10, 2)
    assert len({row["a"] for row in drawn}) == 10
    assert sorted(drawn, key=lambda row: row["a"]) == drawn
