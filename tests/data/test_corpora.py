"""Corpora: what is read, how it is split, and what is refused."""

import collections
import gzip
import importlib.util
import inspect
import itertools
import json
import lzma
import os
import pathlib
import random
import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmjax.data import corpora, pydocs
from lmjax.data.corpora import check_corpus, open_corpus
from lmjax.data.near_copies import near_copy_groups
from lmjax.data.rows import Notes, RowsConfig, read_split
from lmjax.errors import ConfigError

DOCUMENTS = [f"Title {i}\nThe {i}th document, häuslich.\nIt ends." for i in range(400)]
TEXT = "\n\n".join(DOCUMENTS) + "\n"


def read(spec: object, split: str = "all") -> list[str]:
    return list(open_corpus(str(spec), split).documents())


def write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def test_blocks_between_blank_lines_are_documents(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.txt", b"\n\n one\ntwo \n \t\n\n\nthree\r\n\r\nfour")
    assert read(path) == ["one\ntwo", "three", "four"]


def test_packed_files_read_like_plain_ones(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.txt", TEXT.encode())
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(TEXT.encode())
    with lzma.open(tmp_path / "c.xz", "wb") as file:
        file.write(TEXT.encode())
    assert read(tmp_path / "a.txt") == DOCUMENTS
    assert read(tmp_path / "b.txt.gz") == DOCUMENTS
    assert read(tmp_path / "c.xz") == DOCUMENTS
    assert read(tmp_path / "*") == DOCUMENTS * 3


def test_json_lines_hold_a_document_each(tmp_path: pathlib.Path) -> None:
    texts = [*DOCUMENTS, "one\n\nand the same, behind a blank line", " \n", ""]
    lines = [json.dumps({"id": i, "text": text, "body": f"b{i}"}) for i, text in enumerate(texts)]
    path = write(tmp_path / "a.jsonl", "\n\n".join(lines).encode())
    with lzma.open(tmp_path / "b.jsonl.xz", "wb") as file:
        file.write(path.read_bytes())
    expected = texts[:-2]
    assert read(path) == read(tmp_path / "b.jsonl.xz") == expected
    assert read(tmp_path / "*") == 2 * expected
    held_out = read(path, "validation")
    assert sorted(read(path, "train") + held_out) == sorted(expected)
    assert 2 <= len(held_out) <= 20
    assert list(open_corpus(str(path), "all", text_feature="body").documents())[:2] == ["b0", "b1"]
    of_text, of_body = (
        open_corpus(str(path), "all", text_feature=name).fingerprint for name in ("text", "body")
    )
    as_text = write(tmp_path / "a.txt", path.read_bytes())
    assert len({of_text, of_body, open_corpus(str(as_text), "all").fingerprint}) == 3


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"text": "a"}', "b"], "a.jsonl:2: not JSON"),
        (['{"text": "a"}', "", '{"id": 1}'], r"a.jsonl:3: no text in column 'text' \(.* has: id\)"),
        (['{"text": ["a"]}'], "a.jsonl:1: no text in column 'text'"),
        (['{"text": ""}', '{"text": " "}'], "a.jsonl' is empty"),
        (['{"text": "\\ud800"}'], "a.jsonl:1: an unpaired surrogate"),
    ],
)
def test_a_line_that_holds_no_document_is_refused_at_once(
    lines: list[str], says: str, tmp_path: pathlib.Path
) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join(lines).encode())
    with pytest.raises(ConfigError, match=says):
        check_corpus(str(path))


def test_a_late_line_that_holds_no_document_is_named_when_it_is_read(
    tmp_path: pathlib.Path,
) -> None:
    line = json.dumps({"text": "word " * 200}) + "\n"
    path = write(tmp_path / "a.jsonl", (2000 * line + '{"body": "x"}\n').encode())
    check_corpus(str(path))  # of the first megabyte, which ends within a line
    with pytest.raises(ConfigError, match=r"a.jsonl:2001: .* set config.data.text_feature"):
        read(path)
    with pytest.raises(ConfigError, match=r"--data: .* set --text_feature to another"):
        check_corpus(str(path), "--data", text_feature="body")


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv.gz", "a.json", "a.ndjson", "a.conllu.xz", "a.parquet"]
)
def test_rows_are_no_text(name: str, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / name, b"a b")
    with pytest.raises(ConfigError, match=r"a '\.\w+' file contains rows, .* \.jsonl"):
        check_corpus(str(path))


