"""Forms of rows: documents, separators, quotes, names; what is wrong is one row or the file."""

import glob
import json
import lzma
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from lmjax.data.rows import BadRowError, Notes, RowsConfig, column, read_split
from lmjax.errors import ConfigError


def read(path: Any, parse: Callable[..., Any] = dict, **fields: Any) -> list[Any]:
    notes = fields.pop("notes", Notes())
    config = RowsConfig(train="none.csv", test=str(path), **fields)
    return read_split(config, "test", parse, lambda *_: iter(()), notes)


def test_a_conll_line_that_differs_is_named(tmp_path: pathlib.Path) -> None:
    good = "a X\nb Y\n\n"
    (tmp_path / "c.conll").write_text(f"{good}c X\nd\ne Y\n\n{good}f\ng X\n\nh X\ni Y Z\n")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "c.conll")
    message = str(caught.value)
    assert "3 of 5 rows" in message
    assert all(f"c.conll:{n}: lines of a sentence differ" in message for n in (5, 11, 15))
    # No line of CoNLL-U is dropped because nothing is known of it.
    (tmp_path / "u.conllu").write_text("1\ta\n2\tb\n\n# c\n1 \ta\n2\tb\n\n1\ta\n1.1\tc\n")
    with pytest.raises(ConfigError, match=r"1 of 3 rows .* u\.conllu:5: no word number"):
        read(tmp_path / "u.conllu")
    notes = Notes()
    assert len(read(tmp_path / "u.conllu", notes=notes, on_bad_rows="skip")) == 2
    assert sum(notes.counts.values()) == 1


def test_columns_are_apart_as_the_form_says(tmp_path: pathlib.Path) -> None:
    (tmp_path / "b.conll").write_text(" a\u00a0b   c\x85 X \t\n\u2028 - Y\n \t \nz\x0c w V\n")
    first, second = read(tmp_path / "b.conll")
    assert first["0"] == ["a\u00a0b", "\u2028"] and first["1"] == ["c\x85", "-"]
    assert first["2"] == ["X", "Y"] and second["0"] == ["z\x0c"]
    (tmp_path / "u.conllu").write_text("1\tten thousand\tX Y\n2\tb\t \u3000\n")
    (row,) = read(tmp_path / "u.conllu")
    assert row["1"] == ["ten thousand", "b"] and row["2"] == ["X Y", " \u3000"]


MARKS = {
    "c.conll": ("-DOCSTART- -X- O\n\n", "{} X\n\n"),
    "d.conll": ("-DOCSTART- ({})\n", "{} X\n\n"),  # no blank line below
    "o.conll": ("#begin document (a/b/{}); part 000\n", "{} X\n\n"),
    "u.conllu": ("# newdoc id = d-{}\n# newpar\n", "# text = x\n1\t{}\tX\n\n"),
    "v.conllu": ("# newdoc\n", "1\t{}\tX\n\n"),
}


def sides(path: pathlib.Path) -> tuple[list[Any], list[Any]]:
    config = RowsConfig(train=str(path))
    train, held_out = (
        read_split(config, split, dict, lambda *_: iter(()), Notes())
        for split in ("train", "validation")
    )
    return train, held_out


@pytest.mark.parametrize("name", MARKS)
def test_documents_are_held_out_whole(name: str, tmp_path: pathlib.Path) -> None:
    mark, sentence = MARKS[name]
    words = "1" if name.endswith("u") else "0"
    documents = [[f"w{d}.{i}" for i in range(1 + d % 7)] for d in range(60)]
    documents[40] = documents[30]  # a copy, which is held out with it

    def text(documents: list[list[str]]) -> str:
        return "".join(
            mark.format(i) + "".join(map(sentence.format, words))
            for i, words in enumerate(documents)
        )

    (tmp_path / name).write_text(text(documents))
    train, held_out = sides(tmp_path / name)
    assert len(train) + len(held_out) == sum(map(len, documents))
    of_train, of_held_out = ({row[words][0] for row in rows} for rows in (train, held_out))
    assert not of_train & of_held_out
    assert of_train and of_held_out
    assert all(set(d) <= of_train or set(d) <= of_held_out for d in documents)
    assert len({row["document"] for row in held_out}) in range(2, 14)  # of 60, a tenth by hash
    # Of few documents one is held out; one alone is no reason to hold out nothing.
    (tmp_path / name).write_text(text(documents[:3]))
    train, held_out = sides(tmp_path / name)
    assert {row["document"] for row in train}.isdisjoint(row["document"] for row in held_out)
    (tmp_path / name).write_text(text([[f"w{i}" for i in range(200)]]))
    train, held_out = sides(tmp_path / name)
    assert len(train) + len(held_out) == 200 and 5 < len(held_out) < 40


