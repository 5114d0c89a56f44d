"""Directories of n-gram models: config.json, ngrams.safetensors and tokenizer.json."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from lmjax.atomic import write_json
from lmjax.configuration import Interval, build, check_ranges
from lmjax.convert.huggingface import tokenizer_of
from lmjax.convert.pretrained import Pretrained
from lmjax.data.store import DataConfig, TokenStore
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.ngram import Ngram, NgramConfig, Smoothing, order_parameters
from lmjax.models.ngram_estimation import Texts


@dataclasses.dataclass(frozen=True)
class NgramTraining:
    """The config of an n-gram model.

    Attributes:
      data: the corpus and the tokenizer. 'jelinek_mercer' estimates its weights on the validation
        split.
      order: n of the longest n-grams.
      smoothing: see `lmjax.models.ngram_estimation`.
      unit: what begins and ends with the special tokens, and no n-gram crosses. 'document' suits
        perplexity and generation, 'sentence' suits texts of one sentence.
      discount_fallback: use the discounts 0.5, 1 and 1.5 for orders whose counts give none, as
        with kenlm's flag.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    order: Annotated[int, Interval("[1, 10]")] = 5
    smoothing: Smoothing = "modified_kneser_ney"
    unit: Literal["document", "sentence"] = "document"
    discount_fallback: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)

    def texts(self, store: TokenStore) -> Texts:
        """Returns the tokens of a store, and the offsets of its units."""
        by_document = self.unit == "document"
        return store.tokens, store.document_token_offsets if by_document else store.sentence_offsets


_CONFIG, _ARRAYS, _TOKENIZER = "config.json", "ngrams.safetensors", "tokenizer.json"
_KINDS = {
    "log_probs": np.float32,
    "log_backoffs": np.float32,
    "tokens": np.int32,
    "starts": np.int32,
}


def opened(config: NgramConfig, params: Mapping[str, Any], tokenizer: Tokenizer) -> Pretrained:
    """Returns the model of these parameters, as `lmjax.load` does."""
    ids = {
        "pad_token_id": tokenizer.roles["pad"],
        "bos_token_id": config.begin_id,
        "eos_token_id": config.end_id,
    }
    return Pretrained(Ngram(config), jax.tree.map(jnp.asarray, params), tokenizer, (), ids)


def save_ngrams(
    model: Pretrained, directory: str | pathlib.Path, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a directory that `lmjax.load` opens.

    Args:
      model: an n-gram model.
      directory: the target; it is created if missing and must be empty.
      about: more values for config.json, such as the training config.

    Raises:
      ConfigError: the directory is not empty, or the model is no n-gram model.
    """
    target = new_directory(directory, "--to")
    check_ngrams(model)
    assert model.tokenizer is not None
    arrays = {
        f"{order}.{name}": np.asarray(values[name])
        for order, values in model.params.items()
        for name in _KINDS
        if name in values
    }
    target.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(target / _TOKENIZER)
    partial = target / f"{_ARRAYS}.partial"
    partial.write_bytes(safetensors.numpy.save(arrays))
    os.replace(partial, target / _ARRAYS)
    # Last, because a directory without it is not opened.
    write_json(target / _CONFIG, {"ngram": dataclasses.asdict(model.config), **(about or {})})


def new_directory(directory: str | pathlib.Path, flag: str) -> pathlib.Path:
    """Returns the path of a directory to create.

    Raises:
      ConfigError: it exists and is not empty.
    """
    target = pathlib.Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{flag}: '{target}' is not empty; give a new directory")
    return target


def check_ngrams(model: Pretrained) -> None:
    """Raises ConfigError unless the model is an n-gram model."""
    if "order_1" not in model.params:
        raise ConfigError(f"model: a {type(model.network).__name__} has no n-grams")


def load_ngrams(directory: pathlib.Path, values: Mapping[str, Any]) -> Pretrained:
    """Opens a directory of `save_ngrams`.

    Args:
      values: the contents of its config.json.

    Raises:
      ConfigError: a file is missing or damaged, or they belong to different models.
    """
    config = build(NgramConfig, values["ngram"], f"{directory / _CONFIG}: ngram")
    tokenizer = tokenizer_of(directory)
    if tokenizer is None:
        raise ConfigError(f"{directory}: no {_TOKENIZER}; copy it too")
    path = directory / _ARRAYS
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: not a complete file ({error}); copy it again") from error
    if max(config.begin_id, config.end_id, tokenizer.size - 1) >= config.vocab_size:
        raise ConfigError(
            f"{directory}: the tokenizer has {tokenizer.size} tokens, but the n-grams"
            f" {config.vocab_size}; the files belong to different models"
        )
    params = _checked(config, arrays, str(path))
    return opened(config, params, tokenizer)


def _checked(config: NgramConfig, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """Checks that arrays are the sorted n-grams of `config`, and completes the parameters."""
    found: list[dict[str, np.ndarray]] = []
    for n in range(1, config.order + 1):
        names = (
            ["log_probs"] + ["tokens"] * (n > 1) + ["log_backoffs", "starts"] * (n < config.order)
        )
        order = {name: arrays.get(f"order_{n}.{name}") for name in names}
        size = config.vocab_size if n == 1 else found[-1]["starts"][-1]
        for name, array in order.items():
            length = size + (name == "starts")
            if array is None or array.shape != (length,) or array.dtype != _KINDS[name]:
                raise ConfigError(
                    f"{where}: 'order_{n}.{name}' should be {np.dtype(_KINDS[name])}[{length}];"
                    " the files belong to different models"
                )
        found.append({name: array for name, array in order.items() if array is not None})
        sound = all(np.isfinite(x).all() for x in found[-1].values())
        if n < config.order:
            starts = found[-1]["starts"]
            sound &= starts[0] == 0 and bool((np.diff(starts) >= 0).all())
        if n > 1:
            tokens, starts = found[-1]["tokens"], found[-2]["starts"]
            ascends = np.diff(tokens) > 0
            ascends[starts[(starts > 0) & (starts < size)] - 1] = True
            inside = (tokens >= 0) & (tokens < config.vocab_size)
            sound &= bool(ascends.all() and inside.all())
        if not sound:
            raise ConfigError(f"{where}: the {n}-grams are damaged; copy the file again")
    following = [(a["starts"], b["log_probs"]) for a, b in itertools.pairwise(found)]
    return {
        f"order_{n}": order_parameters(
            order["log_probs"],
            order.get("tokens"),
            order.get("log_backoffs"),
            following[n - 1] if n < config.order else None,
        )
        for n, order in enumerate(found, 1)
    }