@pytest.mark.parametrize("name", ["wiki_00", "a.gz", "a.jsonlines"])
def test_json_lines_by_another_name_are_no_text(name: str, tmp_path: pathlib.Path) -> None:
    data = b'{"text": "a"}\n{"text": "b"}\n'
    write(tmp_path / name, gzip.compress(data) if name == "a.gz" else data)
    with pytest.raises(ConfigError, match=rf"{name}' begins with a JSON object; rename it"):
        check_corpus(str(tmp_path / name))
    assert read(write(tmp_path / "a.txt", data)) == [data.decode().strip()]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tgz", "a.txt.zst", "a.txt.bz2"])
def test_archives_are_no_text(name: str, tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / name, b"a b")
    with pytest.raises(ConfigError, match=r"archives are not supported"):
        check_corpus(str(path))


def test_the_same_text_with_other_line_ends_is_the_same(tmp_path: pathlib.Path) -> None:
    lf = write(tmp_path / "a.txt", TEXT.encode())
    crlf = write(tmp_path / "b.txt", b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert read(lf) == read(crlf) == DOCUMENTS
    assert read(lf, "validation") == read(crlf, "validation")


def test_a_pipe_is_no_corpus(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(
        ConfigError, match="is not a regular file; a corpus must be readable more than once"
    ):
        check_corpus(str(tmp_path / "a.txt"))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TFDS finds all of its datasets"
)
@pytest.mark.parametrize("spec", ["glue/sst2", "wiki40b/en", "super_glue"])
def test_a_dataset_that_needs_tensorflow_is_not_said_to_be_unknown(
    spec: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(
        ConfigError, match=rf"needs TensorFlow, .* '{spec}'; .* TFDS_DATA_DIR"
    ) as caught:
        check_corpus(spec, cache_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    config = RowsConfig(train=spec, cache_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="TFDS needs TensorFlow"):
        read_split(config, "train", dict, lambda *_: iter(()), Notes())


def test_files_of_a_glob_are_read_by_name(tmp_path: pathlib.Path) -> None:
    for name in ("b", "c", "a"):
        write(tmp_path / f"{name}.txt", name.encode())
    assert read(tmp_path / "[a-b].txt") == ["a", "b"]


def test_held_out_documents_are_in_no_other_split(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.txt", (TEXT + "\n" + TEXT).encode())
    train, held_out = read(path, "train"), read(path, "validation")
    assert not set(train) & set(held_out)  # a repeated document included
    assert set(train) | set(held_out) == set(DOCUMENTS)
    assert 2 <= len(set(held_out)) <= 20  # 2% of 400
    assert read(path, "train") == train


def test_fingerprint_follows_the_text(tmp_path: pathlib.Path) -> None:
    one, two = write(tmp_path / "a.txt", b"a b"), write(tmp_path / "b.txt", b"a b")
    assert open_corpus(str(one), "all").fingerprint == open_corpus(str(two), "all").fingerprint
    assert open_corpus(str(one), "all").fingerprint != open_corpus(str(one), "train").fingerprint
    before = open_corpus(str(one), "all").fingerprint
    write(one, b"a c")
    assert open_corpus(str(one), "all").fingerprint != before


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n\t\n", "is empty"),
        ("latin.txt", "caf\xe9 noir".encode("latin-1"), "not UTF-8 at byte 3"),
        ("cut.txt", "café".encode()[:-1], "not UTF-8 at byte 3"),
        ("fake.gz", b"no gzip", "cannot read"),
        ("fake.xz", b"no xz", "cannot read"),
        ("short.gz", gzip.compress(os.urandom(5000))[:-200], "cannot read"),
    ],
)
def test_what_is_no_text_is_refused_at_once(
    tmp_path: pathlib.Path, name: str, data: bytes, says: str
) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(ConfigError, match=says) as caught:
        check_corpus(str(path))
    message = str(caught.value)
    assert message.startswith("config.data.corpus: ") and str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "empty"),
        ("no_such_file.txt", "no such file"),
        ("/no/such/file", "no such file"),
        ("~/no_such_file", "no such file"),
        ("no_such_directory/*.txt", "no such file"),
        (".", "is a directory"),
        ("no_such_dataset", "TFDS cannot open it"),
    ],
)
def test_what_is_not_there_is_refused_at_once(spec: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_corpus(spec, "config.data.validation_corpus")
    assert str(caught.value).startswith("config.data.validation_corpus: ")
    assert "\n" not in str(caught.value)


def test_a_dataset_that_cannot_be_downloaded_is_refused_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    def never(*_: object) -> None:
        time.sleep(2)
        raise TimeoutError

    monkeypatch.setattr(corpora.urllib.request, "getproxies", dict)
    monkeypatch.setattr(corpora.socket, "create_connection", never)
    monkeypatch.setattr(corpora, "_SECONDS_FOR_NETWORK", 0.2)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="does not answer"):
        check_corpus("lm1b", cache_dir=str(tmp_path))


