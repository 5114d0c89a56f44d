"""Runs of lmjax are opened as published models are, and become ones."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.errors import ConfigError
from lmjax.models.electra import Electra, ElectraDiscriminator, ElectraGenerator
from lmjax.training.loop import Result, pretrain

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTH = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Result]:
    """Four steps of ELECTRA with a moving average, which is what is to be opened."""
    place = tmp_path_factory.mktemp("run")
    words = [f"{a}{b}" for a in "bcdfgklm" for b in ("ab", "el", "im", "on")]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 40)) + "." for _ in range(800)]
    (place / "text.txt").write_text("\n\n".join(texts))
    trunk = {"layers": 2, "hidden_size": 16, "heads": 2, "intermediate_size": 32}
    config = {
        "seed": 0,
        "objective": {
            "type": "lmjax.objectives.replaced.ReplacedTokenDetection",
            "max_predictions": 4,
        },
        "model": {
            "trunk": {**trunk, "activation": "gelu", "initial_std": 0.2, "scan_layers": True},
            "embedding_size": 8,
            "generator_size": 0.5,
            "max_length": LENGTH,
        },
        "data": {
            "corpus": str(place / "text.txt"),
            "tokenizer": {"kind": "wordpiece", "vocab_size": 100},
            "examples": {"type": "lmjax.data.examples.ElectraPairs", "length": LENGTH},
        },
        "optimizer": {"learning_rate": 1e-2},
        "training": {"steps": 4, "batch_size": 8, "eval_batches": 1, "ema_decay": 0.5},
        "mesh": {"data": 1},
    }
    return place / "run", pretrain(ConfigDict(config), place / "run", "")


def test_a_run_opens_with_its_averaged_parameters(run: tuple[pathlib.Path, Result]) -> None:
    path, result = run
    opened = lmjax.load(path)
    assert isinstance(opened.network, Electra)
    jax.tree.map(np.testing.assert_array_equal, opened.params, jax.device_get(result.params))
    assert opened.tokenizer is not None
    assert opened.tokenizer.fingerprint == result.tokenizer.fingerprint
    tokens = result.batch["tokens"]
    generated, detected = opened(tokens, result.batch["segments"], tokens != 0)
    assert generated.shape == (*tokens.shape, opened.network.config.vocab_size)
    assert detected.shape == tokens.shape


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_run_becomes_a_published_model(
    part: str, run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    path, result = run
    command = [sys.executable, "-m", "experiments.convert", f"--from={path}", f"--part={part}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, f"--to={tmp_path / 'm'}"], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    written = lmjax.load(tmp_path / "m")
    both = lmjax.load(path)
    tokens, segments = result.batch["tokens"], result.batch["segments"]
    index = ("generator", "discriminator").index(part)
    assert isinstance(written.network, (ElectraGenerator, ElectraDiscriminator)[index])
    np.testing.assert_allclose(written(tokens, segments), both(tokens, segments)[index], atol=1e-5)
    assert written.tokenizer is not None and both.tokenizer is not None
    text = "bab cel."
    assert [*written.tokenizer.encode_batch([text])[0]] == [*both.tokenizer.encode_batch([text])[0]]
    again = subprocess.run(
        [*command, f"--to={tmp_path / 'm'}"], cwd=ROOT, env=environment, capture_output=True
    )
    assert again.returncode == 2
    assert b"is there and not empty" in again.stderr


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_transformers_opens_it(
    part: str, run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    opened, tokens = lmjax.load(run[0]), run[1].batch["tokens"]
    lmjax.save_huggingface(opened, tmp_path / "m", part)
    name = {"generator": "ElectraForMaskedLM", "discriminator": "ElectraForPreTraining"}[part]
    model, told = getattr(transformers, name).from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(told.values()), told
    with torch.no_grad():
        logits = model.eval()(torch.tensor(np.asarray(tokens)).long()).logits.numpy()
    index = ("generator", "discriminator").index(part)
    np.testing.assert_allclose(opened(tokens)[index], logits, atol=2e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.mask_token == "[MASK]"
    text = "bab cel."
    assert opened.tokenizer is not None
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [*opened.tokenizer.encode_batch([text])[0]]


def break_config(path: pathlib.Path) -> None:
    (path / "config.json").write_text('{"objective": {}}')


def break_objective(path: pathlib.Path) -> None:
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace("ReplacedTokenDetection", "NoSuch"))


def drop_checkpoints(path: pathlib.Path) -> None:
    (path / "checkpoints").rename(path / "elsewhere")


def drop_tokenizer(path: pathlib.Path) -> None:
    (path / "tokenizer.json").unlink()


def cut_checkpoint(path: pathlib.Path) -> None:
    for file in (path / "checkpoints").rglob("*"):
        if file.is_file() and file.name in ("manifest.ocdbt", "_METADATA"):
            file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "no config of a run"),
        (break_objective, "has no 'NoSuch'"),
        (drop_checkpoints, "no checkpoint in it"),
        (drop_tokenizer, "no tokenizer.json"),
        (cut_checkpoint, "cannot be read"),
    ],
)
def test_a_damaged_run_is_one_clear_error(
    damage: Any, message: str, run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(run[0], tmp_path / "run"))
    damage(copy)
    with pytest.raises(ConfigError, match=message):
        lmjax.load(copy)


def test_a_place_without_a_model_is_said_to_be_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(No such file"):
        lmjax.load(tmp_path / "nowhere")
