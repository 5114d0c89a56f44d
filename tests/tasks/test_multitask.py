"""Several tasks: what is drawn, whose head moves, and a run that continues exactly."""

import collections
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.errors import ConfigError
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.multitask import (
    Mixture,
    finetune_several,
    own_parameters,
    prepare_several,
    resting_heads,
)
from lmjax.tasks.plan import prepare
from lmjax.training.checkpoints import read_part
from lmjax.training.run_directory import read_metrics
from tests.tasks import small

CLASSES = {"type": "lmjax.tasks.classification.Classification", "length": small.LENGTH}
TAGS = {"type": "lmjax.tasks.tagging.Tagging", "length": small.LENGTH}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """Classes and tags, on a model that another run has left."""
    folder = tmp_path_factory.mktemp("several")
    classes = small.write_rows(folder / "classes.jsonl", small.labelled(48))
    tagged = [
        {"words": t.split(), "tags": ["B-A" if w[1] == "a" else "O" for w in t.split()]}
        for t in small.sentences(24, seed=4)
    ]
    tags = small.write_rows(folder / "tags.jsonl", tagged)
    first = small.config(CLASSES, {"train": classes, "validation": classes})
    first.training.epochs = 1
    from lmjax.tasks.finetuning import finetune

    finetune(prepare(first), first, folder / "first", "", seed=0)
    made = first.copy_and_resolve_references()
    made.init, made.compare_scratch, made.temperature = str(folder / "first"), False, 1.0
    made.training.epochs, made.optimizer.learning_rate = 3, 3e-3
    blocks = {"sentiment": (made.task, classes), "spans": (ConfigDict(TAGS), tags)}
    made.tasks = ConfigDict(
        {
            name: {"task": task.to_dict(), "data": {"train": path, "validation": path}}
            for name, (task, path) in blocks.items()
        }
    )
    del made.task
    del made.data
    return made


def test_tasks_are_drawn_by_size_and_temperature(config: ConfigDict) -> None:
    prepared = prepare_several(config)
    assert list(prepared) == ["sentiment", "spans"]
    collate = {name: Collator(one.task, 8) for name, one in prepared.items()}
    epochs = {
        name: Epochs(one.examples["train"], collate[name], 0) for name, one in prepared.items()
    }
    for temperature in (1.0, 3.0, 1e6):
        sizes = np.array([48.0, 24.0]) ** (1 / temperature)
        mixed = Mixture(epochs, temperature, 0)
        np.testing.assert_allclose(mixed.shares, sizes / sizes.sum())
    drawn = [_task_of(mixed.batch_at(i)) for i in range(2000)]
    assert drawn.count("spans") == pytest.approx(1000, abs=80)
    # A function of the seed and the index: whoever asks, in whatever order.
    again = Mixture(epochs, 1e6, 0)
    assert [_task_of(again.batch_at(i)) for i in reversed(range(1990, 2000))] == drawn[:1989:-1]
    other = Mixture(epochs, 1e6, 1)
    assert [_task_of(other.batch_at(i)) for i in range(50)] != drawn[:50]
    # Each task goes through its own epochs: after 6 batches all 48 rows were there.
    rows: collections.Counter[int] = collections.Counter()
    of_classes = [i for i, name in enumerate(drawn) if name == "sentiment"][:6]
    for i in of_classes:
        rows.update(np.asarray(mixed.batch_at(i)["row"]).tolist())
    assert rows == dict.fromkeys(range(48), 1)


def _task_of(batch: dict[str, Any]) -> str:
    (name,) = (key.removeprefix("of:") for key in batch if key.startswith("of:"))
    return name


def test_heads_of_other_tasks_rest() -> None:
    rng = np.random.default_rng(0)
    params = {
        "encoder": jnp.asarray(rng.normal(size=3)),
        "heads": {"a": {"w": jnp.ones(2)}, "b": {"w": jnp.ones(2)}},
    }
    optimizer = resting_heads(optax.adamw(0.1, weight_decay=0.1))
    state = optimizer.init(params)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, state = optimizer.update(gradient, state, params)
    assert all((np.asarray(u) != 0).all() for u in jax.tree.leaves(updates))
    gradient["heads"]["b"]["w"] = jnp.zeros(2)
    updates, after = optimizer.update(gradient, state, params)
    assert (np.asarray(updates["heads"]["b"]["w"]) == 0).all()
    assert (np.asarray(updates["heads"]["a"]["w"]) != 0).all()
    assert (np.asarray(updates["encoder"]) != 0).all()
    before, then = (s[0].mu["heads"]["b"]["w"] for s in (state, after))
    np.testing.assert_array_equal(before, then)
    assert not np.array_equal(state[0].mu["heads"]["a"]["w"], after[0].mu["heads"]["a"]["w"])


@pytest.mark.slow
def test_a_run_learns_all_tasks_and_continues_exactly(
    config: ConfigDict, tmp_path: pathlib.Path
) -> None:
    results = finetune_several(prepare_several(config), config, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    held_out = [m for m in lines if m["split"] == "validation"]
    for name in ("sentiment", "spans"):
        assert held_out[-1][f"{name}/loss"] < held_out[0][f"{name}/loss"]
        assert (tmp_path / "run" / name / "report.md").exists()
    model = lmjax.load(tmp_path / "run" / "spans" / "model")
    assert model.labels == ("O", "B-A")
    params = read_part(tmp_path / "run" / "checkpoints", "params")
    assert set(params["heads"]) == {"sentiment", "spans"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        own_parameters(params, "spans"),
        dict(model.params),
    )
    assert results["spans"].scores["span_f1"] >= 0
    for name, result in results.items():
        told = [{k: v for k, v in p.items() if k != "where"} for p in result.predictions]
        for found, before in zip(
            lmjax.load(tmp_path / "run" / name).predict(told), told, strict=True
        ):
            assert found["prediction"] == before["prediction"]
            assert found["confidence"] == pytest.approx(before["confidence"], abs=1e-5)
    with pytest.raises(ConfigError, match="a run of several tasks; open one of them"):
        lmjax.load(tmp_path / "run")

    evaluated: list[int] = []

    def interrupt(step: int, metrics: dict[str, float]) -> None:
        if "validation/spans/loss" in metrics:
            evaluated.append(step)
            if len(evaluated) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_several(prepare_several(config), config, tmp_path / "again", interrupt)
    again = finetune_several(prepare_several(config), config, tmp_path / "again", interrupt)
    assert len(evaluated) > 3
    assert again["spans"].predictions == results["spans"].predictions
    theirs = read_part(tmp_path / "again" / "checkpoints", "params")
    jax.tree.map(np.testing.assert_array_equal, params, theirs)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("temperature", 0.0, "config.temperature: must be positive"),
        ("init", "", "config.init: empty"),
        ("seeds", 2, "config.seeds: multi-task runs support neither several seeds"),
        ("tasks.spans.task.freeze", "trunk", "config.tasks.spans.task: multi-task runs"),
        ("tasks.spans.task.lenght", 3, "config.tasks.spans.task.lenght: unknown field"),
        ("tasks.spans.data.train", "none.jsonl", "config.tasks.spans.data.train"),
    ],
)
def test_what_cannot_work_is_refused(
    config: ConfigDict, path: str, value: Any, message: str
) -> None:
    changed = config.copy_and_resolve_references()
    *blocks, field = path.split(".")
    block = changed
    for name in blocks:
        block = block[name]
    with block.unlocked():
        block[field] = value
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        prepare_several(changed)
