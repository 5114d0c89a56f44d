"""A family from outside goes the whole way without a line changed in the package."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from ml_collections import ConfigDict

import lmjax
from lmjax.configuration import allowing
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.evaluation.minimal_pairs import Pair, judge
from lmjax.evaluation.perplexity import perplexity
from lmjax.evaluation.scoring import token_scores
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import prepare
from lmjax.training.loop import pretrain
from lmjax.training.plan import make_plan
from tests import runs
from tests.outside.conv_lm import ConvLM
from tests.tasks import small

MODEL = {
    "type": "tests.outside.conv_lm.ConvConfig",
    "trunk": {
        "layers": 2,
        "hidden_size": 32,
        "heads": 1,
        "intermediate_size": 32,
        "initial_std": 0.1,
    },
    "width": 3,
}


def config(text: pathlib.Path) -> ConfigDict:
    made = runs.config(text) | {
        "objective": {"type": "lmjax.objectives.causal.CausalLM"},
        "model": MODEL,
    }
    made["data"] |= {"examples": {"type": "lmjax.data.examples.Packed", "length": 16}}
    made["training"] |= {"steps": 60, "eval_every": 60, "checkpoint_every": 60}
    return ConfigDict(made)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pathlib.Path, Pretrained]]:
    place = tmp_path_factory.mktemp("conv")
    text = runs.write_text(place / "text.txt")
    result = pretrain(config(text), place / "run", "conv")
    last = [line for line in result.records if line["split"] == "validation"][-1]
    assert last["lm"] < 0.75 * last["unigram"]
    yield place / "run", lmjax.load(place / "run", allow_modules=["tests"])


def test_its_run_is_opened_where_its_module_is_allowed(
    opened: tuple[pathlib.Path, Pretrained],
) -> None:
    place, model = opened
    assert isinstance(model.network, ConvLM)
    with pytest.raises(ConfigError, match=r"allow_modules=\['tests'\]"):
        lmjax.load(place)


def test_it_scores_and_continues_texts(opened: tuple[pathlib.Path, Pretrained]) -> None:
    place, model = opened
    text = (place.parent / "text.txt").read_text().split("\n\n")[0]
    words = text.split()
    swapped = " ".join([words[1], words[0], *words[2:]])
    assert judge(model, [Pair(text, swapped)]).tolist() == [1.0]
    found = perplexity(model, [text])
    (logs,) = token_scores(model, [text])
    np.testing.assert_allclose(found.nats, -logs.sum(), rtol=1e-4)
    (made,) = lmjax.generate(model, " ".join(words[:4]), max_new_tokens=6, temperature=0.0)
    # Each next token is the likeliest of one reading of the whole.
    assert model.tokenizer is not None
    ids = [model.begin_id, *model.tokenizer.encode_batch([" ".join(words[:4])])[0]]
    whole = np.asarray(model(np.array([[*ids, *made.token_ids]])))[0]
    assert whole[len(ids) - 1 : -1].argmax(-1).tolist() == made.token_ids.tolist()
    both = lmjax.generate(model, [" ".join(words[:4]), words[0]], max_new_tokens=6, temperature=0.0)
    assert both[0].token_ids.tolist() == made.token_ids.tolist()  # padding changes nothing
    beams = lmjax.generate(model, words[0], max_new_tokens=4, num_beams=3)
    assert len(beams) == 1


def test_it_is_fine_tuned_and_opened_again(
    opened: tuple[pathlib.Path, Pretrained], tmp_path: pathlib.Path
) -> None:
    place, _ = opened
    rows = [
        {"text": f"{text} {word}", "label": word}
        for text, word in zip(small.sentences(64), ["bag", "fed"] * 32, strict=True)
    ]
    data = {n: small.write_rows(tmp_path / f"{n}.jsonl", rows) for n in ("train", "validation")}
    task = {"type": "lmjax.tasks.classification.Classification"}
    made = small.config(task, data)
    made.init, made.model, made.training.epochs = str(place), ConfigDict(MODEL), 4
    with allowing(["tests"]):
        result = finetune(prepare(made), made, tmp_path / "run", "", seed=0)
    assert result.scores["accuracy"] > 0.9
    assert "transformers has no class" in result.not_exported
    again = lmjax.load(tmp_path / "run", allow_modules=["tests"])
    told = [row["prediction"] for row in again.predict([row["text"] for row in rows])]
    assert told == [row["prediction"] for row in result.predictions]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("masked.MaskedLM", "Conv has no masked language model"),
        ("permuted.PermutedLM", "is not a lmjax.models.xlnet.XlnetConfig"),
    ],
)
def test_what_it_lacks_is_refused_by_name(
    objective: str, message: str, tmp_path: pathlib.Path
) -> None:
    made = config(runs.write_text(tmp_path / "text.txt"))
    with made.unlocked():
        made.objective = {"type": f"lmjax.objectives.{objective}"}
        if objective == "masked.MaskedLM":
            made.objective.sentence_prediction = False
    with pytest.raises(ConfigError, match=message):
        make_plan(made)


def test_what_transformers_lacks_is_refused(
    opened: tuple[pathlib.Path, Pretrained], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match="ConvLM: transformers has no class"):
        lmjax.save_huggingface(opened[1], tmp_path / "m")
