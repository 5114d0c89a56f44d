"""Seeds side by side are the same seeds apart, whatever interrupts them."""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

import lmjax
from lmjax.errors import ConfigError
from lmjax.training import loop, program
from lmjax.training import together as together_module
from lmjax.training.checkpoints import Checkpoints, Retention
from lmjax.training.loop import DivergedError, pretrain
from lmjax.training.preemption import PreemptedError, Preemption
from lmjax.training.program import Program
from lmjax.training.reporting import read_metrics
from lmjax.training.together import Programs, pretrain_together
from tests import runs

SEEDS, STEPS = (3, 4), 8
CLOSE = {"rel": 1e-5, "abs": 1e-5}
EXACT = {"rel": 0.0, "abs": 0.0}

# `saved` reads checkpoints without saying where the arrays go.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

Runs = Mapping[int, pathlib.Path]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return runs.write_text(tmp_path_factory.mktemp("text") / "text.txt")


def config(name: str, text: pathlib.Path) -> ConfigDict:
    """XLNet with memory and a moving average, or BERT; both with dropout."""
    made = runs.config(text)
    if name == "bert":
        made["objective"] = {"type": "lmjax.objectives.masked.MaskedLM", "max_predictions": 4}
        made["model"] = {"trunk": made["model"]["trunk"] | {"dropout": 0.3}, "max_length": 16}
        made["data"]["examples"] = {"type": "lmjax.data.examples.SegmentPairs", "length": 16}
        made["training"]["ema_decay"] = 0.0
    assert made["model"]["trunk"].get("dropout", 0.1) > 0
    made["training"] |= {
        "steps": STEPS,
        "log_every": 2,
        "eval_every": 4,
        "checkpoint_every": 4,
    }
    return ConfigDict(made)


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """The runs of an objective share its compiled functions."""
    made: dict[type, Program] = {}

    def shared(objective: Any, *rest: Any) -> Program:
        if type(objective) not in made:
            made[type(objective)] = Program(objective, *rest)
        return made[type(objective)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Program", shared)
        patch.setattr(together_module, "Programs", functools.cache(Programs))
        yield


def places(at: pathlib.Path, *seeds: int) -> dict[int, pathlib.Path]:
    return {seed: at / f"seed{seed}" for seed in seeds or SEEDS}


@pytest.fixture(scope="module")
def apart(text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    """The same seeds as runs of their own."""
    found = {}
    for name in ("bert", "xlnet"):
        found[name] = places(tmp_path_factory.mktemp(f"apart-{name}"))
        for seed, place in found[name].items():
            own = config(name, text)
            own.seed = seed
            pretrain(own, place, name)
    return found


@pytest.fixture(scope="module")
def together(text: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    found = {}
    for name in ("bert", "xlnet"):
        found[name] = places(tmp_path_factory.mktemp(f"together-{name}"))
        pretrain_together(config(name, text), found[name], name)
    return found


def saved(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of the last checkpoint under their names, and its place in the data."""
    directory = workdir / "checkpoints" / str(STEPS)
    state: dict[str, Any] = ocp.load_checkpointables(directory)["state"]
    with Checkpoints(workdir / "checkpoints", keep=Retention(99)) as checkpoints:
        shapes = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
        data = checkpoints.restore(None, shapes, partial=True)[1]
    return {
        name: np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for name, x in state.items()
    }, data


def log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    clock = ("time", "tokens_per_second", "flops_per_second")
    lines = read_metrics(workdir)
    return [{name: x for name, x in line.items() if name not in clock} for line in lines]


def assert_same_run(ours: pathlib.Path, theirs: pathlib.Path, **tolerance: float) -> None:
    """Every number of the last checkpoint, its place in the data, and what was logged."""
    (mine, my_place), (other, other_place) = saved(ours), saved(theirs)
    assert my_place == other_place
    assert mine.keys() == other.keys()
    for name, array in other.items():
        np.testing.assert_allclose(
            mine[name], array, tolerance["rel"], tolerance["abs"], err_msg=name
        )
    for line, wanted in zip(log(ours), log(theirs), strict=True):
        assert line.pop("split") == wanted.pop("split")
        assert line == pytest.approx(wanted, **tolerance)


@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_seeds_together_are_the_same_seeds_apart(
    name: str, apart: dict[str, Runs], together: dict[str, Runs]
) -> None:
    for seed in SEEDS:
        assert_same_run(together[name][seed], apart[name][seed], **CLOSE)
    one, other = (saved(together[name][seed])[0] for seed in SEEDS)
    kernels = [name for name in one if name.startswith("params.") and name.endswith("kernel")]
    assert all(np.abs(one[name] - other[name]).max() > 0.1 for name in kernels)


def files(workdir: pathlib.Path) -> set[str]:
    """What is there; the names that orbax and TensorBoard draw by themselves left out."""
    found = {path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file()}
    return {str(path) for path in found if len(path.parts) < 3 and "tfevents" not in path.name}


def test_a_directory_is_that_of_any_run(
    text: pathlib.Path, apart: dict[str, Runs], together: dict[str, Runs]
) -> None:
    for seed in SEEDS:
        place, other = together["bert"][seed], apart["bert"][seed]
        assert files(place) == files(other)
        assert (place / "config.json").read_text() == (other / "config.json").read_text()
        assert (place / "tokenizer.json").read_text() == (other / "tokenizer.json").read_text()
        steps = [{p.name for p in (at / "checkpoints").iterdir()} for at in (place, other)]
        assert steps[0] == steps[1] == {"4", "8"}
        own = config("bert", text)
        own.seed = seed
        before = log(place)
        result = pretrain(own, place, "bert")  # which sees that it is finished
        assert log(place) == before
        jax.tree.map(np.testing.assert_array_equal, lmjax.load(place).params, result.params)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, seed: int) -> None:
    """The program ends where this seed takes note of this step."""
    note = loop.Run.note

    def interrupted(self: loop.Run, at: int, metrics: Any) -> None:
        note(self, at, metrics)
        if (at, self.seed) == (step, seed):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Run, "note", interrupted)


def test_interrupted_seeds_are_the_same_bit_for_bit(
    text: pathlib.Path,
    together: dict[str, Runs],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7, SEEDS[1])
        with pytest.raises(KeyboardInterrupt):
            pretrain_together(config("bert", text), places(tmp_path), "bert")
    assert sorted(p.name for p in tmp_path.glob("*/checkpoints/*")) == ["4", "4"]
    pretrain_together(config("bert", text), places(tmp_path), "bert")
    for seed, place in places(tmp_path).items():
        assert_same_run(place, together["bert"][seed], **EXACT)


def test_seeds_that_stand_apart_go_on_apart(
    text: pathlib.Path,
    together: dict[str, Runs],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_up = loop.Run.look_up

    def interrupted(self: loop.Run, step: int, *rest: Any) -> None:
        if (step, self.seed) == (4, SEEDS[1]):
            raise KeyboardInterrupt  # the other seed has just been saved
        look_up(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "look_up", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain_together(config("bert", text), places(tmp_path), "bert")
    assert [p.parts[-3] for p in tmp_path.glob("*/checkpoints/*")] == [f"seed{SEEDS[0]}"]
    pretrain_together(config("bert", text), places(tmp_path), "bert")
    for seed, place in places(tmp_path).items():
        assert_same_run(place, together["bert"][seed], **CLOSE)


def test_seeds_told_to_stop_are_all_saved_where_they_are(
    text: pathlib.Path,
    together: dict[str, Runs],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "requested", lambda self, step: step == 5)
        with pytest.raises(PreemptedError, match=r"step 5: .*seed3, .*seed4, the same command"):
            pretrain_together(config("bert", text), places(tmp_path), "bert")
    assert sorted(p.name for p in tmp_path.glob("*/checkpoints/*")) == ["4", "4", "5", "5"]
    pretrain_together(config("bert", text), places(tmp_path), "bert")
    for seed, place in places(tmp_path).items():
        mine, theirs = saved(place)[0], saved(together["bert"][seed])[0]
        for name, array in theirs.items():
            np.testing.assert_array_equal(mine[name], array, err_msg=name)


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    found = [*workdir.glob("checkpoints/**/*"), workdir / "metrics.jsonl"]
    return {str(path): path.read_bytes() for path in found if path.is_file()}


def test_what_is_finished_is_left_alone_and_a_new_seed_trains(
    text: pathlib.Path, together: dict[str, Runs], tmp_path: pathlib.Path
) -> None:
    workdirs = together["bert"] | places(tmp_path, 5)
    before = [contents(together["bert"][seed]) for seed in SEEDS]
    pretrain_together(config("bert", text), workdirs, "bert")
    assert [contents(together["bert"][seed]) for seed in SEEDS] == before
    assert log(workdirs[5])[-1]["step"] == STEPS


def test_a_seed_that_diverges_is_named_and_hurts_no_other(
    text: pathlib.Path,
    together: dict[str, Runs],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = program.make_train_step
    its_key = jax.random.key_data(jax.random.split(jax.random.key(SEEDS[1]))[1])

    def poisoned(*arguments: Any) -> Any:
        step = make(*arguments)

        def run(state: Any, batch: Any) -> Any:
            bad = (jax.random.key_data(state.key) == its_key).all() & (state.step == 5)
            params = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), state.params)
            return step(state.replace(params=params), batch)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(program, "make_train_step", poisoned)
        patch.setattr(loop, "Program", Program)
        with pytest.raises(DivergedError, match=r"^step 6: seed 4: the loss term '\w+' is nan"):
            pretrain_together(config("bert", text), places(tmp_path), "bert")
    assert sorted(p.name for p in tmp_path.glob("*/checkpoints/*")) == ["4", "4"]
    pretrain_together(config("bert", text), places(tmp_path, SEEDS[0]), "bert")
    good = places(tmp_path)[SEEDS[0]]
    assert_same_run(good, together["bert"][SEEDS[0]], **CLOSE)


def test_what_cannot_work_is_refused_before_anything_is_written(
    text: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    several = config("bert", text)
    several.mesh.data = 2
    with pytest.raises(ConfigError, match=r"config\.mesh: 2 devices; seeds train together on one"):
        pretrain_together(several, places(tmp_path), "bert")
    with pytest.raises(ConfigError, match="workdirs: empty"):
        pretrain_together(config("bert", text), {}, "bert")
    with pytest.raises(ConfigError, match=r"config\.seed"):
        pretrain_together(config("bert", text), places(tmp_path, 0, -1), "bert")
    assert not list(tmp_path.iterdir())