def test_a_late_byte_that_is_no_text_is_named_when_it_is_read(tmp_path: pathlib.Path) -> None:
    head = b"word " * 400_000
    path = write(tmp_path / "a.txt", head + b"\n\n\xff")
    check_corpus(str(path))  # of the first megabyte
    with pytest.raises(ConfigError, match=f"byte {len(head) + 2:,}"):
        read(path)


@pytest.mark.parametrize("before", range(4))
def test_the_checked_megabyte_may_end_inside_a_character(
    tmp_path: pathlib.Path, before: int
) -> None:
    path = write(tmp_path / "a.txt", b"a" * before + "🙂".encode() * 300_000)
    check_corpus(str(path))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pydocs.Pydocs:
    directory = str(tmp_path_factory.mktemp("pydocs"))
    builder = pydocs.Pydocs(packages=("absl", "rich", "nothing_"), stdlib=False, data_dir=directory)
    builder.download_and_prepare(file_format="array_record")
    return builder


def test_pydocs_holds_cleaned_docstrings_once(built: pydocs.Pydocs) -> None:
    sources = {split: built.as_data_source(split=split) for split in pydocs._SPLITS}
    entries = [source[i] for source in sources.values() for i in range(len(source))]
    texts = [entry["text"].decode() for entry in entries]
    assert len(texts) == len({text.strip() for text in texts}) > 300  # in all splits together
    assert all(len(text.split()) >= pydocs._SHORTEST for text in texts)
    assert {entry["package"] for entry in entries} == {b"absl", b"rich"}
    names = {entry["name"].decode(): entry["text"].decode() for entry in entries}
    track = names["rich.progress.track"]
    assert track.startswith("Track progress") and "\n    sequence" in track  # indents that say


