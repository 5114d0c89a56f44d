"""Continued text: against reading everything anew, against an exhaustive search, by its seeds."""

import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation import beam, tokens
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.nn.masks import as_mask
from tests.words import random_model, tokenizer, trunk

END = 5
SHORT = ("--max_new_tokens=8",)
PROMPTS = ["w6 w9 w7", "w8", "w10 w11 w12 w13 w6"]


def ids(model: Pretrained, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode_batch([text])[0].tolist()


def causal_logits(model: Pretrained, prompt: list[int], new: list[int]) -> np.ndarray:
    """[vocab_size] logits of the next token, of the whole text read at once."""
    text = prompt + new
    filled = np.array([text + [0] * (WIDTH - len(text))])
    return np.asarray(model(filled, real=np.arange(WIDTH)[None] < len(text)))[0, len(text) - 1]


def permutation_logits(model: Pretrained, prompt: list[int], new: list[int]) -> np.ndarray:
    """By XLNet's own inputs: perm_mask written out, one target behind the text."""
    text = [*prompt, *new]
    sees = np.zeros((WIDTH, WIDTH), bool)
    for i, j in itertools.product(range(len(text) + 1), range(len(text))):
        # The prompt sees the prompt; what was generated sees all before it.
        sees[i, j] = j < len(prompt) if i < len(prompt) else j < i
    row = np.array([text + [0] * (WIDTH - len(text))])
    return np.asarray(_query_stream(model, row, sees[None], np.array([[len(text)]])))[0, 0]


WIDTH = 16


def _query_stream(model: Pretrained, tokens: Any, sees: Any, target: Any) -> Any:
    @jax.jit
    def read(params: Any, tokens: Any, sees: Any, target: Any) -> Any:
        network: Any = model.network
        segments = jnp.zeros_like(tokens)
        output, _ = network.apply({"params": params}, tokens, segments, as_mask(sees), None, target)
        return network.apply({"params": params}, output, method="decode")

    key = id(model)
    return _READERS.setdefault(key, read)(model.params, tokens, sees, target)


_READERS: dict[int, Any] = {}


READ = {"gpt": causal_logits, "xlnet": permutation_logits}


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("name", READ)
def test_greedy_is_the_likeliest_token_each_time(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    found = lmjax.generate(model, PROMPTS, method="greedy", max_new_tokens=6)
    for prompt, one in zip(PROMPTS, found, strict=True):
        new: list[int] = []
        for token, log_probability in zip(one.tokens, one.log_probabilities, strict=True):
            logits = READ[name](model, ids(model, prompt), new)
            assert token == logits.argmax()
            assert log_probability == pytest.approx(log_softmax(logits)[token], abs=1e-4)
            new.append(token)
        assert one.ended == ("end" if new[-1] == END else "length")
        assert len(new) == 6 or new[-1] == END
        assert one.score == pytest.approx(sum(one.log_probabilities))


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all_texts(
    name: str, penalty: float, request: pytest.FixtureRequest
) -> None:
    """As wide as there are texts of two tokens, it must be exhaustive."""
    model = request.getfixturevalue(name)
    prompt, length, size = ids(model, "w6 w9"), 2, 24
    scores = {}
    first = log_softmax(READ[name](model, prompt, []))
    scores[(END,)] = first[END] / 1**penalty
    for a in range(size):
        if a != END:
            second = log_softmax(READ[name](model, prompt, [a]))
            scores |= {(a, b): (first[a] + second[b]) / 2**penalty for b in range(size)}
    best = sorted(scores, key=lambda text: -scores[text])[:3]
    found = lmjax.generate(
        model,
        "w6 w9",
        method="beam",
        beams=size,
        returned=3,
        length_penalty=penalty,
        max_new_tokens=length,
    )
    assert [one.tokens for one in found] == best
    np.testing.assert_allclose([one.score for one in found], [scores[t] for t in best], atol=1e-4)


def test_draws_have_the_models_distribution(gpt: Pretrained) -> None:
    """One token, drawn with 2,000 seeds: chi-squared below its 99.9th percentile."""
    share = np.exp(log_softmax(causal_logits(gpt, ids(gpt, "w8"), [])))
    found = lmjax.generate(gpt, ["w8"] * 2000, max_new_tokens=1, seed=3)
    counts = np.bincount([one.tokens[0] for one in found], minlength=24)
    chosen = share * 2000 > 5
    expected = share[chosen] * 2000
    statistic = ((counts[chosen] - expected) ** 2 / expected).sum()
    degrees = chosen.sum()
    # Wilson and Hilferty's approximation of the percentile.
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3


def test_a_prompts_draws_do_not_depend_on_its_neighbours(gpt: Pretrained) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "top_p": 0.9, "seed": 7}
    together = lmjax.generate(gpt, PROMPTS, **settings)
    assert together == lmjax.generate(gpt, PROMPTS, **settings)
    alone = lmjax.generate(gpt, PROMPTS[0], **settings)
    assert alone[0].tokens == together[0].tokens
    longer = lmjax.generate(gpt, [PROMPTS[0], " ".join(["w9"] * 20)], **settings)
    assert longer[0].tokens == together[0].tokens
    assert lmjax.generate(gpt, PROMPTS, **settings | {"seed": 8}) != together


def test_prompts_of_a_bucket_share_a_program(gpt: Pretrained) -> None:
    settings: dict[str, Any] = {"temperature": 0.9, "top_k": 5}
    lmjax.generate(gpt, PROMPTS, max_new_tokens=9, **settings)
    before = tokens.begin._cache_size(), tokens.advance._cache_size()
    lmjax.generate(gpt, [*PROMPTS, "w6 w6 w6 w6 w6 w7"], max_new_tokens=9, seed=5, **settings)
    lmjax.generate(gpt, PROMPTS, max_new_tokens=16, stop=("w7",), **settings)
    assert (tokens.begin._cache_size(), tokens.advance._cache_size()) == before
    lmjax.generate(gpt, PROMPTS, method="beam", beams=2, max_new_tokens=5)
    before = beam.search._cache_size()
    lmjax.generate(gpt, PROMPTS[:3], method="beam", beams=2, max_new_tokens=8, returned=2)
    assert beam.search._cache_size() == before


def test_a_stop_string_ends_a_text_and_is_not_part_of_it(gpt: Pretrained) -> None:
    free = lmjax.generate(gpt, PROMPTS, max_new_tokens=30, seed=1)
    words = free[0].text.split()
    stop = f"{words[2]} {words[3]}"
    stopped = lmjax.generate(gpt, PROMPTS, max_new_tokens=30, seed=1, stop=(stop, "nowhere"))
    assert stopped[0].ended == "stop"
    assert stopped[0].text == free[0].text[: free[0].text.index(stop)]
    assert len(stopped[0].tokens) < 30
    for a, b in zip(stopped[1:], free[1:], strict=True):
        assert a.ended == "stop" or a == b


def test_a_stream_is_the_text_in_pieces(gpt: Pretrained) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 20, "seed": 4}
    (whole,) = lmjax.generate(gpt, PROMPTS[0], **settings)
    pieces = list(lmjax.stream(gpt, PROMPTS[0], **settings))
    assert "".join(pieces) == whole.text and len(pieces) > 2
    stop = " ".join(whole.text.split()[5:7])
    (cut,) = lmjax.generate(gpt, PROMPTS[0], stop=(stop,), **settings)
    assert "".join(lmjax.stream(gpt, PROMPTS[0], stop=(stop,), **settings)) == cut.text