def test_the_same_document_in_pieces_is_one(tmp_path: pathlib.Path) -> None:
    text = "".join(f"# newdoc id = {i % 9}\n1\tw{i}\n\n" for i in range(90))
    (tmp_path / "u.conllu").write_text(text)
    train, held_out = sides(tmp_path / "u.conllu")
    assert {row["document"] for row in train}.isdisjoint(row["document"] for row in held_out)


def test_without_documents_a_row_keeps_its_side(tmp_path: pathlib.Path) -> None:
    """By a hash of what its columns hold, whatever else is in the file."""
    text = "".join(f"w{i} X\nv{i} Y\n\n" for i in range(100))
    (tmp_path / "c.conll").write_text(text)
    (tmp_path / "r.csv").write_text("a,b\n" + "".join(f"row {i},{i}\n" for i in range(100)))
    held_out = "w18 w20 w48 w51 w55 w71 w72 w78 w96 w99"
    assert [row["0"][0] for row in sides(tmp_path / "c.conll")[1]] == held_out.split()
    held_out = "14 37 39 41 44 52 76 77 81"
    assert [row["b"] for row in sides(tmp_path / "r.csv")[1]] == held_out.split()


def test_an_open_quote_swallows_no_row(tmp_path: pathlib.Path) -> None:
    lines = ["a,b", "one,1", '"two,2', "three,3", '"four, with ""quotes""",4', '"five', 'lines",5']
    for ends in ("\n", "\r\n"):
        (tmp_path / "r.csv").write_text(ends.join(lines) + ends, newline="")
        with pytest.raises(
            ConfigError, match=r"1 of 5 rows .* r\.csv:3: a quoted cell that is not"
        ):
            read(tmp_path / "r.csv")
        notes = Notes()
        found = read(tmp_path / "r.csv", notes=notes, on_bad_rows="skip")
        assert [row["b"] for row in found] == ["1", "3", "4", "5"]
        assert [row["where"] for row in found] == [f"r.csv:{n}" for n in (2, 4, 5, 6)]
        assert found[2]["a"] == 'four, with "quotes"' and found[3]["a"] == f"five{ends}lines"
        assert sum(notes.counts.values()) == 1


