"""Multi-token prediction: each head is a shifted causal LM, and only the loss uses the others."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.llama import LlamaConfig
from lmjax.nn.dropout import Seeds
from lmjax.objectives.base import apply
from lmjax.objectives.causal import CausalLM
from lmjax.objectives.multi_token import MultiTokenLM
from lmjax.training.plan import make_objective
from tests import tiny

PRE = dataclasses.replace(tiny.TRUNK, norm="pre", layers=2, initial_std=0.3)
FORMS: dict[str, GptConfig] = {
    "GPT": GptConfig(PRE, max_length=tiny.LENGTH, vocab_size=tiny.SIZE),
    "one block": GptConfig(
        dataclasses.replace(PRE, layers=1, norm="post"),
        max_length=tiny.LENGTH,
        vocab_size=tiny.SIZE,
    ),
    "scanned Llama": LlamaConfig(
        dataclasses.replace(
            PRE,
            positions="rotary",
            normalization="rms_norm",
            gated=True,
            biases="none",
            scan_layers=True,
            remat="nothing_saveable",
        ),
        max_length=tiny.LENGTH,
        tie_embeddings=False,
        vocab_size=tiny.SIZE,
    ),
}


def objective(model: GptConfig, heads: int = 3, **settings: Any) -> MultiTokenLM:
    return MultiTokenLM(
        vocabulary=tiny.VOCABULARY, model=model, future_tokens=heads, z_loss=1e-2, **settings
    )


def text() -> Any:
    """Documents of 9, 5 and 2 tokens in most rows; the last is shorter than the heads reach."""
    batch = tiny.batch("gpt", 0, rows=3)
    batch["segment_ids"][1:] = np.repeat([1, 2, 3], [9, 5, 2])
    return jax.tree.map(jnp.asarray, batch)


def with_head(params: Any, model: GptConfig, head: int) -> Any:
    """Parameters of a plain decoder whose last block is this head."""
    own = {name: block for name, block in params.items() if not name.startswith("further")}
    if head == 1:
        return own
    blocks = dict(own["encoder"]["stack"]["blocks"])
    further = params[f"further_heads_{head - 2}"]
    if model.trunk.scan_layers:
        blocks["layers"] = jax.tree.map(
            lambda stacked, x: stacked.at[-1].set(x), blocks["layers"], further
        )
    else:
        blocks[f"layer_{model.trunk.layers - 1}"] = further
    stack = {**own["encoder"]["stack"], "blocks": blocks}
    return {**own, "encoder": {**own["encoder"], "stack": stack}}


@pytest.mark.parametrize(("form", "heads"), [("GPT", 3), ("one block", 2), ("scanned Llama", 2)])
def test_each_head_is_a_shifted_causal_lm(form: str, heads: int) -> None:
    """Loss and gradient, against a plain decoder for each head and a loop over the targets."""
    model, batch = FORMS[form], text()
    made, plain = objective(model, heads), Gpt(model)
    params = jax.jit(made.init)(jax.random.key(0), batch)
    documents = np.asarray(batch["segment_ids"])
    targets: dict[int, list[tuple[int, int]]] = {}
    for ahead in range(1, heads + 1):
        targets[ahead] = [
            (row, t)
            for row in range(3)
            for t in range(tiny.LENGTH - ahead)
            if documents[row, t] == documents[row, t + ahead] > 0
        ]

    def loops(params: Any) -> tuple[jax.Array, Any]:
        total, sums = jnp.float32(0), {}
        for ahead, places in targets.items():
            row, t = np.array(places).T
            own = with_head(params, model, ahead)
            logits = apply(plain, own, *made.inputs(batch))[row, t]
            nll = -jax.nn.log_softmax(logits)[np.arange(len(t)), batch["tokens"][row, t + ahead]]
            log_z = jax.nn.logsumexp(logits, axis=-1)
            suffix = "" if ahead == 1 else f"_{ahead}"
            sums[f"lm{suffix}"] = nll.sum(), jnp.float32(len(t))
            sums[f"z_loss{suffix}"] = (log_z**2).sum(), jnp.float32(len(t))
            total += nll.mean() + 1e-2 * (log_z**2).mean()
        return total, sums

    def loss(params: Any) -> tuple[jax.Array, Any]:
        scored = made.loss(params, batch, None, None)
        weights = made.weights
        terms = scored.terms.items()
        return sum(weights.get(n, 1.0) * s / c for n, (s, c) in terms), scored.terms

    (expected, sums), gradient = jax.jit(jax.value_and_grad(loops, has_aux=True))(params)
    (found, terms), own_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert terms.keys() == sums.keys() and len(terms) == 2 * heads
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), terms, sums)
    for x, y in zip(*map(jax.tree.leaves, (own_gradient, gradient)), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * float(abs(y).max()) + 1e-7)


def test_head_1_is_the_causal_lm() -> None:
    model, batch = FORMS["GPT"], text()
    several, causal = objective(model), CausalLM(vocabulary=tiny.VOCABULARY, model=model)
    params = jax.jit(several.init)(jax.random.key(0), batch)
    found, one, plain, chunks = jax.jit(
        lambda p: [
            made.loss(p, batch, None, None)
            for made in (several, objective(model, 1), causal, objective(model, loss_chunk=5))
        ]
    )(params)
    for name in ("lm", "lm_accuracy", "unigram"):
        for scored in (found, one):
            both = ({**s.terms, **s.metrics}[name] for s in (scored, plain))
            np.testing.assert_allclose(*both, rtol=1e-6)
    assert one.terms.keys() == {"lm", "z_loss"}
    assert found.metrics.keys() == {"lm_accuracy", "lm_2_accuracy", "lm_3_accuracy", "unigram"}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), chunks, found)
    assert several.headline == "lm" and several.scores_every_token


def test_heads_draw_dropout_of_their_own() -> None:
    model, batch = FORMS["GPT"], text()
    made = objective(dataclasses.replace(model, trunk=dataclasses.replace(PRE, dropout=0.5)))
    params = jax.jit(made.init)(jax.random.key(0), batch)
    # The same parameters and the same input: only dropout tells the heads apart.
    params["further_heads_1"] = params["further_heads_0"]
    (inputs,) = made.inputs(batch)
    trunk = jax.random.normal(jax.random.key(1), (*batch["tokens"].shape, 16))
    keys = jax.random.split(jax.random.key(2), 3)
    seeds = Seeds.of(keys, jax.random.key(3))
    second, third, again = jax.jit(
        lambda: [
            apply(made.network, params, trunk, inputs, ahead, seeds, method="further")
            for ahead in (2, 3, 2)
        ]
    )()
    assert (second == again).all() and (second != third).any(-1).all()


def test_generation_scores_and_export_use_head_1(tmp_path: pathlib.Path) -> None:
    model = FORMS["scanned Llama"]
    made = objective(model)
    params = jax.jit(made.init)(jax.random.key(0), text())
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    several = Pretrained(made.network, params, None, (), ids)
    plain = Pretrained(Gpt(model), with_head(params, model, 1), None, (), ids)
    tokens = np.asarray(text()["tokens"])
    np.testing.assert_array_equal(several(tokens), plain(tokens))
    np.testing.assert_array_equal(several.hidden_states(tokens), plain.hidden_states(tokens))
    settings: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True}
    one, other = (lmjax.generate(m, [[7, 8, 9]], **settings)[0] for m in (several, plain))
    np.testing.assert_array_equal(one.token_ids, other.token_ids)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    lmjax.save_huggingface(several, tmp_path / "several")
    again = lmjax.load(tmp_path / "several")
    np.testing.assert_allclose(again(tokens), plain(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ({}, "bert.BertConfig", r"config\.model\.type: .*BertConfig.* is not a .*GptConfig"),
        ({"future_tokens": 0}, "gpt.GptConfig", r"config\.objective\.future_tokens: must be at"),
    ],
)
def test_what_cannot_be_is_refused(objective: Any, model: str, message: str) -> None:
    block = {"type": f"lmjax.models.{model}", "trunk": dataclasses.asdict(PRE)}
    kind = {"type": "lmjax.objectives.multi_token.MultiTokenLM", **objective}
    with pytest.raises(ConfigError, match=message):
        make_objective(kind, block, tiny.SIZE)


def test_rows_must_be_longer_than_the_heads_reach() -> None:
    made = objective(FORMS["GPT"], 4)
    made.check_length(5)
    with pytest.raises(ConfigError, match=r"config\.objective\.future_tokens: rows of 4 tokens"):
        made.check_length(4)
