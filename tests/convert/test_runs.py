"""Runs of lmjax are opened as published models are, and become ones."""

import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.convert.warm_start import Given, adapted, put_in
from lmjax.errors import ConfigError
from lmjax.models.electra import Electra, ElectraDiscriminator, ElectraGenerator
from lmjax.training.loop import Result, pretrain
from tests.runs import changed

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
            "type": "lmjax.objectives.rtd.ReplacedTokenDetection",
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
    generated, detected = opened(tokens, result.batch["token_types"], tokens != 0)
    assert generated.shape == (*tokens.shape, opened.network.config.vocab_size)
    assert detected.shape == tokens.shape


@pytest.mark.parametrize(
    "part", [pytest.param("generator", marks=pytest.mark.slow), "discriminator"]
)
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
    tokens, segments = result.batch["tokens"], result.batch["token_types"]
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
    assert b"is not empty; give" in again.stderr


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
        (break_config, "not the config of a run"),
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


def refusal(path: pathlib.Path, **keywords: Any) -> str:
    """The one line that opening a run ends in, within seconds."""
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        lmjax.load(path, **keywords)
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", "bert", "'model' is not a block"),
        ("model", ["bert"], "'model' is not a block"),
        ("model", 3, "'model' is not a block"),
        ("model", None, "'model' is not a block"),
        ("training", [], "'training' is not a block"),
        ("training.ema_decay", "x", "config.training.ema_decay: expected float"),
        ("training.ema_decay", math.nan, "config.training.ema_decay: must be a finite number"),
        ("training.ema_decay", 0.0, ""),  # the parameters that are not averaged are there, too
        ("objective", "x", "config.objective: expected a block"),
        ("objective.type", ["x"], "config.objective.type: .* is not an import path"),
        ("objective.type", "lmjax.load", "config.objective.type: 'lmjax.load' is not a lmjax"),
        (
            "objective.type",
            "lmjax.models.bert.BertConfig",
            "is not a lmjax.objectives.base.Objective",
        ),
        ("objective.type", "lmjax.training.run_directory.os.system", "cannot import"),
        ("objective.max_predictions", 2**40, "config.objective.max_predictions: must lie in"),
        ("model.vocab_size", -1, "config.model.vocab_size: must not be negative"),
        ("model.vocab_size", "a", "config.model.vocab_size: expected int"),
        ("model.vocab_size", 10**12, "config.model.vocab_size: must lie in"),
        ("model.vocab_size", 2**24, "token/embedding' should be float32\\[16777216, 8\\]"),
        ("model.trunk", None, "config.model.trunk: expected a block"),
        ("model.trunk.layers", 10**6, "config.model.trunk.layers: must lie in"),
        ("model.trunk.layers", 900, "'.*' should be float32\\[900, .*the checkpoint has"),
        ("model.trunk.scan_layers", False, "the checkpoint has no '.*layer_0/"),
        (
            "model.trunk.hidden_size",
            10**6,
            "config.model.generator_size: .* gives no valid generator",
        ),
        ("model.trunk.hidden_size", 10**5, "'.*' should be float32\\[.*100000"),
        ("model.trunk.hidden_size", 10**7, "config.model.trunk.hidden_size: must lie in"),
        ("model.trunk.intermediate_size", 33, "'.*' should be float32"),
        ("model.max_length", 2**20, "'embeddings/position/embedding' should be float32"),
        ("model.generator_size", 1e-9, "config.model.generator_size: .* gives no valid generator"),
        (
            "model.share_embeddings",
            False,
            "the checkpoint has no 'discriminator/encoder/embeddings",
        ),
    ],
)
def test_a_malformed_run_is_one_clear_error(
    field: str,
    value: Any,
    message: str,
    run: tuple[pathlib.Path, Result],
    tmp_path: pathlib.Path,
) -> None:
    copy = changed(run[0], tmp_path, "config.json", field, value)
    if not message:
        lmjax.load(copy)
        return
    found = refusal(copy)
    assert re.search(message, found), found
    assert found.startswith(str(copy))


STRANGER = """
import pathlib
pathlib.Path("executed").touch()
from lmjax.objectives.rtd import ReplacedTokenDetection
class Own(ReplacedTokenDetection): pass
"""


def test_a_config_that_is_no_json_object_is_one_clear_error(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    copy = pathlib.Path(shutil.copytree(run[0], tmp_path / "run"))
    for text, message in (
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "no JSON"),
        ('{"model": ' + "1" * 5000 + "}", "no JSON"),
        (" " * (17 << 20), "17,825,792 bytes are too many for a config"),
    ):
        (copy / "config.json").write_text(text)
        assert message in refusal(copy)