@pytest.mark.parametrize(
    ("lines", "bad", "good"),
    [
        (['"x,1', "y,2"], [2], ["2"]),  # open until the end of the file
        (["y,2", '"x,1'], [3], ["2"]),
        (['"x,1', "y,2", '"z,3', "w,4"], [2, 4], ["2", "4"]),
        (['"x"y,1', "z,2"], [2], ["2"]),  # text behind the quote that closes a cell
        (['"x\\"y",1', "z,2"], [2], ["2"]),
        (['"two', 'lines","x,1', "z,2"], [3], ["2"]),  # the second cell opens on the second line
        (['"two', 'lines",1', '"x,2', '"y",3'], [4], ["1", "3"]),
        (['5" pipe,1', '6" pipe,2'], [], ["1", "2"]),  # no quote, for it opens no cell
        (["x,1,", "y", "z,2"], [2, 3], ["2"]),
        (['"",1', '"""x""",2'], [], ["1", "2"]),
    ],
)
def test_quotes_of_csv(
    lines: list[str], bad: list[int], good: list[str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "r.csv").write_text("\n".join(["a,b", *lines]))
    notes = Notes()
    found = read(tmp_path / "r.csv", notes=notes, on_bad_rows="skip")
    assert [row["b"] for row in found] == good
    assert [int(x.split(":")[1]) for x in notes.named] == bad
    assert sum(notes.counts.values()) == len(bad)


@pytest.mark.parametrize("rule", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "a,b,b\n1,2,3\n"),
        ("r.csv", '"a",b,"a"\n1,2,3\n'),
        ("r.csv", "\ufeffa,b,,\n1,2,3,4\n"),
        ("r.tsv", "a\tb\ta\n1\t2\t3\n"),
        ("r.csv", 'a,"b\n1,2\n'),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(
    name: str, text: str, rule: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}', line 1: (2 columns are named|a quoted cell)"):
        read(tmp_path / name, on_bad_rows=rule)


def test_what_is_odd_in_a_row_is_skipped_with_it(tmp_path: pathlib.Path) -> None:
    def parse(values: dict[str, Any]) -> dict[str, Any]:
        return {"a": column(values, "a", "text")}

    texts = {
        "r.jsonl": '{"a": "1"}\n{"a": "x", "a": "y"}\n{"a": "\\ud800"}\n{"a": NaN}\n{"a": 1e999}\n'
        '{"b": "2"}\n[]\n' + '{"a": ' + "[" * 9999 + '\n{"a": "\u2028", "c": NaN}\n',
        "r.json": '[{"a": "1"}, {"a": "x", "a": "y"}, {"a": "\\udfff"}, {"a": -Infinity},'
        ' {"a": null}, {}, [], 7, {"a": "\u2028"}]',
        "r.csv": 'a\n1\nx,y\n"x\n"x"y\nx\ry\n"z\rz" \nu,\n,v\n"\u2028"',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, newline="")
        notes = Notes()
        found = read(tmp_path / name, parse, notes=notes, on_bad_rows="skip")
        assert [row["a"] for row in found] == ["1", "\u2028"], name
        assert sum(notes.counts.values()) == 7, (name, notes)


def test_lists_of_json_that_stand_elsewhere_are_named(tmp_path: pathlib.Path) -> None:
    values = {"version": 1, "examples": [{"a": "1"}], "labels": ["x"], "te st": [{"a": "2"}]}
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"r\.json' has no list .* under 'examples', 'te st'"):
        read(tmp_path / "r.json")


def test_a_message_has_one_line(tmp_path: pathlib.Path) -> None:
    def parse(values: dict[str, Any]) -> dict[str, Any]:
        raise BadRowError(f"no {values['a']}")

    (tmp_path / "r.csv").write_text('a\n"x\ny\x85z\u2028"\n')
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "r.csv", parse)
    assert len(str(caught.value).splitlines()) == 1


def test_a_directory_is_answered_with_what_is_in_it(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "data [1]"
    folder.mkdir()
    for name in ("a.conll", "b.conll", "c.conll.xz", "README.md", "d.pdf"):
        (folder / name).write_bytes(lzma.compress(b"x X\n") if name[-1] == "z" else b"x X\n")
    for spec in (folder, f"{folder}/"):
        with pytest.raises(ConfigError, match=r"is a directory; give a glob such as") as caught:
            read(spec)
    globs = re.findall(r"'([^']*\*[^']*)' \((\d) file", str(caught.value))
    assert [count for _, count in globs] == ["2", "1"]
    for pattern, count in globs:
        assert len(read(pattern)) == int(count)
    with pytest.raises(
        ConfigError, match=r"no such file '.*\*\.txt'; give a glob such as '.*conll'"
    ):
        read(f"{glob.escape(str(folder))}/*.txt")
    with pytest.raises(ConfigError, match=r"no such file .* did you mean '.*a\.conll'\?"):
        read(folder / "a.conl")
    with pytest.raises(ConfigError, match=r"is a directory; give a glob .*/\*/\*\.conll'"):
        read(tmp_path)
