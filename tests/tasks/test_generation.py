"""Prompts with targets: what is read and scored, and that what is learnt is generated."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import BadRowError, Notes
from lmjax.errors import ConfigError
from lmjax.tasks.collate import Collator
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.generation import Generation, nearest_targets
from lmjax.tasks.metrics import text_scores
from lmjax.tasks.plan import prepare
from tests.tasks import small

TOKENIZER = small.tokenizer("bpe")
TASK = {"type": "lmjax.tasks.generation.Generation", "target_length": 6}


def made(family: str = "gpt", **fields: Any) -> Generation:
    return Generation(
        model=small.model(family, TOKENIZER.size),
        vocabulary=small.vocabulary(TOKENIZER),
        **{"length": 16, "target_length": 4, **fields},
    )


def row(prompt: str, gold: str) -> dict[str, Any]:
    return {"prompt": prompt, "gold": gold}


def test_what_is_read_and_what_is_to_be_said() -> None:
    task, v = made(), made().vocabulary
    rows = [row("bak dol", "nok"), row("bak " * 20, "dol " * 9)]
    (a, b, c, many) = (TOKENIZER.encode_batch([t])[0] for t in ("bak dol", "nok", "bak ", "dol "))
    notes = Notes()
    short, long = task.encode(rows, TOKENIZER, notes, True)
    np.testing.assert_array_equal(short["tokens"], [v.eod, *a, v.sep, *b, v.eod])
    before = len(a) + 1
    assert (short["targets"][:before] == -1).all()
    np.testing.assert_array_equal(short["targets"][before:], [*b, v.eod, -1])
    assert len(long["tokens"]) == 16
    assert (long["targets"] >= 0).sum() == 4  # cut, and so without the token that ends it
    assert v.eod not in long["targets"]
    assert long["tokens"][11] == v.sep
    assert dict(notes.counts) == {"prompts cut at their end": 1, "targets cut at their end": 1}
    # Where text is generated, the prompt leaves room for all of it.
    held_out = task.encode([row("bak " * 20, "nok")], TOKENIZER, Notes(), False)[0]
    assert int(np.flatnonzero(held_out["targets"] >= 0)[0]) == 16 - 4 - 1
    assert len(c) and len(many)


def test_the_loss_is_that_of_the_target_alone() -> None:
    task = made()
    rows = [row("bak dol gun", "nok fel"), row("dol", "bak")]
    examples = task.encode(rows, TOKENIZER, Notes(), True)
    batch = Collator(task, 3)(examples)  # one row of padding
    params = jax.jit(task.init)(jax.random.key(0), batch)
    (total, count) = task.loss(params, batch, None, None).terms["target"]
    model = Pretrained(task.network, params, TOKENIZER)
    expected, counted = 0.0, 0
    for example in examples:
        tokens = example["tokens"]
        log_p = np.asarray(jax.nn.log_softmax(model(tokens[None])[0]))
        begin = int(np.flatnonzero(tokens == task.vocabulary.sep)[0]) + 1
        for place in range(begin, len(tokens)):
            expected -= log_p[place - 1, tokens[place]]
            counted += 1
    assert count == counted
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_what_is_learnt_is_generated_and_opens_again(tmp_path: pathlib.Path) -> None:
    """The target names the prompt's first word, and so does a plain rule."""
    said = {"bak": "nok bel", "dol": "fel gun"}
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"{word} {text}", "target": said[word]}
        for word, text in zip(rng.choice(list(said), 160), small.sentences(160), strict=True)
    ]
    path = small.write_rows(tmp_path / "train.jsonl", rows[:128])
    dev = small.write_rows(tmp_path / "dev.jsonl", rows[128:])
    config = small.config(TASK, {"train": path, "validation": dev}, "gpt")
    config.training.epochs, config.optimizer.learning_rate = 4, 2e-2
    prepared = prepare(config)
    result = finetune(prepared, config, tmp_path / "run", "", seed=0)
    right = np.mean([p["gold"] == p["prediction"] for p in result.predictions])
    assert right > 0.9
    assert (
        result.scores["chrf"] > 90 > prepared.baselines["validation"]["words of the prompt"]["chrf"]
    )
    assert all(0 < p["confidence"] <= 1 for p in result.predictions)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "nearest to the truth" in report
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        model = lmjax.load(place)
        assert model.tokenizer is not None
        sep = model.tokenizer.token(model.tokenizer.roles["sep"])
        prompts = [f"{p['prompt']} {sep}" for p in result.predictions[:4]]
        texts = [g.text.strip() for g in lmjax.generate(model, prompts, max_new_tokens=6)]
        assert texts == [p["prediction"] for p in result.predictions[:4]]
    assert json.loads((tmp_path / "run" / "network.json").read_text())["task"] == "language_model"


def test_nearest_prompts_know_words_in_names() -> None:
    pytest.importorskip("sklearn")
    train = [row("np cutRows(a)", "Cuts."), row("np add_columns(b)", "Adds.")]
    asked = [row("jax columns(x)", ""), row("rows()", "")]
    assert nearest_targets(train, asked) == ["Adds.", "Cuts."]


def test_chrf_and_bleu_as_published() -> None:
    same = text_scores(["The cat sat on the mat."], ["the cat sat on the mat."])
    assert same == {"chrf": pytest.approx(100), "bleu": pytest.approx(100)}
    # By hand: of "ab" and "abc" in lower case the 1-grams agree in 2 of 2 and 2 of 3, the
    # 2-grams in 1 of 1 and 1 of 2, and 3-grams there are on one side only.
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert text_scores(["ABC"], ["ab"])["chrf"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "bert"}, "Bert was not pretrained to continue a text"),
        ({"freeze": "trunk"}, "freeze: generation has no head"),
        ({"target_length": 13}, "target_length: 13 leaves no room"),
        ({"num_beams": 0}, "num_beams: must be at least 1"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**fields)


def test_rows_that_cannot_be_used() -> None:
    with pytest.raises(BadRowError, match="column 'target'"):
        made().parse({"prompt": "bak", "target": "  "})
    with pytest.raises(BadRowError, match="'prompt'"):
        made().parse({"target": "bak"})
