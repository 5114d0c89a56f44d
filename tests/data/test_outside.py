"""A corpus reader and a form of examples from outside of the package, by import path."""

import pathlib
from typing import Any

import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.data.corpora import check_corpus, open_corpus
from lmjax.data.store import DataConfig, prepare
from lmjax.data.tokenizers import TokenizerConfig
from lmjax.errors import ConfigError
from lmjax.training.loop import pretrain
from lmjax.training.plan import make_plan
from tests import runs
from tests.data.outside import Windows
from tests.objectives.outside import BlankedLM

READER = "tests.data.outside.Chapters"


@pytest.fixture
def book(tmp_path: pathlib.Path) -> pathlib.Path:
    text = runs.write_text(tmp_path / "text.txt").read_text()
    (tmp_path / "book").write_text(text.replace("\n\n", "\n***\n"))
    return tmp_path / "book"


def test_documents_are_those_of_the_reader(book: pathlib.Path) -> None:
    spec = {"type": READER, "path": str(book)}
    text = (book.parent / "text.txt").read_text()
    every = list(open_corpus(spec, "all").documents())
    assert every == text.split("\n\n")
    train, held_out = (list(open_corpus(spec, s).documents()) for s in ("train", "validation"))
    assert held_out and sorted(train + held_out) == sorted(every)
    # As of a text file with the same documents.
    assert held_out == list(open_corpus(str(book.parent / "text.txt"), "validation").documents())


def test_the_cache_knows_type_fields_and_version(book: pathlib.Path) -> None:
    spec = {"type": READER, "path": str(book)}

    def key(**fields: Any) -> str:
        return open_corpus(spec | fields, "train").fingerprint

    before = key()
    assert key(marker="***") == before  # the default
    assert key(marker="+++") != before
    assert open_corpus(spec, "validation").fingerprint != before
    book.write_text(book.read_text() + "\n***\none more")
    assert key() != before


def test_tokens_are_computed_again_for_other_documents(book: pathlib.Path) -> None:
    config = DataConfig(
        {"type": READER, "path": str(book)},
        tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=100),
        cache_dir=str(book.parent / "cache"),
    )
    _, before = prepare(config, ["train"])
    book.write_text(book.read_text() + 100 * "\n***\none more")
    _, after = prepare(config, ["train"])
    assert after["train"].n_documents > before["train"].n_documents


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"type": "tests.data.outside.Windows"},
            r"corpus\.type: .* is not a lmjax\.\S*CorpusReader",
        ),
        ({"type": "no_such_package.Reader"}, r"corpus\.type: cannot import 'no_such_package'"),
        ({"pth": "x"}, r"corpus\.pth: unknown field of Chapters; did you mean 'path'"),
        ({"path": 3}, r"corpus\.path: expected str"),
        ({"path": "nowhere"}, r"corpus\.path: no such file: nowhere"),
    ],
)
def test_what_cannot_be_read_is_refused(
    change: dict[str, Any], message: str, book: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match=rf"config\.data\.{message}"):
        check_corpus({"type": READER, "path": str(book)} | change)
    with pytest.raises(ConfigError, match=r"config\.data\.corpus\.type: missing"):
        check_corpus({"path": str(book)})


def test_a_run_trains_on_both(book: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = ConfigDict(runs.config(book) | {"objective": {}, "model": {}})
    config.data = {
        "corpus": {"type": READER, "path": str(book)},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 100},
        "examples": {"type": "tests.data.outside.Windows", "length": 16},
        "cache_dir": str(tmp_path / "cache"),
    }
    trunk = {"layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 32, "norm": "pre"}
    config.objective = {"type": f"{BlankedLM.__module__}.BlankedLM"}
    config.model = {"trunk": trunk, "max_length": 16}
    config.training.update(steps=20, log_every=10, eval_every=20, checkpoint_every=10)
    assert make_plan(config).examples == Windows(16)
    result = pretrain(config, tmp_path / "run", "outside")
    losses = [r["lm"] for r in result.records if r["split"] == "validation"]
    assert losses[-1] < losses[0]
    model = lmjax.load(tmp_path / "run", allow_modules=["tests"])
    assert model.tokenizer is not None
    assert model.tokenizer.encode_batch([book.read_text()[:40]])[0].size
