"""Whole runs: every task on every family, continued exactly, saved, frozen, on a mesh."""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import RowsConfig
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.models.gpt import Gpt
from lmjax.models.heads import Headed
from lmjax.nn.masks import causal
from lmjax.tasks import finetuning
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.initialization import put_in
from lmjax.tasks.plan import Prepared, named_tests, prepare
from lmjax.training.checkpoints import read_part
from lmjax.training.run_directory import read_metrics
from tests import tiny
from tests.runs import changed
from tests.tasks import small

CLASSIFICATION = {"type": "lmjax.tasks.classification.Classification"}


def data(folder: pathlib.Path, rows: int = 96) -> dict[str, Any]:
    return {
        "train": small.write_rows(folder / "train.jsonl", small.labelled(rows)),
        "validation": small.write_rows(folder / "dev.jsonl", small.labelled(24, 1)),
        "test": small.write_rows(folder / "test.jsonl", small.labelled(32, 2)),
    }


def run(config: ConfigDict, place: pathlib.Path, **keywords: Any) -> Any:
    prepared = prepare(config)
    return finetuning.finetune(prepared, config, place, "", seed=config.get("seed", 0), **keywords)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigDict, pathlib.Path, Any]:
    """A run of a BERT with dropout."""
    folder = tmp_path_factory.mktemp("whole")
    config = small.config(CLASSIFICATION, data(folder))
    config.training.epochs = 3
    return config, folder / "run", run(config, folder / "run")


def test_a_run_learns_and_leaves_what_there_is_to_know(
    whole: tuple[ConfigDict, pathlib.Path, Any],
) -> None:
    _, place, result = whole
    assert result.scores["accuracy"] > 0.8
    lines = read_metrics(place)
    held_out = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in held_out] == [0, 12, 24, 36]
    assert held_out[-1]["loss"] < held_out[0]["loss"]
    assert held_out[-1]["accuracy"] == pytest.approx(held_out[-1]["hits"])
    predictions = [json.loads(line) for line in (place / "predictions.jsonl").open()]
    assert len(predictions) == 32
    right = np.mean([p["gold"] == p["prediction"] for p in predictions])
    assert right == pytest.approx(result.scores["accuracy"])
    assert all(0.5 <= p["confidence"] <= 1 for p in predictions)
    values = json.loads((place / "results.json").read_text())
    assert values["scored"] == "test"
    assert values["rows"] == {"train": 96, "validation": 24, "test": 32}
    labels = [row["label"] for row in small.labelled(96)]
    majority = max(("no", "yes"), key=labels.count)
    share = np.mean([p["gold"] == majority for p in predictions])
    assert values["baselines"][f"majority ({majority})"]["accuracy"] == pytest.approx(share)
    report = (place / "report.md").read_text()
    assert "| no |" in report
    assert "The most confident of" in report


def test_the_saved_model_says_the_same(whole: tuple[ConfigDict, pathlib.Path, Any]) -> None:
    _, place, result = whole
    model, other = lmjax.load(place), lmjax.load(place / "model")
    assert model.labels == other.labels == ("no", "yes")
    jax.tree.map(np.testing.assert_array_equal, model.params, other.params)
    assert model.tokenizer is not None
    roles = model.tokenizer.roles
    assert model.token_ids["pad_token_id"] == other.token_ids["pad_token_id"] == roles["pad"]
    for row in result.predictions[:5]:
        ids = model.tokenizer.encode_batch([row["text"]])[0]
        tokens = np.array([[roles["cls"], *ids, roles["sep"]]])
        np.testing.assert_allclose(model(tokens), other(tokens), rtol=1e-5)
        shares = jax.nn.softmax(model(tokens)[0])
        assert model.labels[int(shares.argmax())] == row["prediction"]
        assert float(shares.max()) == pytest.approx(row["confidence"], abs=1e-4)


