"""Token stores: what is in them, and that none is ever half trusted."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest

from lmjax.data import store as stores
from lmjax.data.examples import SegmentPairs
from lmjax.data.sentences import split_sentences
from lmjax.data.store import DataConfig, TokenStore, prepare
from lmjax.data.tokenizers import TokenizerConfig
from lmjax.errors import ConfigError

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "again",
    "and",
    "again",
]
DOCUMENTS = [
    f"Title {i}\nThe {WORDS[i % 12]} {i} is here. It {WORDS[i % 7]}! Ends" for i in range(300)
]
DOCUMENTS.append("A [MASK] stands for a word, a [PAD] for none. It ends: [EOD] or <|endoftext|>")


@pytest.fixture
def config(tmp_path: pathlib.Path) -> DataConfig:
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    return DataConfig(
        corpus=str(tmp_path / "text.txt"),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=400, lowercase=False),
        cache_dir=str(tmp_path / "cache"),
    )


def same(one: TokenStore, two: TokenStore) -> None:
    for name in ("tokens", "sentence_offsets", "document_offsets", "counts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.bytes, one.words, one.fingerprint) == (two.bytes, two.words, two.fingerprint)


def directories(config: DataConfig) -> list[pathlib.Path]:
    return [p.parent for p in pathlib.Path(config.cache_dir).glob("tokens/*/manifest.json")]


def test_a_store_holds_the_text(config: DataConfig) -> None:
    tokenizer, prepared = prepare(config)
    texts = []
    for store in prepared.values():
        assert store.tokens.dtype == np.uint16
        for d in range(store.n_documents):
            begin, end = store.document_token_offsets[d : d + 2]
            text = tokenizer.decode(store.tokens[begin:end])
            texts.append(text)
            sentences = [
                tokenizer.decode(store.tokens[slice(*store.sentence_offsets[s : s + 2])])
                for s in range(store.document_offsets[d], store.document_offsets[d + 1])
            ]
            assert sentences == split_sentences(text)
        np.testing.assert_array_equal(
            store.counts, np.bincount(store.tokens, minlength=tokenizer.size)
        )
        assert not store.counts[list(tokenizer.roles.values())].any()
        assert store.sentence_offsets[-1] == store.n_tokens == len(store.tokens)
        assert store.document_offsets[-1] == store.n_sentences
        for offsets in (store.sentence_offsets, store.document_offsets):
            assert offsets.dtype == np.int64 and offsets[0] == 0 and (np.diff(offsets) > 0).all()
    assert sorted(texts) == sorted(DOCUMENTS)
    assert sum(s.bytes for s in prepared.values()) == sum(len(d.encode()) for d in DOCUMENTS)
    assert sum(s.words for s in prepared.values()) == sum(len(d.split()) for d in DOCUMENTS)
    assert "tensorflow" not in sys.modules


def test_what_encodes_to_nothing_is_dropped(config: DataConfig, tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text("one two.\n\u200b\nthree\n\n\u200b\n\nfour " + "x " * 99)
    kind = TokenizerConfig(kind="wordpiece", vocab_size=120)
    options = {"corpus": config.corpus, "validation_corpus": config.corpus}
    _, prepared = prepare(DataConfig(tokenizer=kind, cache_dir=config.cache_dir, **options))
    store = prepared["train"]
    np.testing.assert_array_equal(np.diff(store.document_offsets), [2, 1])
    assert (np.diff(store.sentence_offsets) > 0).all()
    same(store, prepared["validation"])


def test_preparation_says_what_the_text_is(
    config: DataConfig, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["你好。今天天气很好。", "a\0b. Then \ufffd. End", "\u200b"] * 2
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    (tmp_path / "train.txt").write_text("only english letters. Twice")
    kind = TokenizerConfig(kind="wordpiece", vocab_size=100)
    options = {"validation_corpus": config.corpus, "cache_dir": config.cache_dir}
    asked = DataConfig(corpus=str(tmp_path / "train.txt"), tokenizer=kind, **options)
    prepare(asked)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "train: 1 documents with 2.0 sentences each"
    assert said[1].startswith("validation: 4 documents with 2.5 sentences each, ")
    assert said[1].endswith(
        "% of the tokens are unknown, 2 more without tokens, 2 NUL characters,"
        " 2 replacement characters (U+FFFD)"
    )
    prepare(asked)  # from the cache
    assert not capsys.readouterr().err


def test_other_rules_of_sentences_are_another_store(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one = prepare(config)
    monkeypatch.setattr(stores, "RULES_VERSION", "another")
    _, two = prepare(config)
    assert two["train"].fingerprint != one["train"].fingerprint


def test_chinese_text_gives_both_labels(config: DataConfig, tmp_path: pathlib.Path) -> None:
    texts = [f"这是第{i}篇文章。" * 30 for i in range(200)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    tokenizer, prepared = prepare(config)
    assert prepared["train"].n_sentences == 30 * prepared["train"].n_documents
    vocabulary = tokenizer.vocabulary(prepared["train"].counts)
    form = SegmentPairs(128)
    source = form.source(prepared["train"], vocabulary, seed=0, split="train", rows=8)
    labels = [int(source[i]["label"]) for i in range(200)]
    assert 60 < sum(labels) < 180


def test_chunks_leave_no_trace(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = prepare(config)
    for directory in directories(config):
        (directory / "manifest.json").unlink()
    monkeypatch.setattr(stores, "_DOCUMENTS_A_CHUNK", 7)
    _, two = prepare(config)
    same(one["train"], two["train"])


def test_text_is_tokenized_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = prepare(config)
    monkeypatch.setattr(stores, "_write", None)
    monkeypatch.setattr(stores, "train_tokenizer", None)
    _, two = prepare(config)
    for split in one:
        same(one[split], two[split])
    assert isinstance(two["train"].tokens, np.memmap)


def test_other_text_or_tokens_are_another_store(config: DataConfig) -> None:
    _, one = prepare(config)
    path = pathlib.Path(config.corpus)
    path.write_text(path.read_text() + "\n\nOne more document.")
    tokenizer, two = prepare(config)
    assert two["train"].fingerprint != one["train"].fingerprint
    saved = path.with_name("tokenizer.json")
    tokenizer.save(saved)
    loaded = DataConfig(
        config.corpus, tokenizer=TokenizerConfig(path=str(saved)), cache_dir=config.cache_dir
    )
    assert prepare(loaded)[1]["train"].fingerprint == two["train"].fingerprint


@pytest.mark.parametrize("name", ["tokens", "sentence_offsets", "document_offsets", "counts"])
def test_a_cut_or_missing_file_is_made_anew(config: DataConfig, name: str) -> None:
    _, one = prepare(config)
    expected = {split: np.array(store.tokens) for split, store in one.items()}
    cut, missing = directories(config)
    (cut / name).write_bytes((cut / name).read_bytes()[:-8])
    (missing / name).unlink()
    assert TokenStore.open(cut) is None and TokenStore.open(missing) is None
    _, two = prepare(config)
    for split, tokens in expected.items():
        np.testing.assert_array_equal(two[split].tokens, tokens)
        assert two[split].document_token_offsets[-1] == len(tokens)


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"sizes": {}}', '{"sizes": 3}'])
def test_a_broken_manifest_is_not_trusted(config: DataConfig, manifest: str) -> None:
    _, one = prepare(config)
    for directory in directories(config):
        (directory / "manifest.json").write_text(manifest)
    _, two = prepare(config)
    same(one["train"], two["train"])


def test_a_broken_cached_tokenizer_is_trained_anew(config: DataConfig) -> None:
    one, _ = prepare(config)
    (path,) = pathlib.Path(config.cache_dir).glob("tokenizers/*.json")
    path.write_bytes(path.read_bytes()[:-100])
    two, _ = prepare(config)
    assert two.fingerprint == one.fingerprint


# Kills itself with the n-th file that is on disk but not yet in its place, for every n.
_KILLED = """
import dataclasses, os, signal, sys
from lmjax.data import store
from lmjax.data.tokenizers import TokenizerConfig

