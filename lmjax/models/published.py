"""The parts of the `transformers` format that several families share.

Each family defines in its own file which fields of config.json and which tensors it reads and
writes. Every known field is either converted, or refused by name if it requests an unsupported
function, or does not change what the weights compute. Unknown fields are reported.

"Theirs" are tensor names in `transformers`; "ours" are parameter paths with unrolled layers. Our
kernels are [in, out]: torch's Linear stores the transpose, GPT-2's Conv1D the same layout.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.errors import ConfigError
from lmjax.nn.trunk import TransformerConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}

# Fields about calling, storing or training a model, which do not change what it computes.
_HARMLESS = set(
    """_name_or_path architectures attn_implementation _attn_implementation_autoset dtype
    torch_dtype transformers_version model_type return_dict output_hidden_states
    output_attentions use_cache torchscript use_bfloat16 tf_legacy_loss pruned_heads
    chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task
    task_specific_params tokenizer_class prefix bos_token_id pad_token_id eos_token_id
    cls_token_id sep_token_id decoder_start_token_id initializer_range gradient_checkpointing
    keys_to_ignore_at_inference output_past directionality is_encoder_decoder
    tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type language n_ctx
    summary_type summary_use_proj summary_activation summary_last_dropout
    summary_first_dropout summary_proj_to_labels start_n_top end_n_top classifier_dropout
    use_mems_eval use_mems_train reorder_and_upcast_attn""".split()  # noqa: SIM905
)


class Fields:
    """Reads config.json field by field and keeps track of the fields that were read."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where = values, where
        self._read: set[str] = set()

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """Returns a field of type `kind`; `default`, if given, replaces a missing field."""
        self._read.add(name)
        value = self._values.get(name, default)
        if value is None and default is None:
            raise ConfigError(f"{self._where}: '{name}' is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; expected {kind.__name__}")
        if kind is int and not 1 <= value < 2**31:
            raise ConfigError(f"{self._where}: '{name}' is {value}; expected a size >= 1")
        if kind is float and not 0 <= value < math.inf:
            raise ConfigError(f"{self._where}: '{name}' is {value}; expected a number >= 0")
        return value

    def optional(self, name: str, default: int | None = None) -> int | None:
        """Returns an integer field that may be null; `default` replaces a missing field."""
        self._read.add(name)
        value = self._values.get(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
        if value is not None and not whole:
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; expected int or null")
        return value

    def block(self, name: str) -> Mapping[str, Any]:
        """Returns a field that is an object, {} if it is missing or null."""
        self._read.add(name)
        value = self._values.get(name) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; expected an object")
        return value

    def sequence(self, name: str, default: Sequence[Any]) -> list[Any]:
        """Returns a field that is a list; `default` replaces a missing or null field."""
        self._read.add(name)
        value = self._values.get(name)
        value = list(default) if value is None else value
        if not isinstance(value, list):
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; expected a list")
        return value

    def ignore(self, name: str) -> None:
        """Marks a field as read that does not change what the model computes."""
        self._read.add(name)

    def require(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuses values other than `allowed`; a missing field has the first of them."""
        self._read.add(name)
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise ConfigError(f"{self._where}: '{name}' is {value!r}: {why}")

    def activation(self, name: str) -> str:
        value = self.get(name, str)
        if value not in ACTIVATIONS:
            raise ConfigError(
                f"{self._where}: '{name}' is {value!r}; supported are {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]

    def report_unread(self) -> None:
        unknown = sorted(set(self._values) - self._read - _HARMLESS)
        if unknown:
            logging.getLogger(__name__).warning(
                "%s: unknown fields, ignored: %s", self._where, ", ".join(unknown)
            )


@dataclasses.dataclass(frozen=True)
class Rule:
    """Conversion between one tensor of theirs and our parameters that it contains.

    Attributes:
      theirs: name of the tensor.
      ours: paths of the parameters.
      split: converts theirs to ours.
      join: converts ours to theirs.
      also: alternative names under which the tensor may be stored, or stored a second time.
      copies: additional names that are written, but ignored when reading.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    also: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


Rules = Iterator[Rule]


def same(theirs: str, ours: str, also: tuple[str, ...] = ()) -> Rule:
    """A tensor that is identical on both sides; `also` as in `Rule`."""
    return Rule(theirs, (ours,), lambda x: [x], lambda parts: parts[0], also)


def reshaped(theirs: str, ours: str, shape: tuple[int, ...], their_shape: tuple[int, ...]) -> Rule:
    """A tensor with a different shape."""
    return Rule(
        theirs, (ours,), lambda x: [x.reshape(shape)], lambda parts: parts[0].reshape(their_shape)
    )


def transposed(theirs: str, ours: str) -> Rule:
    """A transposed matrix."""
    return Rule(theirs, (ours,), lambda x: [x.T], lambda parts: parts[0].T)


def dense(theirs: str, ours: str, bias: bool = True) -> Rules:
    """torch's Linear."""
    yield transposed(f"{theirs}.weight", f"{ours}/kernel")
    if bias:
        yield same(f"{theirs}.bias", f"{ours}/bias")


def conv1d(theirs: str, ours: str) -> Rules:
    """GPT-2's Conv1D."""
    yield same(f"{theirs}.weight", f"{ours}/kernel")
    yield same(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> Rules:
    """A layer norm."""
    # Checkpoints converted from TensorFlow before 2020 use gamma and beta.
    yield same(f"{theirs}.weight", f"{ours}/scale", (f"{theirs}.gamma",))
    yield same(f"{theirs}.bias", f"{ours}/bias", (f"{theirs}.beta",))


def scale(theirs: str, ours: str) -> Rule:
    """A normalization without a bias."""
    return same(f"{theirs}.weight", f"{ours}/scale")


def table(theirs: str, ours: str, also: tuple[str, ...] = ()) -> Rule:
    """An embedding table."""
    return same(f"{theirs}.weight", f"{ours}/embedding", also)


def text_embeddings(theirs: str, ours: str, tied: tuple[str, ...]) -> Rules:
    """BERT's three embedding tables and their norm; `tied`: names of the output layer."""
    yield table(f"{theirs}.word_embeddings", f"{ours}/token", tied)
    yield table(f"{theirs}.position_embeddings", f"{ours}/position")
    yield table(f"{theirs}.token_type_embeddings", f"{ours}/segment")
    yield from norm(f"{theirs}.LayerNorm", f"{ours}/embedding_norm")


def bert_layers(theirs: str, ours: str, layers: int) -> Rules:
    """BERT's blocks."""
    for i in range(layers):
        t, o = f"{theirs}.layer.{i}", f"{ours}/blocks/layer_{i}"
        for part in ("query", "key", "value"):
            yield from dense(f"{t}.attention.self.{part}", f"{o}/attention/{part}")
        yield from dense(f"{t}.attention.output.dense", f"{o}/attention/output")
        yield from norm(f"{t}.attention.output.LayerNorm", f"{o}/attention_norm")
        yield from dense(f"{t}.intermediate.dense", f"{o}/feed_forward/inner")
        yield from dense(f"{t}.output.dense", f"{o}/feed_forward/outer")
        yield from norm(f"{t}.output.LayerNorm", f"{o}/feed_forward_norm")


class Read(NamedTuple):
    """A model described by config.json.

    Attributes:
      model: the family's config.
      query_scale: layer index -> factor of the queries, in addition to 1 / sqrt(head_dim); it is
        folded into the query kernels.
    """

    model: Any
    query_scale: Callable[[int], float] = lambda layer: 1.0


@dataclasses.dataclass(frozen=True)
class Published:
    """How to write a network in the format of `transformers`.

    Attributes:
      architecture: the class, such as 'BertForMaskedLM'.
      rules: rules for all tensors, in layer order.
      bare: whether tensor names of the class lack the prefix of the base model.
    """

    architecture: str
    rules: Iterable[Rule]
    bare: bool = False


def bert_trunk(fields: Fields) -> TransformerConfig:
    """Reads the trunk of BERT and similar families."""
    fields.require(
        "position_embedding_type", ("absolute",), "only learned absolute positions are supported"
    )
    return TransformerConfig(
        layers=fields.get("num_hidden_layers", int),
        hidden_size=fields.get("hidden_size", int),
        heads=fields.get("num_attention_heads", int),
        intermediate_size=fields.get("intermediate_size", int),
        activation=fields.activation("hidden_act"),  # type: ignore[arg-type]
        norm="post",
        layer_norm_epsilon=fields.get("layer_norm_eps", float, 1e-12),
        dropout=fields.get("hidden_dropout_prob", float, 0.1),
        attention_dropout=fields.get("attention_probs_dropout_prob", float, 0.1),
        initial_distribution="normal",
        initial_std=fields.get("initializer_range", float, 0.02),
    )


def bert_values(model: Any) -> dict[str, Any]:
    """Writes config.json of BERT and similar families, without 'model_type'."""
    trunk = model.trunk
    check_trunk(trunk, "post", "BERT and ELECTRA")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": trunk.hidden_size,
        "num_hidden_layers": trunk.layers,
        "num_attention_heads": trunk.heads,
        "intermediate_size": trunk.intermediate_size,
        "hidden_act": THEIR_ACTIVATIONS[trunk.activation],
        "hidden_dropout_prob": trunk.dropout,
        "attention_probs_dropout_prob": trunk.attention_dropout,
        "max_position_embeddings": model.max_length,
        "type_vocab_size": model.segment_types,
        "initializer_range": trunk.initial_std,
        "layer_norm_eps": trunk.layer_norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
    }


def check_trunk(trunk: TransformerConfig, norm: str, family: str) -> None:
    """Raises ConfigError if config.json of `transformers` cannot express the trunk."""
    if trunk.norm != norm:
        raise ConfigError(
            f"trunk.norm: transformers supports only '{norm}' norm in {family}, but this trunk has"
            f" '{trunk.norm}' norm"
        )
    if trunk.base_width:
        raise ConfigError(
            f"trunk.base_width: transformers cannot scale logits by the width in {family}"
        )
    plain = TransformerConfig(layers=1, hidden_size=1, heads=1, intermediate_size=1)
    names = ["gated", "positions", "window", "query_key_norm"]
    names += ["normalization", "norm_bias", "first_norm", "biases"]
    check_trunk_fields(trunk, {name: getattr(plain, name) for name in names}, family)
    if trunk.kv_heads != trunk.heads:
        raise ConfigError(f"trunk.key_value_heads: transformers has no grouped queries in {family}")
    if trunk.heads * trunk.head_size != trunk.hidden_size:
        raise ConfigError(
            f"trunk.head_dim: transformers requires in {family} that heads x head_dim ="
            f" {trunk.heads} x {trunk.head_size} equals hidden_size={trunk.hidden_size}"
        )


def check_trunk_fields(trunk: TransformerConfig, wanted: Mapping[str, Any], family: str) -> None:
    """Raises ConfigError unless the fields of the trunk have the `wanted` values."""
    for name, value in wanted.items():
        if getattr(trunk, name) != value:
            raise ConfigError(
                f"trunk.{name}: transformers supports only {value!r} in {family}, but this trunk"
                f" has {getattr(trunk, name)!r}"
            )
