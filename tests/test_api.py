"""The library without flags: texts and rows in memory, callbacks, the notebook, the wheel."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import lmjax
from lmjax.errors import ConfigError
from tests.runs import write_text
from tests.tasks import small

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = {
    "objective": {"type": "lmjax.objectives.causal.CausalLM"},
    "model": {
        "trunk": {
            "layers": 1,
            "hidden_size": 16,
            "heads": 2,
            "intermediate_size": 32,
            "norm": "pre",
            "initial_std": 0.1,
        },
        "max_length": 32,
    },
    "data": {
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "examples": {"type": "lmjax.data.examples.Packed", "length": 16},
    },
    "optimizer": {"learning_rate": 1e-2},
    "training": {"steps": 20, "batch_size": 8, "log_every": 10, "eval_batches": 1},
    "mesh": {"data": 1},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt").read_text().split("\n\n")


@pytest.fixture(scope="module")
def made(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    seen: list[tuple[int, set[str]]] = []
    place = tmp_path_factory.mktemp("api") / "run"

    def on_metrics(step: int, values: Any) -> None:
        seen.append((step, set(values)))

    model = lmjax.pretrain(CONFIG, texts, workdir=place, on_metrics=on_metrics)
    return place, model, seen


def test_a_model_is_pretrained_on_texts_in_memory(made: Any, texts: list[str]) -> None:
    place, model, seen = made
    assert [step for step, names in seen if "train/loss" in names] == [10, 20]
    assert any("validation/loss" in names for _, names in seen)
    again = lmjax.pretrain(CONFIG, texts, workdir=place)  # finished: resumes to the same
    np.testing.assert_array_equal(
        again.params["encoder"]["embeddings"]["token"]["embedding"],
        model.params["encoder"]["embeddings"]["token"]["embedding"],
    )
    with pytest.raises(ConfigError, match=r"config\.data\.corpus.* belongs to a run of another"):
        lmjax.pretrain(CONFIG, texts[:-1], workdir=place)
    with pytest.raises(ConfigError, match="number 1 is a int; give a text"):
        lmjax.pretrain(CONFIG, ["a text", 3], workdir=place)  # type: ignore[list-item]


def test_it_generates_and_is_evaluated(made: Any, texts: list[str]) -> None:
    _, model, _ = made
    texts = [" ".join(text.split()[:6]) for text in texts[:4]]
    (text,) = model.generate(texts[0], max_new_tokens=4)
    assert len(text.token_ids) == 4
    found = lmjax.evaluate(model, texts, "perplexity")
    logs = np.concatenate(lmjax.token_scores(model, texts))
    np.testing.assert_allclose(found["perplexity"], np.exp(-logs.mean()), rtol=1e-3)
    pairs = [{"good": texts[0], "bad": texts[0][::-1]}, {"good": texts[1], "bad": texts[1][::-1]}]
    assert lmjax.evaluate(model, pairs, "minimal_pairs") == {"accuracy": 1.0}
    assert set(lmjax.evaluate(model, texts[:3], "last_word")) == {"accuracy", "perplexity"}
    with pytest.raises(ConfigError, match="the model has no task; name a measure"):
        lmjax.evaluate(model, [{"text": texts[0]}])
    with pytest.raises(ConfigError, match="'bleu' is not one of 'perplexity'"):
        lmjax.evaluate(model, texts, "bleu")  # type: ignore[arg-type]


def test_a_model_is_fine_tuned_on_rows_in_memory(made: Any) -> None:
    place, _, _ = made
    rows = small.labelled(48)
    config = {
        "task": {"type": "lmjax.tasks.classification.Classification", "length": 32},
        "init": str(place),
        "optimizer": {"learning_rate": 1e-2},
        "training": {"epochs": 6, "batch_size": 8},
    }
    model = lmjax.finetune(config, train=rows, validation=rows[:16])
    told = [row["prediction"] for row in model.predict([row["text"] for row in rows])]
    accuracy = np.mean([a == row["label"] for a, row in zip(told, rows, strict=True)])
    assert lmjax.evaluate(model, rows)["accuracy"] == accuracy > 0.6
    with pytest.raises(ConfigError, match=r"config\.init: missing"):
        lmjax.finetune({**config, "init": ""}, train=rows)
    with pytest.raises(ConfigError, match="number 0 is a str; give a dict of columns"):
        lmjax.finetune(config, train=["text"])  # type: ignore[list-item]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    program = "\n".join([*cells, "assert scores['accuracy'] > 0.5, scores"])
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | variables, check=True
    )


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path: pathlib.Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    code = "import lmjax; print(lmjax.__file__); lmjax.pretrain, lmjax.finetune, lmjax.evaluate"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith(str(wheel))
