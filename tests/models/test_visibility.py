"""Who sees whom, by perturbation: another token must change what may see it, and nothing else."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models.bert import BertConfig, BertEncoder
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.network import Network, TextInputs
from lmjax.nn.masks import causal, padding, same_document
from tests import tiny

LENGTH = 8
TOKENS = jnp.asarray(np.random.default_rng(0).integers(6, tiny.SIZE - 1, (1, LENGTH)))
# Two documents and padding, positions counted in each.
DOCUMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0]])


def influence(outputs: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """[i, j]: the output at i changes when token j does."""
    outputs = jax.jit(outputs)
    before = np.asarray(outputs(TOKENS))[0]
    columns = [
        (np.asarray(outputs(TOKENS.at[0, j].add(1)))[0] != before).any(-1) for j in range(LENGTH)
    ]
    return np.stack(columns, axis=1)


def seen_by(model: Network, mask: jax.Array, positions: jax.Array) -> np.ndarray:
    def inputs(tokens: jax.Array) -> TextInputs:
        return tiny.text_inputs(tokens, mask, positions=positions)

    variables = model.init(jax.random.key(0), inputs(TOKENS))
    return influence(lambda tokens: jnp.asarray(model.apply(variables, inputs(tokens))))


def gpt(mask: jax.Array, positions: jax.Array) -> np.ndarray:
    config = GptConfig(
        dataclasses.replace(tiny.TRUNK, layers=2, norm="pre"),
        max_length=LENGTH,
        vocab_size=tiny.SIZE,
    )
    model = Gpt(config)
    return seen_by(model, mask, positions)


def bert(mask: jax.Array, positions: jax.Array) -> np.ndarray:
    config = BertConfig(
        dataclasses.replace(tiny.TRUNK, layers=2), max_length=LENGTH, vocab_size=tiny.SIZE
    )
    model = BertEncoder(config)
    return seen_by(model, mask, positions)


def test_causal_sees_itself_and_what_came_before() -> None:
    found = gpt(causal(LENGTH), jnp.arange(LENGTH)[None])
    np.testing.assert_array_equal(found, np.tril(np.ones((LENGTH, LENGTH), bool)))


def test_packed_documents_do_not_see_each_other() -> None:
    real = np.asarray(DOCUMENTS[0]) > 0
    same = np.asarray(same_document(DOCUMENTS).dense())[0]
    found = bert(same_document(DOCUMENTS), POSITIONS)
    np.testing.assert_array_equal(found[real], same[real])
    found = gpt(same_document(DOCUMENTS) & causal(LENGTH), POSITIONS)
    np.testing.assert_array_equal(found[real], np.tril(same)[real])


def test_padding_is_seen_by_none() -> None:
    documents = jnp.array([[1, 1, 1, 1, 1, 0, 0, 0]])
    found = bert(padding(documents), jnp.arange(LENGTH)[None])
    assert found[:5, :5].all()
    assert not found[:5, 5:].any()


def test_a_packed_document_reads_as_it_does_alone() -> None:
    config = GptConfig(
        dataclasses.replace(tiny.TRUNK, norm="pre"), max_length=LENGTH, vocab_size=tiny.SIZE
    )
    model = Gpt(config)
    mask = same_document(DOCUMENTS) & causal(LENGTH)
    whole = tiny.text_inputs(TOKENS, mask, positions=POSITIONS)
    variables = model.init(jax.random.key(0), whole)
    packed = model.apply(variables, whole)
    part = tiny.text_inputs(TOKENS[:, 3:7], causal(4), positions=POSITIONS[:, 3:7])
    alone = model.apply(variables, part)
    np.testing.assert_allclose(jnp.asarray(packed)[:, 3:7], jnp.asarray(alone), atol=1e-5)
