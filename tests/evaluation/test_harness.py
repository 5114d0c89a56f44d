"""lm-eval runs a task of its own over a model of ours, offline, and finds what we find."""

import importlib.util
import json
import pathlib
import sys
import types
from typing import Any

import numpy as np
import pytest

from lmjax.errors import ConfigError
from lmjax.evaluation import harness
from lmjax.evaluation.continuations import continuation_scores
from lmjax.evaluation.harness import harness_model
from lmjax.evaluation.perplexity import perplexity
from lmjax.evaluation.scoring import token_scores
from lmjax.generation.api import generate
from lmjax.models.bert import BertConfig, BertForPreTraining
from tests.generation.models import gpt
from tests.words import SIZE, random_model, trunk

TASK = """
task: parity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
INSTALLED = importlib.util.find_spec("lm_eval") is not None


def request(*args: Any) -> Any:
    return types.SimpleNamespace(args=args)


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
def test_the_harness_finds_what_we_find(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    model = gpt(text=True)
    rows = [
        {"question": f"Is {i} even?", "choices": [" yes", " not at all"], "label": i % 2}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "parity.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    adapter = harness_model(model)  # before lm_eval: it says what to install
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model=adapter,
        tasks=["parity"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    pairs = [(str(row["question"]), c) for row in rows for c in row["choices"]]  # type: ignore[attr-defined]
    scores, _ = continuation_scores(model, pairs)
    sums = np.array([s.logs.sum() for s in scores]).reshape(-1, 2)
    labels = np.array([row["label"] for row in rows])
    per_character = sums / [len(" yes"), len(" not at all")]
    assert found["results"]["parity"]["acc,none"] == np.mean(sums.argmax(1) == labels)
    assert found["results"]["parity"]["acc_norm,none"] == np.mean(per_character.argmax(1) == labels)
    logged = {s["doc_id"]: s for s in found["samples"]["parity"]}
    for i, row in enumerate(sums):
        theirs = [float(answer[0]) for answer in logged[i]["filtered_resps"]]
        np.testing.assert_allclose(theirs, row, atol=1e-4)

    # Found by its name, as the harness's own command does.
    from lm_eval.api.registry import get_model

    assert isinstance(adapter, get_model("lmjax"))

    _loglikelihood(adapter, model)
    _rolling(adapter, model)
    _generation(adapter, model)


def _loglikelihood(adapter: Any, model: Any) -> None:
    """Of what greedy search says, it is said that greedy search says it; repeats in order."""
    (said,) = generate(model, ["Why"], max_new_tokens=3)
    if said.text.isascii() and said.ended == "length":
        (found,) = adapter.loglikelihood([request("Why", said.text)])
        assert found[1] and found[0] == pytest.approx(said.log_probs.sum(), abs=1e-3)
    asked = [request("", "ab"), request("x", "ab"), request("", "ab")]
    found = adapter.loglikelihood(asked)
    assert found[0] == found[2] != found[1]
    (whole,) = token_scores(model, ["ab"])
    assert found[0][0] == pytest.approx(whole.sum(), abs=1e-4)


def _rolling(adapter: Any, model: Any) -> None:
    short, long = "Where is it?", "abcdefghij" * 30
    found = adapter.loglikelihood_rolling([request(short), request(long), request("")])
    (whole,) = token_scores(model, [short])
    assert found[0] == pytest.approx(whole.sum(), abs=1e-3)
    assert found[1] == pytest.approx(-perplexity(model, [long], stride=127).nats, abs=1e-3)
    assert found[2] == 0


def _generation(adapter: Any, model: Any) -> None:
    prompts = ["It is", "Why", "x" * 200]
    settings = {"until": ["e"], "max_gen_toks": 10}
    greedy = adapter.generate_until([request(p, settings) for p in prompts])
    for text, prompt in zip(greedy, prompts, strict=True):
        # Of a long prompt the end is read.
        (alone,) = generate(model, [prompt[-117:]], max_new_tokens=10, stop=("e",))
        assert text == alone.text and "e" not in text
    sampled = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 10}
    texts = adapter.generate_until([request("Why", settings), request("Why", sampled)])
    assert texts[0] == greedy[1]
    (drawn,) = generate(model, ["Why"], max_new_tokens=10, temperature=2.0)
    assert texts[1] == drawn.text
    with pytest.raises(ConfigError, match="generation_kwargs: beams"):
        adapter.generate_until([request("Why", {"beams": 2})])
    with pytest.raises(ConfigError, match="max_gen_toks: 128 leave no room"):
        adapter.generate_until([request("Why", {"max_gen_toks": 128})])


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
def test_a_masked_model_scores_by_its_own_way() -> None:
    model = random_model(BertForPreTraining(BertConfig(trunk(), max_length=16, vocab_size=SIZE)))
    adapter = harness_model(model)
    (found,) = adapter.loglikelihood([request("w6 w7", " w8")])
    (whole,) = token_scores(model, ["w6 w7 w8"])
    assert found[0] == pytest.approx(whole[-1], abs=1e-4)
    (rolled,) = adapter.loglikelihood_rolling([request("w6 w7 w8")])
    assert rolled == pytest.approx(whole.sum(), abs=1e-4)


def test_without_the_harness_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"the harness needs lm_eval.*lmjax\[harness\]"):
        harness.register.__wrapped__()
