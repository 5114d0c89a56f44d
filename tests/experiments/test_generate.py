"""The command: what it prints is what `lmjax.generate` gives; what is wrong is one line."""

import io
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

import lmjax
from experiments import generate
from lmjax.errors import ConfigError
from tests.generation import models

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place: pathlib.Path = tmp_path_factory.mktemp("generate") / "gpt"
    lmjax.save_huggingface(models.gpt(text=True), place)
    return place


def printed(capsys: pytest.CaptureFixture[str], **values: Any) -> str:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**values):
        generate.main()
    return capsys.readouterr().out


def test_one_prompt_is_shown_as_it_comes_and_several_as_json(
    directory: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.8, "seed": 2}
    expected = lmjax.generate(lmjax.load(directory), ["It is", "Why"], **settings)
    settings["model"] = [str(directory)]
    assert printed(capsys, prompt=["It is"], **settings) == f"It is{expected[0].text}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfWhy\r\n")))
    listed = printed(capsys, prompt=["It is"], prompts="-", jsonl=True, **settings)
    # Not splitlines: the texts are random bytes, and separators among them.
    made = [json.loads(line) for line in listed.removesuffix("\n").split("\n")]
    assert [line["prompt"] for line in made] == ["It is", "Why"]
    for line, text in zip(made, expected, strict=True):
        assert line["text"] == text.text and line["ended"] == text.ended
        assert line["token_ids"] == text.token_ids.tolist()
        assert line["log_probs"] == pytest.approx(text.log_probs.tolist(), abs=1e-4)
    several = printed(capsys, prompt=["It is"], num_return_sequences=2, **settings)
    assert several.startswith(f"--- 1.1\nIt is{expected[0].text}\n--- 1.2\nIt is")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "--model: missing"),
        ({"model": ["m", "n"]}, "--model: give one of them"),
        ({"model": ["m"]}, "--prompt: missing"),
        ({"model": ["m"], "prompts": "nowhere.txt"}, "--prompts: no such file 'nowhere.txt'"),
        ({"model": ["nowhere"], "prompt": ["a"]}, "nowhere/config.json: cannot be read"),
    ],
)
def test_what_is_missing_is_named(
    values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        printed(capsys, **values)


def test_bad_input_is_one_line() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "experiments.generate", "--model=m", "--top_k=many"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 2 and not found.stdout
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ") and "top_k" in line