config = store.DataConfig(
    corpus=sys.argv[1],
    tokenizer=TokenizerConfig(kind="bpe", vocab_size=400, lowercase=False),
)
sync, moved = store._sync, os.replace
for n in range(100):
    child = os.fork()
    if child == 0:
        left = [n]
        def die_in_time(then):
            def call(*arguments):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return then(*arguments)
            return call
        store._sync, os.replace = die_in_time(sync), die_in_time(moved)
        store.prepare(dataclasses.replace(config, cache_dir=f"{sys.argv[2]}/{n}"))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
print(n)
"""


def test_a_killed_preparation_leaves_nothing_that_is_trusted(
    config: DataConfig, tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-c", _KILLED, config.corpus, str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    killed = int(done.stdout)
    assert killed == 14  # a tokenizer and two stores of four arrays and a manifest, all moved
    tokenizer, expected = prepare(config)
    for n in range(killed):
        cache = tmp_path / "killed" / str(n)
        after, prepared = prepare(
            DataConfig(corpus=config.corpus, tokenizer=config.tokenizer, cache_dir=str(cache))
        )
        assert after.fingerprint == tokenizer.fingerprint
        for split, store in expected.items():
            same(prepared[split], store)


def test_processes_that_prepare_at_once_agree(config: DataConfig, tmp_path: pathlib.Path) -> None:
    script = (
        "import sys\n"
        "from lmjax.data.store import DataConfig, TokenizerConfig, prepare\n"
        "tokenizer = TokenizerConfig(kind='bpe', vocab_size=400, lowercase=False)\n"
        "config = DataConfig(sys.argv[1], tokenizer=tokenizer, cache_dir=sys.argv[2])\n"
        "print(prepare(config)[1]['train'].tokens.sum(dtype=int))"
    )
    command = [sys.executable, "-c", script, config.corpus, config.cache_dir]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate()[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert sums == {str(prepare(config)[1]["train"].tokens.sum(dtype=int))}
    kept = {path.name for path in pathlib.Path(config.cache_dir, "tokens").glob("[!.]*")}
    assert len(kept) == 2  # and nothing temporary


def test_what_is_prepared_has_the_permissions_of_the_umask(config: DataConfig) -> None:
    prepare(config)
    mask = os.umask(0)
    os.umask(mask)
    for path in pathlib.Path(config.cache_dir).rglob("*"):
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path


_BY_ANOTHER = """
import os, sys
from lmjax.data.store import DataConfig, TokenizerConfig, prepare
from lmjax.errors import ConfigError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
tokenizer = TokenizerConfig(kind="bpe", vocab_size=int(sys.argv[3]), lowercase=False)
try:
    print(prepare(DataConfig(sys.argv[1], tokenizer=tokenizer, cache_dir=sys.argv[2]))[1])
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def shared() -> Iterator[pathlib.Path]:
    """A directory that other users may look into."""
    path = pathlib.Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for directory in [path, *(p for p in path.rglob("*") if p.is_dir())]:
        directory.chmod(0o755)
    shutil.rmtree(path)


