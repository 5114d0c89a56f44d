"""Marked spans: what is read, where, and SemEval's score."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import BadRowError, Notes, RowsConfig, read_split
from lmjax.errors import ConfigError
from lmjax.tasks.collate import Collator
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.metrics import relation_scores
from lmjax.tasks.opened import open_run
from lmjax.tasks.plan import prepare
from lmjax.tasks.relations import MARKERS, Relations, _kept, marked
from tests.tasks import small

SEMEVAL = """1\t"The <e1>author</e1> of a keygen uses a <e2>disassembler</e2>."
Instrument-Agency(e2,e1)
Comment: none

2\t"A <e2>child</e2> in the <e1>cradle</e1>."
Other
Comment:
"""


def made(family: str, length: int = small.LENGTH) -> tuple[Relations, Any]:
    tokenizer = small.tokenizer("bpe" if family == "gpt" else "wordpiece").with_tokens(MARKERS)
    task = Relations(
        model=small.model(family, tokenizer.size),
        vocabulary=small.vocabulary(tokenizer),
        length=length,
        labels=("R(e1,e2)", "Other"),
    )
    return task, tokenizer


def row(text: str, head: str, tail: str, label: str = "Other") -> dict[str, Any]:
    spans = {
        n: [text.index(w), text.index(w) + len(w)] for n, w in (("head", head), ("tail", tail))
    }
    return {"text": text, **spans, "gold": label}


def test_the_official_score_by_hand() -> None:
    gold = ["A(e1,e2)", "A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    guess = ["A(e1,e2)", "A(e2,e1)", "Other", "B(e1,e2)", "B(e1,e2)", "Other"]
    scores = relation_scores(gold, guess)
    # A: one of two predicted and of three there is right, the wrong direction counts as wrong.
    # B: one of two predicted is right, and it is the only one there.
    precision_a, recall_a, precision_b, recall_b = 1 / 2, 1 / 3, 1 / 2, 1.0
    f1 = [2 * p * r / (p + r) for p, r in ((precision_a, recall_a), (precision_b, recall_b))]
    assert scores["macro_f1"] == pytest.approx(np.mean(f1))
    assert scores["precision"] == pytest.approx((precision_a + precision_b) / 2)
    assert scores["recall"] == pytest.approx((recall_a + recall_b) / 2)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert relation_scores(["Other"], ["Other"])["macro_f1"] == 0.0


def test_semeval_files_are_read_as_they_are(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.TXT").write_text(SEMEVAL.replace("\n", "\r\n"))
    task, _ = made("bert")
    config = RowsConfig(train=str(tmp_path / "train.TXT"), validation=str(tmp_path / "train.TXT"))
    first, second = read_split(config, "train", task.parse, task.embedded, Notes())
    assert first["text"] == "The author of a keygen uses a disassembler."
    assert first["gold"] == "Instrument-Agency(e2,e1)"
    assert [first["text"][slice(*first[n])] for n in ("head", "tail")] == ["author", "disassembler"]
    assert [second["text"][slice(*second[n])] for n in ("head", "tail")] == ["cradle", "child"]
    assert marked(second) == "A [E2]child[/E2] in the [E1]cradle[/E1]."
    (tmp_path / "bad.txt").write_text(SEMEVAL + '\n3\t"No <e1>entity</e1>."\nOther\n\n4\t"End')
    config = RowsConfig(train=str(tmp_path / "bad.txt"), validation=str(tmp_path / "train.TXT"))
    with pytest.raises(
        ConfigError, match=r"2 of 4 rows.*bad.txt:9: not exactly one <e1>.*bad.txt:12"
    ):
        read_split(config, "train", task.parse, task.embedded, Notes())


@pytest.mark.parametrize(
    ("head", "tail", "why"),
    [
        ([0, 3], [2, 5], "overlap"),
        ([0, 3], [4, 40], "is not a span of the text"),
        ([3, 4], [4, 7], "is not a span of the text"),
        ("bak", [4, 7], "no .begin, end."),
    ],
)
def test_spans_that_cannot_be_used_are_bad_rows(head: Any, tail: Any, why: str) -> None:
    task, _ = made("bert")
    with pytest.raises(BadRowError, match=why):
        task.parse({"text": "bak dal nok", "head": head, "tail": tail, "label": "Other"})


@pytest.mark.parametrize("family", small.FAMILIES)
@pytest.mark.parametrize(("head", "tail"), [("bak", "dol"), ("dol", "bak")])
def test_the_marks_stand_where_the_spans_begin(family: str, head: str, tail: str) -> None:
    task, tokenizer = made(family)
    (example,) = task.encode([row("gal bak nok dol fik", head, tail)], tokenizer, Notes(), True)
    ids = {tokenizer.token_id(marker): marker for marker in MARKERS}
    assert None not in ids
    found = [
        ids.get(int(example["tokens"][np.flatnonzero(example["marks"] == m)[0]])) for m in (1, 2)
    ]
    assert found == ["[E1]", "[E2]"]
    assert (example["marks"] > 0).sum() == 2
    written = [ids[int(t)] for t in example["tokens"] if int(t) in ids]
    order = list(MARKERS if head == "bak" else MARKERS[2:] + MARKERS[:2])
    assert written == order + (["[E1]", "[E2]"] if family == "gpt" else [])
    # The markers aside, the tokens are those of the text as it runs.
    plain = [int(t) for t in example["tokens"] if int(t) not in ids]
    (running,) = tokenizer.encode_batch(["gal bak nok dol fik"])
    assert plain == task.form.join(running).tokens.tolist()


def test_long_texts_lose_what_is_far_from_the_spans() -> None:
    assert _kept([5, 2, 3, 2, 5], 20) == [(0, 5), (0, 2), (0, 3), (0, 2), (0, 5)]
    assert _kept([5, 2, 3, 2, 5], 11) == [(3, 5), (0, 2), (0, 3), (0, 2), (0, 2)]
    assert _kept([1, 2, 3, 2, 9], 12) == [(0, 1), (0, 2), (0, 3), (0, 2), (0, 4)]
    assert _kept([5, 2, 3, 2, 5], 6) == [(5, 5), (0, 2), (0, 2), (0, 2), (0, 0)]
    assert _kept([5, 9, 3, 2, 5], 6) == [(5, 5), (0, 4), (0, 0), (0, 2), (0, 0)]
    for room in range(2, 30):
        kept = _kept([5, 9, 3, 2, 7], room)
        assert sum(end - begin for begin, end in kept) == min(room, 26)
    notes = Notes()
    task, tokenizer = made("bert", 16)
    text = " ".join(["gal"] * 20 + ["bak", "nok", "dol"] + ["fik"] * 20)
    (example,) = task.encode([row(text, "bak", "dol")], tokenizer, notes, True)
    assert len(example["tokens"]) == 16
    assert notes.counts == {"cut to 16 tokens": 1}


@pytest.mark.parametrize("family", small.FAMILIES)
def test_logits_are_of_both_marked_states_whatever_the_padding(family: str) -> None:
    task, tokenizer = made(family)
    rows = [row("gal bak nok dol fik", "bak", "dol"), row("dol bak", "bak", "dol")]
    examples = task.encode(rows, tokenizer, Notes(), True)
    batch = Collator(task, 3)(examples)
    params = jax.jit(task.init)(jax.random.key(0), batch)
    logits = jax.jit(lambda p, b: task.forward(p, b, None)["logits"])(params, batch)
    # By hand, one text alone: the encoder's states at the two places, one behind the other.
    for example, found in zip(examples, np.asarray(logits), strict=False):
        alone = Pretrained(task.network.encoder, params["encoder"])
        hidden = np.asarray(alone(example["tokens"][None], example["token_types"][None])[0])
        if family == "xlnet":
            assert example["tokens"][-1] == task.vocabulary.cls
        places = [int(np.flatnonzero(example["marks"] == m)[0]) for m in (1, 2)]
        output = params["head"]["output"]
        expected = np.concatenate(hidden[places]) @ output["kernel"] + output["bias"]
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
def test_a_run_learns_which_span_is_which_and_opens_again(tmp_path: pathlib.Path) -> None:
    """The label is told by the head alone: what is marked matters, and in which order."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(240):
        words = list(rng.permutation(small.WORDS[:6]))
        text = " ".join(words)
        i, j = rng.choice(len(words), 2, replace=False)
        starts = np.cumsum([0, *[len(w) + 1 for w in words]])
        spans = {n: [int(starts[k]), int(starts[k]) + 3] for n, k in (("head", i), ("tail", j))}
        label = "R(e1,e2)" if words[i] in small.WORDS[:3] else "R(e2,e1)"
        rows.append({"text": text, **spans, "label": label})
    train = small.write_rows(tmp_path / "train.jsonl", rows[:200])
    test = small.write_rows(tmp_path / "test.jsonl", rows[200:])
    config = small.config(
        {"type": "lmjax.tasks.relations.Relations"}, {"train": train, "validation": test}
    )
    config.dropout, config.task.head_dropout, config.training.epochs = 0.0, 0.0, 16
    prepared = prepare(config)
    assert prepared.task.model.vocab_size == prepared.start.tokenizer.size
    result = finetune(prepared, config, tmp_path / "run", "", seed=0)
    assert result.scores["macro_f1"] > 0.8
    assert next(iter(result.scores)) == "macro_f1"
    opened = open_run(tmp_path / "run", Relations, "--relations")
    assert opened.labels == prepared.task.labels
    again = [p["prediction"] for p in opened.predict(rows[200:])]
    assert again == [p["prediction"] for p in result.predictions]
    transformers = pytest.importorskip("transformers", reason="opens the encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == prepared.start.tokenizer.size
    with pytest.raises(ConfigError, match="a model for no task, not for Relations"):
        open_run(tmp_path / "run" / "model", Relations, "--relations")