def test_opening_a_run_executes_nothing_of_it(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside the run, and in a working directory that Python imports from.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "lmjax").mkdir()
    (tmp_path / "lmjax" / "stranger.py").write_text(STRANGER)
    for number, path in enumerate(
        ("stranger.Own", "antigravity.x", "this.s", "lmjaxer.Own", "builtins.object", "os.path")
    ):
        copy = changed(run[0], tmp_path / str(number), "config.json", "objective.type", path)
        package = path.split(".")[0]
        found = refusal(copy)
        assert f"config.objective.type: '{path}' is not of lmjax" in found
        assert f"allow_modules=['{package}']" in found
        assert f"--allow_modules={package}" in found
    copy = changed(
        run[0], tmp_path / "inner", "config.json", "objective.type", "lmjax.stranger.Own"
    )
    assert "cannot import 'lmjax.stranger'" in refusal(copy)
    assert not (tmp_path / "executed").exists()
    # Whoever trusts it says so; a package stands for all that is in it, and for nothing else.
    stranger = tmp_path / "0" / "copy"
    assert "is not of lmjax" in refusal(stranger, allow_modules=["strange"])
    opened = lmjax.load(stranger, allow_modules=["stranger"])
    assert (tmp_path / "executed").exists()
    assert isinstance(opened.network, Electra)
    assert "is not of lmjax" in refusal(stranger)


def test_programs_open_a_strangers_run_where_a_flag_says_so(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "stranger.py").write_text(STRANGER)
    copy = changed(run[0], tmp_path, "config.json", "objective.type", "stranger.Own")

    def program(name: str, *flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *flags],
            cwd=tmp_path,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    convert = "convert", f"--from={copy}", "--to=hf"
    for command in (convert, ("show_batch", f"--workdir={copy}", "--batch=0")):
        refused = program(*command)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert "--allow_modules=stranger" in line
        assert not (tmp_path / "executed").exists()
    done = program(*convert, "--allow_modules=stranger")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "executed").exists()


def test_what_another_run_names_is_not_what_a_config_names(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    own = "tests.objectives.outside.BlankedLM"  # a user may name it in a config
    copy = changed(run[0], tmp_path, "config.json", "objective.type", own)
    with pytest.raises(ConfigError, match=r"config\.init: .*'tests.* is not of lmjax"):
        adapted(adapting(copy, tmp_path))


def test_a_place_without_a_model_is_said_to_be_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read \(No such file"):
        lmjax.load(tmp_path / "nowhere")


def adapting(init: pathlib.Path, text: pathlib.Path) -> ConfigDict:
    """A config that goes on from `init` with a longer warmup and less dropout."""
    return ConfigDict(
        {
            "seed": 1,
            "init": str(init),
            "objective": {
                "type": "lmjax.objectives.rtd.ReplacedTokenDetection",
                "max_predictions": 4,
            },
            "model": {"trunk": {"dropout": 0.0}},
            "data": {
                "corpus": str(text),
                "tokenizer": {"path": ""},
                "examples": {"type": "lmjax.data.examples.ElectraPairs", "length": LENGTH},
            },
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
            "training": {"steps": 1, "batch_size": 8, "eval_batches": 1, "ema_decay": 0.5},
            "mesh": {"data": 1},
        }
    )


def test_pretraining_goes_on_from_a_run(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    path, before = run
    began_with = jax.device_get(lmjax.load(path).params)
    config, given = adapted(adapting(path, path.parent / "text.txt"))
    assert config.model.trunk.dropout == 0.0 and config.model.trunk.scan_layers
    assert config.model.generator_size == 0.5
    named = []

    def begin(fresh: Any) -> Any:
        params, random = put_in(fresh, given)
        named.extend(random)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), began_with)
        return params

    after = pretrain(config, tmp_path / "more", "", begin)
    assert named == []
    # One step at the rate of a warmup's first moves each number by little.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.02),
        jax.device_get(after.params),
        began_with,
    )
    # And what it leaves is a run like any.
    opened = lmjax.load(tmp_path / "more")
    assert opened.tokenizer is not None
    assert opened.tokenizer.fingerprint == before.tokenizer.fingerprint


def test_what_a_checkpoint_lacks_begins_at_random_if_it_is_a_head() -> None:
    given = Given(
        {"encoder": {"token": {"embedding": np.ones((3, 2))}, "norm": {"scale": np.ones(2)}}}, "m"
    )
    zeros = {
        "encoder": {"token": {"embedding": jnp.zeros((5, 2))}, "norm": {"scale": jnp.zeros(2)}},
        "output_bias": jnp.zeros(5),
    }
    params, random = put_in(zeros, given)
    assert random == ["output_bias"]
    np.testing.assert_array_equal(params["encoder"]["token"]["embedding"].sum(1), [2, 2, 2, 0, 0])
    other = {**zeros, "encoder": {**zeros["encoder"], "stack": {"kernel": jnp.zeros(1)}}}
    with pytest.raises(ConfigError, match=r"config\.init: 'm' has no 'encoder/stack/kernel'"):
        put_in(other, given)
    wide = {**zeros, "encoder": {**zeros["encoder"], "norm": {"scale": jnp.zeros(4)}}}
    with pytest.raises(ConfigError, match=r"'encoder/norm/scale' of 'm' has shape \[2\]"):
        put_in(wide, given)


def test_another_tokenizer_than_the_checkpoints_is_refused(
    run: tuple[pathlib.Path, Result], tmp_path: pathlib.Path
) -> None:
    config = adapting(run[0], tmp_path)
    config.data.tokenizer.path = "other.json"
    with pytest.raises(ConfigError, match=r"config\.data\.tokenizer\.path: 'other\.json' is not"):
        adapted(config)
    with pytest.raises(ConfigError, match=r"config\.init: .*nowhere"):
        adapted(adapting(tmp_path / "nowhere", tmp_path))
