"""An n-gram model from a corpus by one command, in the commands of all models."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import lmjax
from experiments import convert, evaluate, generate, ngram
from lmjax.convert.warm_start import open_init
from lmjax.data.tokenizers import load_tokenizer
from lmjax.errors import ConfigError

NAMES = ("modified_kneser_ney", "jelinek_mercer", "stupid_backoff")


def run(main: Callable[[], None], **values: Any) -> None:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        main()


def words(rng: np.random.Generator, count: int) -> str:
    """Words, each of which is often followed by the next one."""
    found = [int(rng.integers(12))]
    while len(found) < count:
        follows = rng.random() < 0.7
        found.append((found[-1] + 1) % 12 if follows else int(rng.integers(12)))
    return " ".join(f"word{chr(97 + i)}" for i in found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Models, a test text and pairs."""
    place = tmp_path_factory.mktemp("ngram")
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("dev", 20), ("test", 5)):
        (place / f"{name}.txt").write_text("\n\n".join(words(rng, 20) for _ in range(count)))
    good = "worda wordb wordc wordd"
    pairs = [{"good": good, "bad": "wordd wordb worda wordc"}]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for name in NAMES:
        config = {
            "smoothing": name,
            "order": 3,
            "discount_fallback": True,
            "data": {
                "corpus": str(place / "train.txt"),
                "validation_corpus": str(place / "dev.txt"),
                "cache_dir": str(place / "cache"),
                "tokenizer": {"vocab_size": 100},
            },
        }
        file = place / f"{name}.py"
        file.write_text(f"def get_config():\n    return {config!r}\n")
        run(ngram.main, config=str(file), workdir=str(place / name))
    return place


def test_it_is_evaluated_as_any_model(
    place: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"data": str(place / "test.txt"), "out": str(place / "found")}
    models = [str(place / name) for name in NAMES]
    run(evaluate.main, task="perplexity", model=models[:2], **given)
    lines = [json.loads(line) for line in (place / "found.jsonl").read_text().splitlines()]
    documents = (place / "test.txt").read_text().split("\n\n")
    for path, line in zip(models, lines, strict=False):
        found = lmjax.token_scores(lmjax.load(path), documents)
        assert line["nats"] == pytest.approx(-sum(logs.sum() for logs in found), rel=1e-5)
        assert line["tokens"] == sum(map(len, found))
        # Each word has 1.7 bits of -0.7 log2 0.7 - 0.3 log2 (0.3 / 12), and its ten bytes.
        assert line["nats"] / 100 < 2.2
    with pytest.raises(ConfigError, match="they have no perplexity"):
        run(evaluate.main, task="perplexity", model=models[2:], **given)
    given["data"] = str(place / "pairs.jsonl")
    run(evaluate.main, task="minimal_pairs", model=models, **given)
    (line,) = [json.loads(line) for line in (place / "found.jsonl").read_text().splitlines()]
    assert line["modified_kneser_ney (causal)"] == line["stupid_backoff (stupid_backoff)"] == 1
    capsys.readouterr()
    run(
        generate.main,
        model=models[:1],
        prompt=["worda"],
        temperature=1.0,
        max_new_tokens=20,
        ignore_eos=True,
    )
    assert capsys.readouterr().out.startswith("worda word")


def test_it_is_converted(place: pathlib.Path) -> None:
    run(convert.main, **{"from": str(place / NAMES[0]), "to": str(place / "lm.arpa")})
    run(
        convert.main,
        **{"from": str(place / "lm.arpa"), "to": str(place / "again")},
        tokenizer=str(place / NAMES[0]),
    )
    first, again = (lmjax.load(place / name) for name in (NAMES[0], "again"))
    for x, y in zip(*(lmjax.token_scores(m, ["worda wordb"]) for m in (first, again)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    tokenizer = load_tokenizer(str(place / "again"))
    assert first.tokenizer is not None and tokenizer.fingerprint == first.tokenizer.fingerprint


def test_what_is_wrong_is_told(place: pathlib.Path) -> None:
    given = {"config": str(place / f"{NAMES[0]}.py")}
    with pytest.raises(ConfigError, match=r"--workdir: .* is not empty; give a new directory"):
        run(ngram.main, workdir=str(place / NAMES[0]), **given)
    with pytest.raises(ConfigError, match=r"config\.init: .* is an n-gram model"):
        open_init(str(place / NAMES[0]))
    with pytest.raises(ConfigError, match="no class for this network"):
        run(convert.main, **{"from": str(place / NAMES[0]), "to": str(place / "hf")})
