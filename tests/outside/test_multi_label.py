"""A task from outside with a head of its own is trained, saved and opened again."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lmjax
from lmjax.errors import ConfigError
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import prepare
from tests.outside.multi_label import LargestHead, MultiLabel
from tests.tasks import small

TASK = {"type": "tests.outside.multi_label.MultiLabel"}
MARKS = {"bak": "no", "dol": "yes", "fim": "maybe"}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts with some of three words, each of which stands for a label."""
    rng = np.random.default_rng(seed)
    made = []
    for text in small.sentences(count, seed, words=(2, 6)):
        words = [word for word in text.split() if word not in MARKS]
        chosen = [word for word in MARKS if rng.random() < 0.5]
        mixed = " ".join(rng.permutation([*words, *chosen])) or "gan"
        made.append({"text": mixed, "tags": [MARKS[word] for word in chosen]})
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("rows")
    return {
        split: small.write_rows(place / f"{split}.jsonl", rows(96, seed))
        for seed, split in enumerate(("train", "validation"))
    }


@pytest.mark.parametrize("family", ["xlnet"])
def test_a_head_of_its_own_is_trained_saved_and_opened(
    family: str, data: dict[str, str], tmp_path: pathlib.Path
) -> None:
    made = small.config(TASK, data, family)
    made.training.epochs = 8
    prepared = prepare(made)
    result = finetune(prepared, made, tmp_path / "run", "", seed=0)
    assert result.scores["exact"] > prepared.baselines["validation"]["none"]["exact"] + 0.2
    head = json.loads((tmp_path / "run" / "network.json").read_text())["head"]
    assert head == {"type": "tests.outside.multi_label.LargestHead", "classes": 3}
    with pytest.raises(ConfigError, match=r"allow_modules=\['tests'\]"):
        lmjax.load(tmp_path / "run")
    opened = lmjax.load(tmp_path / "run", allow_modules=["tests"])
    assert isinstance(opened.network.head, LargestHead)  # type: ignore[attr-defined]
    texts = [row["text"] for row in result.predictions]
    told = [row["prediction"] for row in opened.predict(texts)]
    assert told == [row["prediction"] for row in result.predictions]


def test_an_unknown_head_is_refused(data: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MultiLabel, "network")
    with pytest.raises(ConfigError, match=r"an unknown head 'multi_label' .*network"):
        prepare(small.config(TASK, data))
