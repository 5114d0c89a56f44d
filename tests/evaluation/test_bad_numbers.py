"""No score is made of NaN, and no id reads a row that the token table does not have."""

import dataclasses
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.data.rows import Notes
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.evaluation.continuations import continuation_scores
from lmjax.evaluation.minimal_pairs import Pair, judge, judged
from lmjax.evaluation.perplexity import Perplexity, perplexity
from lmjax.evaluation.prompting import Questions, Template, answer
from lmjax.evaluation.scoring import methods_of, token_scores
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.models.electra import Electra, ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.tasks.embeddings import Embeddings
from lmjax.tasks.opened import Opened
from tests.words import SIZE, random_model, tokenizer, trunk

NETWORKS: dict[str, Any] = {
    "gpt": Gpt(GptConfig(trunk(norm="pre"), max_length=32, vocab_size=SIZE)),
    "bert": BertForPreTraining(BertConfig(trunk(), max_length=32, vocab_size=SIZE)),
    "xlnet": Xlnet(XlnetConfig(trunk(), vocab_size=SIZE)),
    "electra": Electra(
        ElectraConfig(
            trunk(activation="gelu"),
            embedding_size=8,
            generator_size=0.5,
            max_length=32,
            vocab_size=SIZE,
        )
    ),
}
# What is added to logits: a NaN there reaches no hidden state.
PLANTED = {
    "gpt": "encoder/embeddings/token/embedding",  # it has no bias; the row of a word never read
    "bert": "output_bias",
    "xlnet": "output_bias",
    "electra": "generator/output_bias",
}
GENERATIONS: dict[str, list[dict[str, Any]]] = {
    "gpt": [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "typical_p": 0.9, "min_p": 0.1},
        {"num_beams": 2},
        {"penalty_alpha": 0.5, "top_k": 3},
        {"choices": ("w7 w8", "w9")},
    ],
    "xlnet": [{}, {"temperature": 1.0}, {"num_beams": 2}],
    "bert": [{}, {"infill": "mask_predict"}, {"infill": "gibbs", "temperature": 1.0}],
    "electra": [{}, {"infill": "mask_predict"}],
}


def with_nan(model: Pretrained, path: str) -> Pretrained:
    """A copy with a NaN in the last row or entry of a parameter."""
    flat = flax.traverse_util.flatten_dict(model.params, sep="/")
    flat[path] = flat[path].at[-1].set(jnp.nan)
    return dataclasses.replace(model, params=flax.traverse_util.unflatten_dict(flat, sep="/"))


@pytest.fixture(scope="module", params=NETWORKS)
def damaged(request: pytest.FixtureRequest) -> tuple[str, Pretrained]:
    name = request.param
    return name, with_nan(random_model(NETWORKS[name]), PLANTED[name])


def methods(model: Pretrained) -> list[Any]:
    return [method for method in methods_of(model) if method != "discriminator"]


def test_scores_of_texts(damaged: tuple[str, Pretrained]) -> None:
    _, model = damaged
    for method in methods(model):
        with pytest.raises(NonFiniteError, match=r"scores of text 'w6 w7'.* not finite"):
            token_scores(model, ["w6 w7"], method)
        with pytest.raises(NonFiniteError):
            judge(model, [Pair("w6 w7", "w6 w8")], method)
        with pytest.raises(NonFiniteError):
            continuation_scores(model, [("w6", " w8")], method)


def test_prompting(damaged: tuple[str, Pretrained]) -> None:
    _, model = damaged
    template = Template(prompt="{q}", choices=("a", "b"))
    row = template.parse({"q": "w6", "a": "w7", "b": "w8", "label": 0})
    for method in methods(model):
        with pytest.raises(NonFiniteError):
            answer(model, Questions(template, [{**row, "where": "0"}], [], 0, Notes()), method)


def test_perplexity() -> None:
    model = with_nan(random_model(NETWORKS["gpt"]), PLANTED["gpt"])
    with pytest.raises(NonFiniteError, match="--data: scores in or near text"):
        perplexity(model, ["w6 w7 w8"])


def test_the_discriminator() -> None:
    model = random_model(NETWORKS["electra"])
    with pytest.raises(NonFiniteError):
        token_scores(with_nan(model, "discriminator/prediction/bias"), ["w6 w7"])


def test_generation(damaged: tuple[str, Pretrained]) -> None:
    name, model = damaged
    for settings in GENERATIONS[name]:
        with pytest.raises(NonFiniteError, match=r"generate: .* not finite"):
            lmjax.generate(model, "w6 w7", max_new_tokens=3, **settings)


@pytest.mark.parametrize("which", ["model", "draft"])
def test_speculative_generation(which: str) -> None:
    whole = random_model(NETWORKS["gpt"])
    broken = with_nan(whole, PLANTED["gpt"])
    model, draft = (broken, whole) if which == "model" else (whole, broken)
    with pytest.raises(NonFiniteError):
        lmjax.generate(model, "w6 w7", max_new_tokens=3, draft=draft)


def test_baselines() -> None:
    with pytest.raises(NonFiniteError):
        judged(np.array([-1.0, np.nan]))
    with pytest.raises(NonFiniteError):
        judged(np.array([-1.0, -np.inf]))


def embedding(model: Pretrained, task: Embeddings) -> Opened:
    return Opened(task.network, model.params, model.tokenizer, task=task)


def test_embeddings(embeds: Embeddings) -> None:
    model = random_model(embeds.network)
    assert np.isfinite(embedding(model, embeds).embed(["w6 w7", "w8"])).all()
    with pytest.raises(NonFiniteError, match="a row: first: 16 of 16 numbers"):
        broken = with_nan(model, "encoder/embeddings/embedding_norm/bias")
        embedding(broken, embeds).embed(["w6 w7"])


