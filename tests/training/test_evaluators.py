"""Evaluators from outside of the package: measured every so often, without changing the run."""

import math
import pathlib
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

import lmjax
from lmjax.errors import ConfigError
from lmjax.training.loop import pretrain
from lmjax.training.monitor import DivergedError
from lmjax.training.run_directory import read_metrics
from tests import runs
from tests.training import outside

STEPS = 24
PROBE = {"type": "tests.training.outside.TextLoss", "every": 7, "text": "abc def fgh"}

# `saved` reads checkpoints without saying where the arrays go.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


def config(text: pathlib.Path, **evaluators: Any) -> ConfigDict:
    """A GPT with dropout and a moving average."""
    made = runs.config(text)
    made["objective"] = {"type": "lmjax.objectives.causal.CausalLM"}
    made["model"] = {"trunk": made["model"]["trunk"] | {"dropout": 0.2}, "max_length": 16}
    made["data"]["examples"] = {"type": "lmjax.data.examples.Packed", "length": 16}
    made["training"] |= {"steps": STEPS, "eval_every": 10}
    if evaluators:
        made["evaluators"] = evaluators
    return ConfigDict(made)


def saved(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the last checkpoint by name."""
    directory = workdir / "checkpoints" / str(STEPS)
    state: dict[str, Any] = ocp.load_checkpointables(directory)["state"]
    keys = jax.dtypes.prng_key
    return {
        name: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, keys) else x)
        for name, x in state.items()
    }


def assert_same_state(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    mine, other = saved(ours), saved(theirs)
    assert mine.keys() == other.keys()
    for name, array in other.items():
        np.testing.assert_array_equal(mine[name], array, err_msg=name)


def lines(workdir: pathlib.Path, split: str) -> list[dict[str, Any]]:
    found = [line for line in read_metrics(workdir) if line["split"] == split]
    return [{name: x for name, x in line.items() if name != "time"} for line in found]


@pytest.fixture(scope="module")
def evaluated(text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    pretrain(config(text, probe=PROBE), workdir)
    return workdir


def test_an_evaluator_measures_and_does_not_change_the_run(
    text: pathlib.Path,
    evaluated: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pretrain(config(text), tmp_path / "plain")
    assert_same_state(evaluated, tmp_path / "plain")
    assert lines(evaluated, "validation") == lines(tmp_path / "plain", "validation")
    found = lines(evaluated, "evaluators")
    assert [line["step"] for line in found] == [0, 7, 14, 21, 24]
    assert set(found[0]) == {"step", "split", "probe/loss", "probe/tokens"}
    # It is given the tokenizer, and the moving average of the parameters.
    model = lmjax.load(evaluated)
    assert model.tokenizer is not None
    tokens = np.asarray(model.tokenizer.encode_batch([PROBE["text"]])[0])[None]
    assert found[-1]["probe/tokens"] == tokens.size
    log_p = jax.nn.log_softmax(model(tokens))[0, :-1]
    loss = -np.mean([row[token] for row, token in zip(log_p, tokens[0, 1:], strict=True)])
    assert found[-1]["probe/loss"] == pytest.approx(loss, rel=1e-4)
    # Its results are shown, and evaluators may come and go in a resumed run.
    capfd.readouterr()
    longer = config(text, probe={**PROBE, "every": 2}, other=PROBE)
    longer.training.steps = STEPS + 2
    pretrain(longer, shutil.copytree(evaluated, tmp_path / "longer"))
    assert "step 26/26  other/loss" in capfd.readouterr().err
    assert {"probe/loss", "other/loss"} < set(lines(tmp_path / "longer", "evaluators")[-1])


def test_an_interrupted_run_has_the_same_results(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config(text, probe=PROBE), tmp_path / "whole")
    monkeypatch.setattr(outside, "INTERRUPTED_STEPS", [14])
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(text, probe=PROBE), tmp_path / "run")
    monkeypatch.undo()
    pretrain(config(text, probe=PROBE), tmp_path / "run")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    for split in ("validation", "evaluators"):
        assert lines(tmp_path / "run", split) == lines(tmp_path / "whole", split)


@pytest.mark.slow
def test_a_killed_run_has_the_same_results(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    made = config(text, probe={**PROBE, "every": 1})
    child = runs.begin(made.to_dict(), tmp_path)
    runs.signal_after(child, tmp_path / "run" / "checkpoints" / "10", signal.SIGKILL)
    pretrain(made, tmp_path / "run")
    pretrain(made, tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    found = lines(tmp_path / "run", "evaluators")
    assert [line["step"] for line in found] == list(range(STEPS + 1))
    assert found == lines(tmp_path / "whole", "evaluators")


def test_a_result_that_is_not_finite_stops_the_run(
    text: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "NAN_STEPS", [14])
    message = "^step 14: evaluator result 'probe/loss' is nan. The last good checkpoint is .* 10"
    with pytest.raises(DivergedError, match=message):
        pretrain(config(text, probe=PROBE), tmp_path)
    assert [line["step"] for line in lines(tmp_path, "evaluators")] == [0, 7]
    assert all(math.isfinite(line["probe/loss"]) for line in lines(tmp_path, "evaluators"))


def test_a_result_must_be_numbers(text: pathlib.Path, tmp_path: pathlib.Path) -> None:
    words = {"type": "tests.training.outside.Words"}
    with pytest.raises(TypeError, match=r"config\.evaluators\.words: Words\.evaluate must return"):
        pretrain(config(text, words=words), tmp_path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "tests.training.outside.Absent"}, r"config\.evaluators\.probe\.type: module"),
        ({"type": "lmjax.objectives.causal.CausalLM"}, r"config\.evaluators\.probe\.type: .* no"),
        ({**PROBE, "evry": 3}, r"config\.evaluators\.probe\.evry: unknown field of TextLoss"),
        ({**PROBE, "every": -1}, r"config\.evaluators\.probe\.every: must not be negative"),
        ({**PROBE, "tokenizer": "x"}, r"config\.evaluators\.probe\.tokenizer: unknown field"),
        ({"type": PROBE["type"]}, r"config\.evaluators\.probe\.text: missing"),
        (3, r"config\.evaluators\.probe: expected a block"),
    ],
)
def test_what_cannot_work_is_refused(
    block: Any, message: str, text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(config(text, probe=block), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"config\.evaluators: name 'a/b' may have only"):
        pretrain(config(text, **{"a/b": PROBE}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
