"""Configs on the command line: any field can be set; bad input ends in one line, exit code 2."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs.ablations import recipe
from experiments.command_line import open_config, split_overrides
from experiments.show_config import fields
from lmjax.configuration import build, comparable, filled, flattened
from lmjax.errors import ConfigError
from lmjax.training.plan import make_plan

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = "--config=configs/bert.py:tiny"


def shipped() -> list[str]:
    """FILE.py:SIZE of every config there is."""
    found = []
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.stem in ("__init__", "recipe"):
            continue
        name = str(path.relative_to(ROOT))
        file = importlib.import_module(name.removesuffix(".py").replace("/", "."))
        sizes = [
            getattr(file, n)
            for n in ("OBJECTIVES", "TEMPLATES", "HEADLINES", "SIZES")
            if hasattr(file, n)
        ]
        if path.stem == "adapt":
            sizes = [file.OBJECTIVES]
        if path.parent.name == "ablations":
            sizes = [recipe.SIZES]
        found += [f"{name}:{size}" for size in sizes[0]] if sizes else [name]
    return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.pretrain", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/bert.py:huge"], "--config: unknown size 'huge'"),
        (["--config=configs/none.py"], "--config: cannot read 'configs/none.py'"),
        (["--config.training.steps=3"], "config.training.steps"),
        ([TINY, "--config.training.stepz=3"], "config.training.stepz: unknown field"),
        ([TINY, "--config.training.steps=abc"], "config.training.steps: expected int, got 'abc'"),
        ([TINY, "--config.model.trunk.heads=3"], "config.model.trunk.heads: 3 does not divide"),
        ([TINY, "--config.data.examples.length=1024"], "config.data.examples.length: 1024"),
        ([TINY, "--config.data.corpus=missing.txt"], "config.data.corpus: no such file"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    found = run(*arguments, f"--workdir={workdir}")
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not found.stdout
    assert not workdir.exists()


def test_text_that_is_not_utf8_and_a_workdir_that_is_a_file(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes(b"caf\xe9 au lait\n")
    found = run(TINY, f"--config.data.corpus={text}", f"--workdir={tmp_path / 'run'}")
    assert found.returncode == 2
    assert "is not UTF-8 at byte 3" in found.stderr
    found = run(TINY, f"--workdir={text}")
    assert found.returncode == 2
    assert "is a file" in found.stderr
    assert text.read_bytes() == b"caf\xe9 au lait\n"


# Fields that no config file states, or few do.
OVERRIDES = {
    "configs": ["model.trunk.base_width", "optimizer.clip_norm", "training.accumulation"],
    "finetune": ["model.trunk.base_width", "optimizer.clip_norm", "training.accumulation"],
    "ablations": [
        "pretraining.model.trunk.base_width",
        "pretraining.optimizer.clip_norm",
        "pretraining.training.accumulation",
        "measures.classification.config.optimizer.clip_norm",
    ],
    "searches": [
        "pretraining.model.trunk.base_width",
        "pretraining.optimizer.clip_norm",
        "pretraining.training.accumulation",
    ],
    "prompting": ["template.shots", "data.train_rows"],
    "ngram": ["order"],
}


@pytest.mark.parametrize("config", shipped())
def test_fields_that_the_file_does_not_state_are_set(config: str) -> None:
    file = pathlib.PurePath(config.split(":")[0])
    names = OVERRIDES[file.stem if file.stem in OVERRIDES else file.parent.name]
    opened = open_config(str(ROOT / config), dict.fromkeys(names, "2"))
    resolved = flattened(comparable(opened.kind, opened.values, opened.values))
    for name in names:
        # An ablation's pretraining is resolved for each variant.
        block, _, rest = name.partition(".")
        ends = [n for n in resolved if n.split(".")[0] == block and n.endswith(rest)]
        assert ends and all(resolved[n] == 2 for n in ends), name
    if config.startswith(("configs/bert", "configs/gpt", "configs/xlnet", "configs/electra")):
        values = ConfigDict(opened.values)
        values.mesh = {"data": 1}
        plan = make_plan(values)
        assert plan.objective.model.trunk.base_width == plan.training.accumulation == 2
        assert plan.optimizer.clip_norm == 2.0
    for name in names:
        with pytest.raises(ConfigError, match=rf"config\.{name}x: unknown .*did you mean"):
            open_config(str(ROOT / config), {f"{name}x": "2"})


@pytest.mark.parametrize("config", sorted({name.split(":")[0] for name in shipped()}))
def test_every_field_can_be_set(config: str) -> None:
    opened = open_config(str(ROOT / config), {})
    shown = {name: value for name, value, source in fields(opened) if "missing" not in source}
    texts = {name: x if isinstance(x, str) else repr(x) for name, x in shown.items()}
    again = open_config(str(ROOT / config), texts)
    resolved = [comparable(opened.kind, one.values, opened.values) for one in (opened, again)]
    assert resolved[0] == resolved[1]
    assert len(shown) > 10


def test_values_are_read_as_their_fields_are_typed() -> None:
    config = str(ROOT / "configs/finetune/question_answering.py")

    def value(name: str, text: str) -> object:
        opened = open_config(config, {name: text})
        build(opened.kind, opened.values, "config")
        return flattened(opened.values).get(name)

    assert value("task.null_threshold", "None") is None
    assert value("task.null_threshold", "-3") == -3.0
    assert value("task.no_answer", "true") is True
    assert value("task.adapter.targets", "query,key") == ("query", "key")
    assert value("task.adapter.targets", "('query',)") == ("query",)
    assert value("data.test", "12") == "12"
    assert value("data.test.easy", "a.jsonl") == "a.jsonl"
    assert value("optimizer.learning_rate", "1e-4") == 1e-4
    assert value("optimizer.learning_rate", "1") == 1.0
    for name, text, message in (
        ("task.length", "12.5", "expected int"),
        ("optimizer.name", "sgd", "is not one of 'adamw'"),
        ("optimizer.b2", "1.0", r"must lie in \[0, 1\)"),
        ("task.no_answer", "perhaps", "expected bool"),
    ):
        with pytest.raises(ConfigError, match=rf"^config\.{name}: .*{message}"):
            value(name, text)


def test_a_type_on_the_command_line_brings_its_own_fields() -> None:
    config = str(ROOT / "configs/quickstart.py:gpt")
    opened = open_config(
        config,
        {
            "data.examples.short_probability": "0.2",
            "data.examples.type": "lmjax.data.examples.SegmentPairs",
        },
    )
    examples = filled(opened.kind, opened.values)["data"]["examples"]
    assert (examples["short_probability"], examples["duplicates"]) == (0.2, 10)
    with pytest.raises(ConfigError, match=r"config\.data\.examples\.short_probability: unknown"):
        open_config(config, {"data.examples.short_probability": "0.2"})
    with pytest.raises(ConfigError, match=r"config\.training\.clip_norm: .*optimizer\.clip_norm"):
        open_config(config, {"training.clip_norm": "1"})


def test_the_type_of_the_model_is_set_on_the_command_line() -> None:
    overrides = {"model.type": "lmjax.models.llama.LlamaConfig", "model.trunk.positions": "rotary"}
    opened = open_config(str(ROOT / "configs/gpt.py:tiny"), overrides)
    plan = make_plan(ConfigDict({**opened.values, "mesh": {"data": 1}}))
    assert type(plan.objective.model).__name__ == "LlamaConfig"
    with pytest.raises(ConfigError, match=r"config\.pretraining\.type"):
        open_config(
            str(ROOT / "configs/searches/optimizer.py"), {"pretraining.type": "lmjax.models"}
        )


def test_overrides_are_told_from_other_flags() -> None:
    rest, overrides = split_overrides(
        ["program", "--config=a.py", "--config.a.b=1=2", "-config.c", "--noconfig.d",
         "--config.e", "5", "--workdir", "x", "--config.a.b=3"]
    )  # fmt: skip
    assert rest == ["program", "--config=a.py", "--workdir", "x"]
    assert overrides == {"a.b": "3", "c": "true", "d": "false", "e": "5"}


def test_sources_of_values() -> None:
    opened = open_config(str(ROOT / "configs/bert.py:tiny"), {"optimizer.clip_norm": "2"})
    found = {name: (value, source) for name, value, source in fields(opened)}
    assert found["optimizer.clip_norm"] == (2.0, "command line")
    assert found["training.batch_size"] == (256, "config file")
    assert found["training.accumulation"] == (1, "default of TrainingConfig")
    assert found["model.trunk.base_width"] == (0, "default of TransformerConfig")
    assert found["objective.mask_rate"] == (0.15, "default of MaskedLM")
    assert list(found)[:3] == ["seed", "init", "objective.type"]
    prompting = fields(open_config(str(ROOT / "configs/prompting.py:classification"), {}))
    (missing,) = [(name, source) for name, _, source in prompting if "missing" in source]
    assert missing == ("data.train", "missing: RowsConfig needs it")
    ablation = fields(open_config(str(ROOT / "configs/ablations/bert_tasks.py:tiny"), {}))
    found = {name: (value, source) for name, value, source in ablation}
    assert found["pretraining.model.trunk.gated"] == (False, "default")
    assert found["pretraining.optimizer.learning_rate"] == (2e-3, "config file")
    assert "pretraining.model.segment_types" not in found  # BERT's, not GPT's


def test_show_config_prints_a_field_a_line() -> None:
    command = [sys.executable, "-m", "experiments.show_config", TINY, "--config.seed=3"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    lines = [line.split(None, 2) for line in found.stdout.splitlines()]
    assert ["config.seed", "3", "command line"] in lines
    assert ["config.model.trunk.layers", "2", "config file"] in lines
    assert len(lines) > 60


def test_importing_a_config_needs_neither_jax_nor_flags() -> None:
    files = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "configs").rglob("*.py")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in files]
    program = (
        "import importlib, json, sys, ml_collections\n"
        "from absl import flags\n"
        "before = set(flags.FLAGS)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps([sorted(set(flags.FLAGS) - before),"
        " [m for m in ('jax', 'flax', 'experiments') if m in sys.modules]]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [[], []]