def test_a_page_that_is_one_word_has_a_perplexity_without_bound() -> None:
    found = Perplexity(nats=5000.0, tokens=1000, words=1, bytes=3000, unknown=0)
    assert found.per_word == np.inf and found.per_token == pytest.approx(np.exp(5))


# Ids without a row.


def end_only() -> Tokenizer:
    """Bytes and `<|endoftext|>`, as GPT-2's: tokens for the other roles come behind its last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({"<|endoftext|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, [])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretrained, Any]:
    """A directory whose table has as many rows as its tokenizer tokens; and torch's model."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    place = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(place)
    (place / "tokenizer.json").write_text(end_only().to_json(0))
    return lmjax.load(place), theirs


TEXTS = ["the cat sat", "a", "the cats that sat there sit"]


def torch_scores(theirs: Any, model: Pretrained, text: str) -> np.ndarray:
    import torch

    assert model.tokenizer is not None
    ids = [0, *model.tokenizer.encode_batch([text])[0].tolist()]
    with torch.no_grad():
        logs = torch.log_softmax(theirs(torch.tensor([ids])).logits[0], -1)
    return np.array([float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)])


def test_padding_reads_no_row_that_is_not_there(published: tuple[Pretrained, Any]) -> None:
    model, theirs = published
    assert model.tokenizer is not None and model.tokenizer.roles["pad"] >= model.config.vocab_size
    expected = [torch_scores(theirs, model, text) for text in TEXTS]
    for found, wanted in zip(token_scores(model, TEXTS), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)
    pairs = [Pair(TEXTS[0], TEXTS[2]), Pair(TEXTS[1], TEXTS[0])]
    wanted = judged(np.array([expected[i].sum() for i in (0, 2, 1, 0)]))
    np.testing.assert_array_equal(judge(model, pairs), wanted)
    whole = perplexity(model, TEXTS)
    assert whole.nats == pytest.approx(-sum(e.sum() for e in expected), rel=1e-4)
    (scores, other), _ = continuation_scores(model, [("the", " cat sat"), ("a cat", " is")])
    np.testing.assert_allclose(scores.logs, expected[0][-8:], atol=2e-4)
    assert len(other.logs) == 3
    both = lmjax.generate(model, ["the cat", "a"], max_new_tokens=4)
    for text, alone in zip(both, ("the cat", "a"), strict=True):
        (one,) = lmjax.generate(model, alone, max_new_tokens=4)
        assert text.token_ids.tolist() == one.token_ids.tolist()


def test_a_batch_may_be_padded_with_any_id(published: tuple[Pretrained, Any]) -> None:
    model, _ = published
    tokens = np.array([[0, 5, 6, 300, -1]])
    real = np.array([[True, True, True, False, False]])
    found = model(tokens, real=real)[:, :3]
    np.testing.assert_allclose(found, model(tokens[:, :3]), atol=1e-5)
    with pytest.raises(ValueError, match="ids from -1 to 300"):
        model(tokens)


@pytest.fixture(scope="module")
def grown() -> Pretrained:
    """A model whose tokenizer got the word 'foobarium' that its table has no row for."""
    model = random_model(NETWORKS["gpt"])
    assert model.tokenizer is not None
    inner = tokenizers.Tokenizer.from_str(model.tokenizer.to_json(SIZE))
    inner.add_tokens(["foobarium"])
    return dataclasses.replace(model, tokenizer=Tokenizer(inner))


@pytest.fixture(scope="module")
def embeds() -> Embeddings:
    config = BertConfig(trunk(), max_length=32, vocab_size=SIZE)
    return Embeddings(model=config, vocabulary=tokenizer().vocabulary(np.zeros(SIZE)), length=32)


def test_a_text_with_a_token_without_a_row_is_refused_by_name(
    grown: Pretrained, embeds: Embeddings
) -> None:
    text, template = "w6 foobarium w7", Template(prompt="{q}", choices=("a", "b"))
    row = template.parse({"q": "w6", "a": "foobarium", "b": "w8", "label": 0})
    asked = Questions(template, [{**row, "where": "0"}], [], 0, Notes())
    pooled = dataclasses.replace(random_model(embeds.network), tokenizer=grown.tokenizer)
    uses: list[Any] = [
        lambda: token_scores(grown, [text]),
        lambda: judge(grown, [Pair(text, "w6")]),
        lambda: continuation_scores(grown, [("w6", " foobarium")]),
        lambda: perplexity(grown, ["w6 w7", text]),
        lambda: answer(grown, asked),
        lambda: lmjax.generate(grown, text),
        lambda: lmjax.generate(grown, "w6", choices=("foobarium", "w7")),
        lambda: embedding(pooled, embeds).embed([text]),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match=r"id 24 \('foobarium'\) is outside of the model's"):
            use()


def test_a_special_token_without_a_row_is_refused_by_its_role() -> None:
    model = random_model(BertForPreTraining(BertConfig(trunk(), max_length=32, vocab_size=SIZE)))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOD]"] + [f"w{i}" for i in range(5, SIZE)]
    inner = tokenizers.Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    without = dataclasses.replace(model, tokenizer=Tokenizer(inner))
    uses: list[Any] = [
        lambda: token_scores(without, ["w6"]),
        lambda: lmjax.generate(without, "w6"),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="it has no mask token: id 24 is outside"):
            use()


def test_what_rules_out_every_token_is_an_error() -> None:
    model = random_model(NETWORKS["gpt"])
    for settings in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        with pytest.raises(ConfigError, match="rule out every token"):
            lmjax.generate(
                model,
                [[6, 7]],
                max_new_tokens=29,
                no_repeat_ngram_size=1,
                ignore_eos=True,
                **settings,
            )