def test_docstrings_are_prepared_where_nothing_was_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    roots = dict(pydocs._roots(("absl",), stdlib=False))
    monkeypatch.setattr(pydocs, "_roots", lambda *_: roots)
    corpus = open_corpus("pydocs", "validation", cache_dir=str(tmp_path))
    assert len(list(corpus.documents())) == corpus.size > 0
    # What is there is read without a lock, which a read-only directory has no place for.
    (lock,) = tmp_path.glob(".*.lock")
    lock.unlink()
    again = open_corpus("pydocs", "validation", cache_dir=str(tmp_path))
    assert list(again.documents()) == list(corpus.documents()) and not lock.exists()


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def near(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> bool:
    return 2 * len(a & b) >= len(a | b) > 0


def test_pydocs_holds_out_no_near_copy_of_train(built: pydocs.Pydocs) -> None:
    texts = {
        split: [runs(entry["text"].decode()) for entry in built.as_data_source(split=split)]
        for split in pydocs._SPLITS
    }
    assert all(texts.values())
    for one, two in itertools.combinations(texts.values(), 2):
        assert not any(near(a, b) for a in one for b in two)
    assert any(near(a, b) for a, b in itertools.combinations(texts["train"], 2))


def made_up_docstrings() -> list[pydocs.Docstring]:
    """Of 2,000 functions; every third copies the text of the one before with some words changed."""
    rng = random.Random(0)
    words: list[str] = []
    found = []
    for i in range(2000):
        if i % 3 == 2:
            words = [w if rng.random() < 0.97 else "other" for w in words]
        else:
            words = [rng.choice(string.ascii_letters) * rng.randint(1, 3) for _ in range(40)]
        found.append(pydocs.Docstring("p", f"p.f{i}", "()", " ".join(words)))
    return found


def test_a_split_of_docstrings_follows_from_their_names_and_texts() -> None:
    documents = made_up_docstrings()
    splits = dict(zip(documents, pydocs.splits_of(documents), strict=True))
    counts = collections.Counter(splits.values())
    assert 20 < counts["validation"] < 80 and 20 < counts["test"] < 80
    shuffled = random.Random(1).sample(documents, len(documents))
    assert dict(zip(shuffled, pydocs.splits_of(shuffled), strict=True)) == splits
    pairs = [(a, b) for a, b in itertools.pairwise(documents) if near(runs(a.text), runs(b.text))]
    assert len(pairs) > 300
    assert {splits[a] for a, _ in pairs} == {"train", "validation", "test"}
    assert all(splits[a] == splits[b] for a, b in pairs)
    # Alone, the hash of the name decides.
    alone = pydocs.splits_of([pydocs.Docstring("p", "json.loads", "", "a b c d e f g h i j")])
    assert alone == ["train"]
    many = [pydocs.Docstring("p", f"q{i}", "", "one text that is everywhere") for i in range(60)]
    assert set(pydocs.splits_of(many)) == {"train"}


@given(st.lists(st.text(alphabet="abc ", max_size=24), max_size=12))
def test_groups_of_near_copies_are_those_of_brute_force(texts: list[str]) -> None:
    def of(text: str) -> set[tuple[str, ...]]:
        return set(itertools.pairwise(text.split()))

    group = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        a, b = of(texts[i]), of(texts[j])
        if a & b and len(a & b) >= 0.6 * len(a | b):
            group = [group[i] if g == group[j] else g for g in group]
    found = near_copy_groups(texts, similarity=0.6, shingle=2)
    assert len(set(zip(group, found.tolist(), strict=True))) == len(set(group)) == len(set(found))


def test_pydocs_is_another_dataset_with_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = dict(pydocs._roots(("absl", "rich"), stdlib=False))
    before = pydocs.fingerprint(roots)
    assert pydocs.fingerprint(roots) == before
    monkeypatch.setattr(pydocs.importlib.metadata, "version", lambda name: "99")
    assert pydocs.fingerprint(roots) != before


def test_docstrings_are_read_without_running_anything(tmp_path: pathlib.Path) -> None:
    package = tmp_path / "made_up"
    (package / "tests").mkdir(parents=True)
    long = "words " * 12
    source = f'"""Module {long}"""\nraise SystemExit\nclass A:\n  """Class {long}"""\n'
    source += f'  def f(self, x: int=1, *y, z=None, **w):\n    """Method {long}"""\n'
    source += '  def g(self):\n    """Short."""\n'
    (package / "__init__.py").write_text(source)
    (package / "broken.py").write_text("def (")
    (package / "tests" / "test_a.py").write_text(source)
    found = list(pydocs.collect({"made_up": package}))
    assert [one.name for one in found] == ["made_up", "made_up.A", "made_up.A.f"]
    assert [one.signature for one in found] == ["", "", "(x, *y, z, **w)"]
    assert found[2].text == inspect.cleandoc(f"Method {long}")


def test_a_directory_that_tfds_prepared_is_a_corpus(built: pydocs.Pydocs) -> None:
    corpus = open_corpus(str(built.data_dir), "validation")
    source = built.as_data_source(split="validation")
    expected = [source[i]["text"].decode().strip() for i in range(len(source))]
    assert list(corpus.documents()) == expected and corpus.size == len(expected)
    with pytest.raises(ConfigError, match=r"config\.data\.text_feature: .* has no feature 'body'"):
        open_corpus(str(built.data_dir), "train", text_feature="body")
