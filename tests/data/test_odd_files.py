"""Every reader of files, given every odd input: it reads the text, or refuses file and row."""

import csv
import gzip
import io
import json
import lzma
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from experiments.applications.desk import read_sections
from lmjax.data.corpora import open_corpus
from lmjax.data.files import read_texts
from lmjax.data.rows import Notes, Row, RowsConfig, column, read_split
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import read_last_words
from lmjax.evaluation.minimal_pairs import read_pairs
from lmjax.evaluation.prompting import read_questions
from lmjax.tasks.question_answering import QuestionAnswering
from tests.tasks import small

TASK = QuestionAnswering(
    vocabulary=small.vocabulary(small.tokenizer()),
    model=small.model("bert"),
    length=64,
    question_length=8,
    no_answer=True,
)

# Writers: the bytes of a file with these texts, one after the other.


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1 if "data" in value else None)


def json_lines(name: str, **others: Any) -> Callable[[list[str]], str]:
    return lambda texts: "".join(dumped({name: t, **others}) + "\n" for t in texts)


def table(texts: list[str]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([["text"], *([t] for t in texts)])
    return file.getvalue()


def squad(texts: list[str]) -> str:
    asked = [{"id": f"q{i}", "question": "?", "answers": []} for i in range(len(texts))]
    paragraphs = [{"context": t, "qas": [q]} for t, q in zip(texts, asked, strict=True)]
    return dumped({"data": [{"paragraphs": paragraphs}]})


# Readers: the texts that are found in a file.


def rows(path: pathlib.Path, parse: Callable[[Row], Any], skip: bool = False) -> list[Row]:
    rule: Any = "skip" if skip else "refuse"
    config = RowsConfig(train="none.csv", test=str(path), on_bad_rows=rule)
    return read_split(config, "test", parse, lambda *_: iter(()), Notes())


def cells(path: pathlib.Path, skip: bool = False) -> list[str]:
    found = rows(path, lambda values: {"text": column(values, "text", "text")}, skip)
    return [row["text"] for row in found]


def words(name: str) -> Callable[[pathlib.Path], list[str]]:
    return lambda path: [word for row in rows(path, dict) for word in row[name]]


def contexts(path: pathlib.Path) -> list[str]:
    return [row["context"] for row in rows(path, TASK.parse)]


def questions(path: pathlib.Path) -> list[str]:
    config = {
        "seed": 0,
        "rows": 0,
        "template": {"prompt": "{text}", "labels": ("x", "y")},
        "data": {"train": str(path), "validation": str(path)},
    }
    return [row["prompt"] for row in read_questions(config).rows]


def last_words(path: pathlib.Path) -> list[str]:
    found = read_last_words(str(path), "text", "refuse", Notes())
    return [f"{row['context']}{row['word']}" for row in found]


SEMEVAL = '{n}\t"{text} <e1>x</e1> <e2>y</e2>"\nOther\nComment:\n\n'
READERS: dict[str, tuple[str, Callable[[list[str]], str], Callable[[pathlib.Path], list[str]]]] = {
    "corpus": ("f.txt", lambda t: "\n\n".join(t) + "\n", lambda p: documents(p)),
    "json corpus": ("f.jsonl", json_lines("text"), lambda p: documents(p)),
    "json lines": ("f.jsonl", json_lines("text"), cells),
    "json": ("f.json", lambda t: dumped({"data": [{"text": x} for x in t]}), cells),
    "csv": ("f.csv", table, cells),
    "tsv": ("f.tsv", lambda t: "".join(f"{x}\n" for x in ["text", *t]), cells),
    "conll": ("f.conll", lambda t: "".join(f"{x}\tO\n\n" for x in t), words("0")),
    "blanks": ("f.bio", lambda t: "".join(f"{x} O\n\n" for x in t), words("0")),
    "conllu": ("f.conllu", lambda t: "".join(f"# c\n1\t{x}\t_\n\n" for x in t), words("1")),
    "marked": (
        "f.txt",
        lambda t: "".join(SEMEVAL.format(n=n, text=x) for n, x in enumerate(t)),
        lambda p: [row["text"].removesuffix(" x y") for row in rows(p, dict)],
    ),
    "contexts": ("f.json", squad, contexts),
    "questions": ("f.jsonl", json_lines("text", label="x"), questions),
    "pairs": ("f.jsonl", json_lines("good", bad="b"), lambda p: [x.good for x in read_pairs(p)]),
    "prompts": (
        "f.txt",
        lambda t: "".join(f"{x}\n" for x in t),
        lambda p: list(read_texts(str(p), "--prompts", "prompt")),
    ),
    "json prompts": (
        "f.jsonl",
        json_lines("prompt"),
        lambda p: list(read_texts(str(p), "--prompts", "prompt")),
    ),
    "last words": ("f.txt", lambda t: "".join(f"{x} w\n" for x in t), lambda p: spoken(p)),
    "sections": (
        "f.jsonl",
        json_lines("text", intent="i", source="s"),
        lambda p: [section.text for section in read_sections(str(p))],
    ),
}
JSON = {name for name, (file, _, _) in READERS.items() if ".json" in file}
JSON_LINES = {name for name in JSON if READERS[name][0] == "f.jsonl"}
LINES = READERS.keys() - JSON


def documents(path: pathlib.Path) -> list[str]:
    return list(open_corpus(str(path), "all").documents())


def spoken(path: pathlib.Path) -> list[str]:
    return [text.removesuffix(" w") for text in last_words(path)]


def written(reader: str, texts: list[str]) -> bytes:
    return READERS[reader][1](texts).encode()


def read(reader: str, folder: pathlib.Path, data: bytes, ending: str = "") -> list[str]:
    path = folder / f"{READERS[reader][0]}{ending}"
    path.write_bytes(data)
    return READERS[reader][2](path)


ODD_TEXTS = {
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "no-break space": "10\u00a0000",
    "ideographic space": "a\u3000b",
    "form feed": "a\x0cb",
    "vertical tab": "a\x0bb",
    "file separators": "a\x1cb\x1db\x1eb\x1fb",
    "nul": "a\x00b",
    "byte order mark inside": "a\ufeffb",
    "quotes": 'a"b""c',
    "special tokens": "[MASK][PAD]<|endoftext|></s>[EOD]",
    "backslashes": "a\\nb\\",
    "pair of surrogates": "\U0001f600",
    "huge": "x" * (1 << 21),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("odd", ODD_TEXTS)
def test_a_text_is_read_as_it_is(odd: str, reader: str, tmp_path: pathlib.Path) -> None:
    texts = ["one", ODD_TEXTS[odd], "three"]
    assert read(reader, tmp_path, written(reader, texts)) == texts
    plain = ["one", "two", "three"]
    if odd in ("next line", "line separator", "form feed"):  # at the ends of a line, too
        texts = [f"{ODD_TEXTS[odd][1]}{text}{ODD_TEXTS[odd][1]}" for text in plain]
        found = read(reader, tmp_path, written(reader, texts))
        # The ends of a document are white space, and of no use.
        assert found == (plain if "corpus" in reader else texts)


@pytest.mark.parametrize("reader", READERS)
def test_line_ends_marks_and_packing_are_no_text(reader: str, tmp_path: pathlib.Path) -> None:
    texts = ["one", "zwei häuslich".replace(" ", "-"), "three"]
    data = written(reader, texts)
    crlf, bom = data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf"
    for odd in (bom + data, crlf, bom + crlf, data.rstrip(b"\n")):
        assert read(reader, tmp_path, odd) == texts
    assert read(reader, tmp_path, gzip.compress(bom + crlf), ".gz") == texts
    assert read(reader, tmp_path, gzip.compress(data[:9]) + gzip.compress(data[9:]), ".gz") == texts
    assert read(reader, tmp_path, lzma.compress(data), ".XZ") == texts


def spoilt(data: bytes) -> bytes:
    """With bytes in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes(255 - x for x in data[middle : middle + 20]) + data[middle + 20 :]


_WRONG = "cannot read|not UTF-8|not JSON"  # a checksum stands behind the bytes that are wrong
# The ending that a file is given, what is done to its bytes, and what is said of it.
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty": ("", lambda data: b"", "empty|has no rows|no pair|not JSON"),
    "blank": (
        "",
        lambda data: b" \n\n\t\n",
        "empty|has no rows|no pair|not JSON|is valid|are invalid",
    ),
    "truncated gz": (".gz", lambda data: gzip.compress(data)[:-40], "cannot read"),
    "corrupt gz": (
        ".gz",
        lambda data: spoilt(gzip.compress(data)),
        "cannot read|not UTF-8|not JSON",
    ),
    "wrong sum gz": (".gz", lambda data: gzip.compress(data)[:-8] + b"12345678", "cannot read"),
    "no gz": (".gz", lambda data: data, "cannot read"),
    "truncated xz": (".xz", lambda data: lzma.compress(data)[:-40], "cannot read"),
    "corrupt xz": (".xz", lambda data: spoilt(lzma.compress(data)), _WRONG),
    "no xz": (".xz", lambda data: data, "cannot read"),
    "latin-1": ("", lambda data: data.replace(b"x7y", b"\xe9"), "not UTF-8 at byte"),
    "utf-16": ("", lambda data: data.decode().encode("utf-16"), "not UTF-8 at byte 0"),
    "half a surrogate pair": ("", lambda data: data.replace(b"x7y", b"\xed\xa0\xbd"), "not UTF-8"),
    "cut character": ("", lambda data: data + "é".encode()[:1], "not UTF-8 at byte"),
    "old Mac's line ends": ("", lambda data: data.replace(b"\n", b"\r"), "has CR line endings"),
}
# No text is no error where a list of texts is asked for; its users refuse it.
MAY_BE_NOTHING = {("empty", "prompts"), ("blank", "prompts"), ("empty", "json prompts")}
MAY_BE_NOTHING |= {("blank", "json prompts"), ("empty", "sections"), ("blank", "sections")}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("odd", DAMAGE)
def test_a_damaged_file_is_refused_by_name(odd: str, reader: str, tmp_path: pathlib.Path) -> None:
    if (odd, reader) in MAY_BE_NOTHING:
        return
    ending, spoil, says = DAMAGE[odd]
    noise = [f"x{i * 7919 % 10007}y" for i in range(1000)] + ["x7y"]
    with pytest.raises(ConfigError, match=says) as caught:
        read(reader, tmp_path, spoil(written(reader, noise)), ending)
    assert re.search(rf"f\.\w+{ending}", str(caught.value))
    assert len(re.split("[\n\r\x85\u2028]", str(caught.value))) == 1


# What is done to the second of three texts in JSON, 'two', and what is said of it. A row that can
# be told from the others is named.
ODD_JSON = {
    "half a surrogate pair": (rb"\ud83d", "an unpaired surrogate"),
    "the other half": (rb"a\uDC00b", "an unpaired surrogate"),
    "a name twice": (b'two", "{name}": "too', "two values are named '{name}'"),
    "no string": (b'", "{name}": NaN, "x": "', "two values are named"),
    "a control character": (b"a\x01b", "not JSON"),
    "a quote": (b'a"b', "not JSON"),
}


@pytest.mark.parametrize("reader", sorted(JSON))
@pytest.mark.parametrize("odd", ODD_JSON)
def test_what_json_cannot_say_is_refused_by_row(
    odd: str, reader: str, tmp_path: pathlib.Path
) -> None:
    name = {"pairs": "good", "json prompts": "prompt", "contexts": "context"}.get(reader, "text")
    instead, says = ODD_JSON[odd]
    data = written(reader, ["one", "two", "three"])
    data = data.replace(b"two", instead.replace(b"{name}", name.encode()))
    with pytest.raises(ConfigError, match=says.format(name=name)) as caught:
        read(reader, tmp_path, data)
    if reader in JSON_LINES:
        assert "f.jsonl:2" in str(caught.value)
    elif "JSON" not in says:
        place = r"f\.json\[1\]" if reader == "contexts" else r"f\.json\[2\]"
        assert re.search(place, str(caught.value))
    else:
        assert re.search(r"f\.json' is not JSON .*line \d+, column", str(caught.value))


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_corpus_of_nul_characters_is_refused(coding: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "f.txt").write_bytes("An English text.\n\nWithout a mark.".encode(coding))
    with pytest.raises(ConfigError, match=r"f\.txt' are NUL, so it is not UTF-8 text; convert it"):
        documents(tmp_path / "f.txt")


@pytest.mark.parametrize("reader", sorted(LINES))
def test_a_cr_is_a_character(reader: str, tmp_path: pathlib.Path) -> None:
    data = written(reader, ["one", "twotwo", "three"]).replace(b"twotwo", b"two\rtwo")
    if reader == "csv":  # but for CSV, where it stands in quotes or not at all
        with pytest.raises(ConfigError, match=r"f\.csv:3: a CR outside quotes"):
            read(reader, tmp_path, data)
        data = data.replace(b"two\rtwo", b'"two\rtwo"')
    assert read(reader, tmp_path, data) == ["one", "two\rtwo", "three"]