def test_a_finished_run_shows_its_results_again(
    whole: tuple[ConfigDict, pathlib.Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place, result = whole
    before = read_metrics(place)
    again = run(config, place)
    assert again.scores == result.scores
    assert read_metrics(place) == before


def test_an_interrupted_run_ends_with_the_same_parameters(
    whole: tuple[ConfigDict, pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    config, place, result = whole
    evaluated: list[int] = []

    def interrupt(step: int, metrics: dict[str, float]) -> None:
        if "validation/loss" not in metrics:
            return
        evaluated.append(step)
        if len(evaluated) == 3:  # after the second epoch, before its checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", on_metrics=interrupt)
    assert evaluated == [0, 12, 24]
    again = run(config, tmp_path / "run", on_metrics=interrupt)
    assert evaluated == [0, 12, 24, 24, 36]
    assert again.predictions == result.predictions
    ours, theirs = (read_part(p / "checkpoints", "params") for p in (place, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "classification": (CLASSIFICATION, small.labelled(16)),
    "regression": (
        {"type": "lmjax.tasks.classification.Regression", "pair": "other", "labels": ()},
        [
            {"text": t, "other": t[::-1], "label": len(t.split()) / 3}
            for t in small.sentences(16, seed=3)
        ],
    ),
    "tagging": (
        {"type": "lmjax.tasks.tagging.Tagging"},
        [
            {"words": t.split(), "tags": ["B-A" if w[1] == "a" else "O" for w in t.split()]}
            for t in small.sentences(16, seed=4)
        ],
    ),
    "answers": (
        {
            "type": "lmjax.tasks.question_answering.QuestionAnswering",
            "question_length": 4,
            "stride": 8,
        },
        [
            {
                "question": t.split()[1],
                "context": t,
                "answers": {"text": [t.split()[2]], "answer_start": [8]},
            }
            for t in small.sentences(16, seed=5, words=(6, 12))
        ],
    ),
    "choices": (
        {"type": "lmjax.tasks.multiple_choice.MultipleChoice", "length": 16},
        [
            {"context": t, "choices": [t.upper(), "bak dal", "nok"][: 2 + i % 2], "label": i % 2}
            for i, t in enumerate(small.sentences(16, seed=6))
        ],
    ),
}


def prepared_task(name: str, family: str, folder: pathlib.Path) -> tuple[ConfigDict, Prepared]:
    task, rows = TASKS[name]
    path = small.write_rows(folder / "rows.jsonl", rows)
    config = small.config(task, {"train": path, "validation": path}, family)
    config.dropout, config.training.epochs = 0.0, 1
    return config, prepare(config)


EVERY = [(name, family) for name in TASKS for family in (*small.FAMILIES, "roberta", "distilbert")]
# XLNet pads on the left, which concerns every task; the others' heads differ in one.
FEW = [pair for pair in EVERY if pair[1] == "xlnet" or pair[0] == "classification"]


@pytest.mark.parametrize(
    ("name", "family"),
    [pair if pair in FEW else pytest.param(*pair, marks=pytest.mark.slow) for pair in EVERY],
)
def test_any_family_serves_any_task(name: str, family: str, tmp_path: pathlib.Path) -> None:
    """Its loss does not depend on padding nor on filled-up rows, and its gradient is finite."""
    _, prepared = prepared_task(name, family, tmp_path)
    task, examples = prepared.task, prepared.examples["train"]
    short = sorted(examples, key=lambda e: e["tokens"].shape[-1])[:3]
    longest = max(e["tokens"].shape[-1] for e in short)
    tight = Collator(dataclasses.replace(task, length=max(longest, 8)), 3)(short)
    loose = Collator(dataclasses.replace(task, length=longest + 13), 4)(short)
    params = jax.jit(task.init)(jax.random.key(0), tight)

    def mean(params: Any, batch: Any) -> Any:
        ((total, count),) = task.loss(params, batch, None, None).terms.values()
        return total / count, count

    (expected, count) = jax.jit(mean)(params, tight)
    scored = jax.jit(jax.value_and_grad(mean, has_aux=True))
    (found, same), gradient = scored(params, loose)
    assert float(count) == float(same)
    np.testing.assert_allclose(expected, found, rtol=2e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["head"]["output"]["kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", [*small.FAMILIES, "roberta", "distilbert"])
@pytest.mark.parametrize("name", TASKS)
def test_whole_runs_of_any_family_and_task(name: str, family: str, tmp_path: pathlib.Path) -> None:
    config, _ = prepared_task(name, family, tmp_path)
    result = run(config, tmp_path / "run")
    assert len(result.predictions) == 16
    model = lmjax.load(tmp_path / "run")
    assert isinstance(model.network, Headed)


def test_a_probe_trains_the_head_alone_from_a_pretrained_encoder(
    whole: tuple[ConfigDict, pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    config, place, _ = whole
    config = config.copy_and_resolve_references()
    config.init, config.task.freeze = str(place / "model"), "trunk"
    config.training.epochs = 1
    result = run(config, tmp_path / "probe")
    ours = read_part(tmp_path / "probe" / "checkpoints", "params")
    theirs = read_part(place / "checkpoints", "params")
    jax.tree.map(np.testing.assert_array_equal, ours["encoder"], theirs["encoder"])
    head = sum(leaf.size for leaf in jax.tree.leaves(ours["head"]))
    assert result.trained == head < result.parameters
    # A fresh head: a fine-tuned model's own is left behind.
    assert not np.array_equal(ours["head"]["output"]["kernel"], theirs["head"]["output"]["kernel"])
    # Moments are of the head alone.
    moments = read_part(tmp_path / "probe" / "checkpoints", "opt_state")
    sizes = [leaf.size for leaf in jax.tree.leaves(moments)]
    assert max(sizes) <= max(leaf.size for leaf in jax.tree.leaves(ours["head"]))
    assert result.scores["accuracy"] > 0.8


def test_a_gpt_without_delimiters_gets_them(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens for roles that a tokenizer lacks have new rows; the rest of the table is kept."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(small.sentences(50), trainer)
    published = Tokenizer(inner)
    size = 300
    assert published.roles["eod"] < size < published.size
    gpt = Gpt(small.model("gpt", size))
    ids = np.zeros((1, 4), np.int32)
    params = gpt.init(jax.random.key(0), tiny.text_inputs(ids, causal(4)))["params"]
    lmjax.save_huggingface(Pretrained(gpt, params, published), tmp_path / "gpt")
    config = small.config(CLASSIFICATION, data(tmp_path, 16), "gpt")
    config.init = str(tmp_path / "gpt")
    prepared = prepare(config)
    assert "5 tokens get new, random rows in the token table: [PAD], [UNK], [CLS]" in (
        capsys.readouterr().err
    )
    task = prepared.task
    assert task.model.vocab_size == prepared.start.tokenizer.size == published.size
    batch = Collator(task, 8)(prepared.examples["train"][:8])
    assert batch["tokens"].max() >= size
    fresh = jax.jit(task.init)(jax.random.key(1), batch)
    merged = put_in(fresh, prepared.start)
    table = merged["encoder"]["embeddings"]["token"]["embedding"]
    given = params["encoder"]["embeddings"]["token"]["embedding"]
    np.testing.assert_array_equal(table[:size], given)
    ours = fresh["encoder"]["embeddings"]["token"]["embedding"]
    np.testing.assert_array_equal(table[size:], ours[size:])
    assert not finetuning.export_model(task, prepared.start.tokenizer, merged, tmp_path)
    saved = lmjax.load(tmp_path / "model")
    assert saved.tokenizer is not None
    assert saved.tokenizer.roles == prepared.start.tokenizer.roles


def test_a_model_that_transformers_has_not_is_opened_all_the_same(
    tmp_path: pathlib.Path,
) -> None:
    config = small.config(CLASSIFICATION, data(tmp_path, 16), "gpt")
    config.model.trunk.norm, config.training.epochs = "post", 1
    result = run(config, tmp_path / "run")
    assert "trunk.norm" in result.not_exported
    assert not (tmp_path / "run" / "model").exists()
    model = lmjax.load(tmp_path / "run")
    assert model.labels == ("no", "yes")
    assert model(np.full((1, 4), 7)).shape == (1, 2)


def test_from_scratch_is_the_same_model_without_what_was_learnt(
    whole: tuple[ConfigDict, pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    config, place, _ = whole
    config = config.copy_and_resolve_references()
    config.init, config.training.epochs = str(place / "model"), 1
    config.optimizer.learning_rate = 1e-30  # the last parameters are the first ones
    prepared = prepare(config)
    first = []
    for scratch, seed in ((False, 0), (False, 1), (True, 0)):
        folder = tmp_path / f"{scratch}{seed}"
        finetuning.finetune(prepared, config, folder, "", seed=seed, scratch=scratch)
        first.append(read_part(folder / "checkpoints", "params"))
    given = read_part(place / "checkpoints", "params")["encoder"]
    jax.tree.map(np.testing.assert_array_equal, first[0]["encoder"], given)
    jax.tree.map(np.testing.assert_array_equal, first[1]["encoder"], given)
    kernels = [p["head"]["output"]["kernel"] for p in first]
    assert not np.array_equal(kernels[0], kernels[1])
    assert np.array_equal(kernels[0], kernels[2])  # the head is the seed's
    table = first[2]["encoder"]["embeddings"]["token"]["embedding"]
    assert not np.allclose(table, given["embeddings"]["token"]["embedding"])


def test_losses_do_not_depend_on_devices_nor_on_micro_batches(
    whole: tuple[ConfigDict, pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    config = whole[0].copy_and_resolve_references()
    config.training.update(epochs=1, accumulation=2, log_every=1)
    one = run(config, tmp_path / "one")
    config.mesh.data, config.training.accumulation = 4, 1
    run(config, tmp_path / "four")
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name) if line["split"] == "train"]
        for name in ("one", "four")
    ]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert one.parameters == one.trained


def test_epochs_show_everything_once_in_an_order_of_their_own(tmp_path: pathlib.Path) -> None:
    _, prepared = prepared_task("classification", "bert", tmp_path)
    examples = prepared.examples["train"][:13]
    epochs = Epochs(examples, Collator(prepared.task, 4), seed=3)
    assert epochs.batches_per_epoch == 4

    def rows(index: int) -> list[int]:
        batch = epochs.batch_at(index)
        return batch["row"][batch["weight"] > 0].tolist()

    first, second = ([r for i in range(4) for r in rows(4 * e + i)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(13))
    assert first != second
    read = [next(epochs) for _ in range(6)]
    other = Epochs(examples, Collator(prepared.task, 4), seed=3)
    epochs.skip([7])
    other.set_state(epochs.get_state())
    for _ in range(3):
        a, b = next(epochs), next(other)
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert epochs.index == other.index == 9
    assert rows(5) == read[5]["row"][read[5]["weight"] > 0].tolist()


NETWORK = [
    ("", [], "holds no JSON object"),
    ("model", "bert", "network.json.model: expected a block"),
    ("model", [1], "network.json.model: expected a block"),
    ("model", None, "network.json.model: expected a block"),
    (
        "model.type",
        "lmjax.training.plan.TrainingConfig",
        "is not a lmjax.models.family.ModelConfig",
    ),
    ("model.type", "tests.tasks.small.Config", "network.json.model.type: .* is not of lmjax"),
    ("model.vocab_size", -1, "network.json.model.vocab_size: must not be negative"),
    ("model.vocab_size", 10**12, "network.json.model.vocab_size: must lie in"),
    ("model.vocab_size", "a", "network.json.model.vocab_size: expected int"),
    ("model.trunk.layers", 10**6, "network.json.model.trunk.layers: must lie in"),
    ("model.trunk.layers", 900, "network.json: 900 layers, but the checkpoint has only"),
    ("model.trunk.layers", 2, "the checkpoint has no 'encoder/stack/blocks/layer_1/"),
    ("model.trunk.hidden_size", 10**6, "'encoder/.*' should be float32"),
    ("model.trunk.initial_std", math.inf, "trunk.initial_std: must be a finite number"),
    ("task", "no_such_task", "the network belongs to another task"),
    ("task", "token_classification", "'token_classification' needs TokenHead, not SequenceHead"),
    ("task", "language_model", "network.json.*Bert does not support text generation"),
    ("head", "x", "network.json.head: expected a block"),
    ("head.type", "os.path", "network.json.head.type: 'os.path' is not of lmjax"),
    ("head.type", "lmjax.models.bert.BertConfig", "is not a flax.linen.module.Module"),
    ("head.more", 1, "network.json.head.more: unknown field of SequenceHead"),
    ("head.token", "middle", "network.json.head.token: 'middle' is not one of"),
    ("head.unit", [0.0, -1.0], "network.json.head.unit: expected mean and scale"),
    ("head.unit", [0.0], "network.json.head.unit: expected mean and scale"),
    ("head.classes", -1, "network.json.head.classes: must not be negative"),
    ("head.classes", "x", "network.json.head.classes: expected int"),
    ("head.classes", 10**9, "network.json.head.classes: must lie in"),
    ("head.classes", 3, "network.json.labels: 2 for 3 classes"),
    ("head.dropout", "x", "network.json.head.dropout: expected float"),
    ("head.dropout", 1.0, "network.json.head.dropout: must lie in"),
    ("classes", 2, "network.json.classes: is a field of the block"),
    ("adapter_scale", "q", "network.json.adapter_scale: expected float"),
    ("adapter_scale", math.nan, "network.json.adapter_scale: must be a finite number"),
    ("adapter_scale", math.inf, "network.json.adapter_scale: must be a finite number"),
    ("labels", "no", "network.json.labels: expected a tuple"),
    ("labels", [1, 2], r"network.json.labels\[0\]: expected str"),
    ("labels", ["no", "yes", "maybe"], "network.json.labels: 3 for 2 classes"),
    ("more", 1, "network.json.more: unknown field"),
]


@pytest.mark.parametrize(("field", "value", "message"), NETWORK)
def test_a_malformed_network_is_one_clear_error(
    field: str,
    value: Any,
    message: str,
    whole: tuple[ConfigDict, pathlib.Path, Any],
    tmp_path: pathlib.Path,
) -> None:
    copy = changed(whole[1], tmp_path, "network.json", field, value)
    with pytest.raises(ConfigError, match=message) as caught:
        lmjax.load(copy)
    assert "\n" not in str(caught.value)


def test_a_run_of_an_earlier_version_opens(
    whole: tuple[ConfigDict, pathlib.Path, Any], tmp_path: pathlib.Path
) -> None:
    """Its network.json has no block `head`, but `classes`, `dropout` and `unit`."""
    values = json.loads((whole[1] / "network.json").read_text())
    head = values.pop("head")
    values |= {"classes": head["classes"], "dropout": head["dropout"], "unit": head["unit"]}
    older = changed(whole[1], tmp_path, "network.json", "", values)
    models = [lmjax.load(place) for place in (whole[1], older)]
    assert models[0].network == models[1].network
    found = [model.predict(["bak bel bim", "dol"]) for model in models]
    assert found[0] == found[1]
    bad = changed(whole[1], tmp_path / "bad", "network.json", "", values | {"classes": 3})
    with pytest.raises(ConfigError, match=r"network\.json\.labels: 2 for 3 classes"):
        lmjax.load(bad)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "x", "task.json: task: expected a block"),
        ("task", {}, "task.json: task.type: missing"),
        ("task.type", "os.path", "task.json: task.type: 'os.path' is not of lmjax"),
        ("task.type", "lmjax.models.gpt.GptConfig", "is not a lmjax.tasks.base.Task"),
        ("task", {"type": "lmjax.tasks.tagging.Tagging", "length": 32}, "the network belongs to"),
        ("task.labels", ["no", "yes", "maybe"], "the network belongs to another task"),
        ("task.head_dropout", math.nan, "task.head_dropout: must be a finite number"),
        ("task.length", 10**9, "task.length: must lie in"),
        ("data", None, "task.json: data: expected a block"),
        ("data.train_rows", -1, "data.train_rows: must not be negative"),
    ],
)
def test_the_task_of_a_malformed_run_is_one_clear_error(
    field: str,
    value: Any,
    message: str,
    whole: tuple[ConfigDict, pathlib.Path, Any],
    tmp_path: pathlib.Path,
) -> None:
    copy = changed(whole[1], tmp_path, "task.json", field, value)
    with pytest.raises(ConfigError, match=message):
        lmjax.load(copy)
    # An earlier version left no task.json: the config says what the task was.
    (copy / "task.json").unlink()
    assert lmjax.load(copy).task is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.length": 65}, "config.task.length: 65 is longer than the model's position table"),
        ({"task.freeze": "head"}, "config.task.freeze: 'head' is not one of"),
        ({"task.type": "lmjax.objectives.causal.CausalLM"}, "is not a lmjax.tasks.base.Task"),
        ({"task.lm_weight": 0.5}, "config.task.lm_weight: the auxiliary loss"),
        ({"task.label": "tag"}, r"no column 'tag' \(config.task.label; the row has: text, label\)"),
        ({"task.labels": ("no", "maybe")}, "label 'yes' is not in the set"),
        ({"data.on_bad_rows": "ignore"}, "config.data.on_bad_rows: 'ignore' is not one of"),
        ({"data.train": "missing.csv"}, "config.data.train: no such file"),
        ({"optimizer.warmup_steps": 5}, "set one of them to 0"),
        ({"training.batch_size": 0}, "config.training.batch_size: must be at least 1"),
        ({"seeds": 0}, "config.seeds: must be at least 1"),
        ({"dropout": 1.0}, "config.dropout: must lie in"),
        ({"init": "nowhere"}, "config.init: nowhere/config.json: cannot be read"),
        ({"model.trunk.heads": 3}, "config.model.trunk.heads: 3 does not divide"),
        ({"model.type": "lmjax.nn.trunk.TransformerConfig"}, "config.model"),
        ({"mesh.data": 3}, "config.training.batch_size: 8 is not divisible by 3"),
    ],
)
def test_settings_that_cannot_work(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    config = small.config({**CLASSIFICATION, "freeze": "", "lm_weight": 0.0}, data(tmp_path, 8))
    with config.unlocked():
        for field, value in changes.items():
            block: Any = config
            *path, name = field.split(".")
            for part in path:
                block = block[part]
            block[name] = value
    with pytest.raises(ConfigError, match=message):
        prepare(config)


def test_bad_rows_of_held_out_data_are_skipped_and_told(tmp_path: pathlib.Path) -> None:
    files = data(tmp_path, 16)
    rows = [*small.labelled(4), {"text": "bak", "label": "maybe"}, {"text": " ", "label": "no"}]
    files["test"] = small.write_rows(tmp_path / "test.jsonl", rows)
    config = small.config(CLASSIFICATION, files)
    with pytest.raises(ConfigError, match=r"test.jsonl:6: empty text"):
        prepare(config)
    config.data.on_bad_rows = "skip"
    prepared = prepare(config)
    assert len(prepared.rows["test"]) == 4
    lines = finetuning.note_lines(prepared)
    assert "- test: 1 skipped: empty text" in lines
    assert "- test: 1 skipped: label 'maybe' is not in the set" in lines
    assert any("test.jsonl:5" in line for line in lines)


def test_several_test_sets_have_scores_and_files_of_their_own(tmp_path: pathlib.Path) -> None:
    files = data(tmp_path, 24)
    far = [{"text": f"{r['text']} nok", "label": "yes"} for r in small.labelled(8, 3)]
    files["test"] = {
        "1-near": files["test"],
        "far-off": small.write_rows(tmp_path / "far.jsonl", far),
    }
    config = small.config(CLASSIFICATION, files)
    config.training.epochs = 1
    prepared = prepare(config)
    assert prepared.scored == ("1-near", "far-off")
    result = finetuning.finetune(prepared, config, tmp_path / "run", "", seed=0)
    place = tmp_path / "run"
    assert not {"predictions.jsonl", "report.md"} & {p.name for p in place.iterdir()}
    values = json.loads((place / "results.json").read_text())
    assert values["scored"] == ["1-near", "far-off"]
    assert values["rows"] == {"train": 24, "validation": 24, "1-near": 32, "far-off": 8}
    for name, count in (("1-near", 32), ("far-off", 8)):
        told = [json.loads(line) for line in (place / f"predictions-{name}.jsonl").open()]
        assert len(told) == count
        right = np.mean([p["gold"] == p["prediction"] for p in told])
        assert values["scores"][name]["accuracy"] == pytest.approx(right)
        assert values["baselines"][name].keys() == prepared.baselines[name].keys()
        assert f"{count} rows of {name}" in (place / f"report-{name}.md").read_text()
    assert result.scores == result.sets["1-near"].scores
    assert len(lmjax.load(place).held_out()) == 40


def test_test_sets_are_named_in_a_block_or_a_line(tmp_path: pathlib.Path) -> None:
    def named(test: Any) -> dict[str, str]:
        return named_tests(RowsConfig(train="a.jsonl", test=test))

    assert named("") == {}
    assert named("b.jsonl") == {"test": "b.jsonl"}
    assert named("near=b.jsonl,far=c/*.jsonl") == named({"near": "b.jsonl", "far": "c/*.jsonl"})
    # What is a path is a path, whatever is in it.
    path = tmp_path / "lang=de" / "x,y=z.jsonl"
    path.parent.mkdir()
    path.touch()
    for spec in (str(path), "./lang=de/x.jsonl", "data/lang=de/x.jsonl"):
        assert named(spec) == {"test": spec}
    for spec, message in (
        ("a=b.jsonl,a=c.jsonl", "uses one name for two test sets"),
        ({"train": "b.jsonl"}, "'train' is not a valid name of a test set"),
        ({"a/b": "b.jsonl"}, "'a/b' is not a valid name of a test set"),
        ({"a": ""}, "config.data.test.a: expected a path, got ''"),
        (7, "config.data.test: expected a path or a block of paths, got 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            named(spec)
    files = data(tmp_path, 8) | {"test": "far=missing.jsonl"}
    with pytest.raises(ConfigError, match=r"config.data.test.far: no such file"):
        prepare(small.config(CLASSIFICATION, files))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_score_is_made_of_outputs_that_are_no_numbers(
    split: str, tmp_path: pathlib.Path
) -> None:
    given = data(tmp_path)
    # A sign that the tokenizer has no piece for, in one row.
    rows = small.labelled(24, 3)
    rows[5]["text"] += " Ω"
    given[split] = small.write_rows(tmp_path / "odd.jsonl", rows)
    config = small.config(CLASSIFICATION, given)
    config.training.epochs = 1
    prepared = prepare(config)
    batch = Collator(prepared.task, 8, 1)(prepared.examples["train"][:8])
    encoder = prepared.task.init(jax.random.key(0), batch)["encoder"]
    tokens = encoder["embeddings"]["token"]
    unknown = prepared.start.tokenizer.roles["unk"]
    tokens["embedding"] = tokens["embedding"].at[unknown].set(np.nan)
    prepared = dataclasses.replace(
        prepared, start=dataclasses.replace(prepared.start, encoder=encoder)
    )
    with pytest.raises(NonFiniteError, match=r"odd\.jsonl:6: logits"):
        finetuning.finetune(prepared, config, tmp_path / "run", "", seed=0)
    assert not (tmp_path / "run" / "results.json").exists()


def test_gpts_auxiliary_loss(tmp_path: pathlib.Path) -> None:
    """0.5 times the language-model loss of the same tokens is added (GPT-1 section 3.2)."""
    config = small.config({**CLASSIFICATION, "lm_weight": 0.5}, data(tmp_path, 16), "gpt")
    prepared = prepare(config)
    task = prepared.task
    batch = Collator(task, 4)(prepared.examples["train"][:3])
    params = jax.jit(task.init)(jax.random.key(0), batch)
    plain = dataclasses.replace(task, lm_weight=0.0)  # type: ignore[call-arg]
    terms, alone = jax.jit(lambda p: [t.loss(p, batch, None, None).terms for t in (task, plain)])(
        params
    )
    np.testing.assert_allclose(terms["classes"][0], alone["classes"][0], rtol=1e-6)
    tokens, real = batch["tokens"], batch["segment_ids"] > 0
    network, inputs = Gpt(task.model), tiny.text_inputs(tokens, causal(tokens.shape[1]))
    read = jax.jit(lambda encoder: network.apply({"params": {"encoder": encoder}}, inputs))
    logits = read(params["encoder"])
    logs = np.asarray(jax.nn.log_softmax(logits))
    total = -sum(
        logs[row, place, tokens[row, place + 1]]
        for row in range(3)
        for place in range(int(real[row].sum()) - 1)
    )
    np.testing.assert_allclose(terms["lm"][0], total, rtol=1e-4)
    assert int(terms["lm"][1]) == int(real[:3].sum()) - 3
    assert task.weights["lm"] == 0.5