def test_no_ngram_comes_twice_and_penalties_spread(gpt: Pretrained) -> None:
    settings: dict[str, Any] = {"method": "greedy", "max_new_tokens": 40}
    found = lmjax.generate(gpt, PROMPTS, no_repeat_ngram=2, **settings)
    for prompt, one in zip(PROMPTS, found, strict=True):
        text = ids(gpt, prompt) + list(one.tokens)
        pairs = list(itertools.pairwise(text))
        assert len(set(pairs)) == len(pairs)
    plain = lmjax.generate(gpt, PROMPTS, **settings)
    for change in ({"repetition_penalty": 3.0}, {"presence_penalty": 5.0}):
        spread = lmjax.generate(gpt, PROMPTS, **settings, **change)
        kinds = [sum(len(set(one.tokens)) for one in some) for some in (spread, plain)]
        assert kinds[0] > kinds[1]


def test_an_empty_prompt_begins_with_the_begin_of_a_document(gpt: Pretrained) -> None:
    (found,) = lmjax.generate(gpt, "", method="greedy", max_new_tokens=3)
    assert found.tokens[0] == causal_logits(gpt, [END], []).argmax()
    (begun,) = lmjax.generate(gpt, "w8", method="greedy", max_new_tokens=3, begin=True)
    assert begun.tokens[0] == causal_logits(gpt, [END, *ids(gpt, "w8")], []).argmax()
    assert lmjax.generate(gpt, []) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "best"}, "method: 'best' is not one of"),
        ({"temperature": 0.0}, "temperature: must be positive, got 0.0; method='greedy'"),
        ({"top_p": 0.0}, r"top_p: must lie in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens: must be at least 1"),
        ({"returned": 2}, "returned: 2 texts a prompt need method='beam'"),
        ({"stop": "w7"}, "stop: expected a tuple, got 'w7'"),
        ({"stop": ("",)}, "stop: a tuple of strings that are not empty"),
        ({"top_n": 3}, "top_n: unknown"),
        ({"max_new_tokens": 64}, "a prompt of 5 tokens and max_new_tokens=64 are more than the 64"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str, gpt: Pretrained) -> None:
    with pytest.raises(ConfigError, match=message):
        lmjax.generate(gpt, PROMPTS, **settings)