def test_another_user_reads_a_complete_cache_and_writes_nothing(
    config: DataConfig, shared: pathlib.Path
) -> None:
    corpus, cache = shared / "text.txt", shared / "cache"
    shutil.copy(config.corpus, corpus)
    corpus.chmod(0o644)
    mask = os.umask(0o022)
    prepare(DataConfig(str(corpus), tokenizer=config.tokenizer, cache_dir=str(cache)))
    os.umask(mask)

    def by_another(vocab_size: int) -> str:
        command = [sys.executable, "-c", _BY_ANOTHER, str(corpus), str(cache), str(vocab_size)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    made = sorted(p for p in cache.rglob("*") if not p.name.endswith(".lock"))
    for lock in cache.rglob(".*.lock"):
        lock.unlink()
    for directory in [cache, *(p for p in cache.rglob("*") if p.is_dir())]:
        directory.chmod(0o555)
    assert "TokenStore" in by_another(400)
    assert sorted(cache.rglob("*")) == made  # not even a lock
    said = by_another(401)
    assert "config.data.cache_dir: " in said and "cannot be written (Permission denied)" in said
    assert "LMJAX_CACHE" in said and said.count("\n") == 1
    for store in (cache / "tokens").glob("[!.]*"):
        store.chmod(0)
    assert "no permission to read" in by_another(400)


@pytest.mark.parametrize("place", ["text.txt", "text.txt/cache"])
def test_a_cache_that_cannot_be_made_is_refused(config: DataConfig, place: str) -> None:
    cache = str(pathlib.Path(config.corpus).parent / place)
    with pytest.raises(ConfigError, match=r"config\.data\.cache_dir: .* cannot be written"):
        prepare(DataConfig(config.corpus, tokenizer=config.tokenizer, cache_dir=cache))


def test_an_empty_split_says_what_to_do(config: DataConfig, tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text("The only document there is.")
    with pytest.raises(ConfigError, match=r"config\.data\.\w+: the validation split .* is empty"):
        prepare(config)