def test_what_cannot_go_on_is_refused_by_name() -> None:
    bert = random_model(BertForPreTraining(BertConfig(trunk(), max_length=8, vocab_size=24)))
    with pytest.raises(ConfigError, match="BertForPreTraining does not go on with a text"):
        lmjax.generate(bert, "w6")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A random GPT-2 of transformers, with our tokenizer of words."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=24,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=END,
        eos_token_id=END,
    )
    path = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    tokenizer().save(path / "tokenizer.json")
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "greedy"},
        {"method": "greedy", "repetition_penalty": 1.5, "no_repeat_ngram": 3},
        {"method": "beam", "beams": 4, "returned": 4},
        {"method": "beam", "beams": 3, "length_penalty": 2.0, "returned": 2},
        {"method": "beam", "beams": 5, "length_penalty": -0.5},
        {"method": "beam", "beams": 3, "no_repeat_ngram": 2},
    ],
    ids=str,
)
def test_token_for_token_as_transformers(settings: dict[str, Any], published: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = lmjax.load(published)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(published).eval()
    found = lmjax.generate(model, PROMPTS, max_new_tokens=12, **settings)
    encoded = [ids(model, prompt) for prompt in PROMPTS]
    longest = max(map(len, encoded))
    rows = torch.tensor([[0] * (longest - len(e)) + e for e in encoded])
    real = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded])
    with torch.no_grad():
        expected = theirs.generate(
            rows,
            attention_mask=real,
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            num_beams=settings.get("beams", 1),
            num_return_sequences=settings.get("returned", 1),
            length_penalty=settings.get("length_penalty", 1.0),
            repetition_penalty=settings.get("repetition_penalty", 1.0),
            no_repeat_ngram_size=settings.get("no_repeat_ngram", 0),
        )
    for one, row in zip(found, expected[:, longest:].tolist(), strict=True):
        if END in row:
            row = row[: row.index(END) + 1]
        assert list(one.tokens) == row


def test_the_command_streams_and_writes_json(published: pathlib.Path) -> None:
    command = [sys.executable, "-m", "experiments.generate", f"--model={published}"]
    root = pathlib.Path(__file__).resolve().parents[2]

    def run(*flags: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags], cwd=root, input=given, capture_output=True, text=True
        )

    done = run("--prompt=w6 w7", "--method=greedy", "--max_new_tokens=4")
    assert done.returncode == 0, done.stderr
    (expected,) = lmjax.generate(lmjax.load(published), "w6 w7", method="greedy", max_new_tokens=4)
    assert done.stdout.strip() == f"w6 w7{expected.text}".strip()
    done = run("--file=-", "--json", "--method=beam", "--returned=2", *SHORT, given="w6\nw7 w8\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["w6", "w6", "w7 w8", "w7 w8"]
    assert set(lines[0]) == {"prompt", "text", "tokens", "log_probabilities", "score", "ended"}
    done = run("--prompt=w6", "--temperature=0", *SHORT)
    assert done.returncode == 2 and done.stderr.startswith("error: temperature: must be positive")
    assert jax.device_count()  # the parent's devices were not touched
