"""config.json of `transformers` and the model configs here, both ways.

Every field of theirs is taken over, refused by name where it asks for a function that is
not built here, or known to change no function of the weights; an unknown one is told.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.xlnet import XlnetConfig
from lmjax.nn.trunk import TransformerConfig

ModelConfig = BertConfig | GptConfig | XlnetConfig | ElectraConfig

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
_THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}

# Fields that say how to call, store or train a model, not what it computes.
_HARMLESS = set(
    """_name_or_path architectures attn_implementation _attn_implementation_autoset dtype
    torch_dtype transformers_version model_type return_dict output_hidden_states
    output_attentions use_cache torchscript use_bfloat16 tf_legacy_loss pruned_heads
    chunk_size_feed_forward id2label label2id num_labels problem_type finetuning_task
    task_specific_params tokenizer_class prefix bos_token_id pad_token_id eos_token_id
    sep_token_id decoder_start_token_id initializer_range gradient_checkpointing
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
    """config.json, read field by field."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self._where = values, where
        self._read: set[str] = set()

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value of a field, of type `kind`; a missing one has `default`, if there is one."""
        self._read.add(name)
        value = self._values.get(name, default)
        if value is None and default is None:
            raise ConfigError(f"{self._where}: '{name}' is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; {kind.__name__} is expected")
        if kind is int and not 1 <= value < 2**31:
            raise ConfigError(f"{self._where}: '{name}' is {value}, which is no size")
        if kind is float and not 0 <= value < math.inf:
            raise ConfigError(f"{self._where}: '{name}' is {value}; a number >= 0 is expected")
        return value

    def optional(self, name: str) -> int | None:
        """The number in a field that may be missing or null."""
        self._read.add(name)
        value = self._values.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
        if value is not None and not whole:
            raise ConfigError(f"{self._where}: '{name}' is {value!r}; int or null is expected")
        return value

    def require(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuses all values but `allowed`, the first of which is that of a missing field."""
        self._read.add(name)
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise ConfigError(f"{self._where}: '{name}' is {value!r}: {why}")

    def activation(self, name: str) -> str:
        value = self.get(name, str)
        if value not in ACTIVATIONS:
            raise ConfigError(
                f"{self._where}: '{name}' is {value!r}; built here are {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]

    def tell_unread(self) -> None:
        unknown = sorted(set(self._values) - self._read - _HARMLESS)
        if unknown:
            logging.getLogger(__name__).warning(
                "%s: not known here, and not used: %s", self._where, ", ".join(unknown)
            )


class Read(NamedTuple):
    """What config.json says.

    Attributes:
      model: the family's config.
      query_scale: what the queries of layer i are multiplied by, beside 1 / sqrt(head_dim);
        it goes into their kernels.
    """

    model: ModelConfig
    query_scale: Callable[[int], float] = lambda layer: 1.0


def read_config(values: Mapping[str, Any], where: str) -> Read:
    """From config.json to the family's config.

    Raises:
      ConfigError: another architecture, or a field that cannot be honoured.
    """
    readers = {"bert": _bert, "electra": _electra, "gpt2": _gpt2, "xlnet": _xlnet}
    family = values.get("model_type")
    if not isinstance(family, str) or family not in readers:
        raise ConfigError(
            f"{where}: 'model_type' is {family!r}; known are {', '.join(sorted(readers))}"
        )
    fields = Fields(values, where)
    fields.require("is_decoder", (False,), "cross and causal attention of it are not built here")
    fields.require("add_cross_attention", (False,), "cross attention is not built here")
    try:
        read = readers[family](fields)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None
    fields.tell_unread()
    return read


def _bert_trunk(fields: Fields) -> TransformerConfig:
    fields.require(
        "position_embedding_type", ("absolute",), "only learned absolute positions are built here"
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


def _bert(fields: Fields) -> Read:
    trunk = _bert_trunk(fields)
    model = BertConfig(
        trunk,
        max_length=fields.get("max_position_embeddings", int),
        segment_types=fields.get("type_vocab_size", int),
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        vocab_size=fields.get("vocab_size", int),
    )
    return Read(model)


def _electra(fields: Fields) -> Read:
    trunk = _bert_trunk(fields)
    model = ElectraConfig(
        trunk,
        embedding_size=fields.get("embedding_size", int),
        generator_size=1.0,  # either network comes with its own config
        max_length=fields.get("max_position_embeddings", int),
        segment_types=fields.get("type_vocab_size", int),
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        vocab_size=fields.get("vocab_size", int),
    )
    return Read(model)


def _gpt2(fields: Fields) -> Read:
    hidden, heads = fields.get("n_embd", int), fields.get("n_head", int)
    layers = fields.get("n_layer", int)
    dropout = fields.get("resid_pdrop", float, 0.1)
    embedding_dropout = fields.get("embd_pdrop", float, 0.1)
    if embedding_dropout != dropout:
        raise ConfigError(
            f"'embd_pdrop' is {embedding_dropout} and 'resid_pdrop' {dropout}; one rate drops"
            " out both here: make them equal"
        )
    trunk = TransformerConfig(
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        intermediate_size=fields.optional("n_inner") or 4 * hidden,
        activation=fields.activation("activation_function"),  # type: ignore[arg-type]
        norm="pre",
        layer_norm_epsilon=fields.get("layer_norm_epsilon", float, 1e-5),
        dropout=dropout,
        attention_dropout=fields.get("attn_pdrop", float, 0.1),
        initial_distribution="normal",
        initial_std=fields.get("initializer_range", float, 0.02),
        scale_residual_init=True,
    )
    model = GptConfig(
        trunk,
        max_length=fields.get("n_positions", int),
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        vocab_size=fields.get("vocab_size", int),
    )
    by_layer = fields.get("scale_attn_by_inverse_layer_idx", bool, False)
    by_size = fields.get("scale_attn_weights", bool, True)
    scale = 1.0 if by_size else trunk.head_size**0.5
    return Read(model, lambda layer: scale / (layer + 1 if by_layer else 1))


def _xlnet(fields: Fields) -> Read:
    fields.require(
        "bi_data",
        (False,),
        "set it to false, and say with `direction` which rows of a batch run backward",
    )
    fields.require(
        "reuse_len",
        (0,),
        "set it to null, and say with `reuse_length` how many states enter the memory",
    )
    fields.require("attn_type", ("bi", "uni"), "'bi' and 'uni' are built here")
    fields.require("untie_r", (True,), "biases that all layers share are not built here")
    dropout = fields.get("dropout", float, 0.1)
    clamp = fields.optional("clamp_len")
    heads, hidden = fields.get("n_head", int), fields.get("d_model", int)
    trunk = TransformerConfig(
        layers=fields.get("n_layer", int),
        hidden_size=hidden,
        heads=heads,
        intermediate_size=fields.get("d_inner", int),
        head_dim=fields.optional("d_head") or 0,
        activation=fields.activation("ff_activation"),  # type: ignore[arg-type]
        norm="post",
        layer_norm_epsilon=fields.get("layer_norm_eps", float, 1e-12),
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        initial_distribution="normal",
        initial_std=fields.get("initializer_range", float, 0.02),
    )
    model = XlnetConfig(
        trunk,
        memory_length=fields.optional("mem_len") or 0,
        clamp_length=clamp if clamp is not None and clamp > 0 else 0,
        attention_type=fields.get("attn_type", str, "bi"),
        same_length=fields.get("same_length", bool, False),
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        vocab_size=fields.get("vocab_size", int),
    )
    return Read(model)


def write_config(model: ModelConfig) -> dict[str, Any]:
    """From the family's config to config.json, without architecture and labels."""
    if isinstance(model, GptConfig):
        return _gpt2_values(model)
    if isinstance(model, XlnetConfig):
        return _xlnet_values(model)
    values = _bert_values(model)
    if isinstance(model, ElectraConfig):
        return {"model_type": "electra", "embedding_size": model.embedding_features, **values}
    return {"model_type": "bert", "position_embedding_type": "absolute", **values}


def _bert_values(model: BertConfig | ElectraConfig) -> dict[str, Any]:
    trunk = model.trunk
    _check_trunk(trunk, "post", "BERT and ELECTRA")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": trunk.hidden_size,
        "num_hidden_layers": trunk.layers,
        "num_attention_heads": trunk.heads,
        "intermediate_size": trunk.intermediate_size,
        "hidden_act": _THEIR_ACTIVATIONS[trunk.activation],
        "hidden_dropout_prob": trunk.dropout,
        "attention_probs_dropout_prob": trunk.attention_dropout,
        "max_position_embeddings": model.max_length,
        "type_vocab_size": model.segment_types,
        "initializer_range": trunk.initial_std,
        "layer_norm_eps": trunk.layer_norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _gpt2_values(model: GptConfig) -> dict[str, Any]:
    trunk = model.trunk
    _check_trunk(trunk, "pre", "GPT-2")
    return {
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "n_embd": trunk.hidden_size,
        "n_layer": trunk.layers,
        "n_head": trunk.heads,
        "n_inner": trunk.intermediate_size,
        "activation_function": _THEIR_ACTIVATIONS[trunk.activation],
        "resid_pdrop": trunk.dropout,
        "embd_pdrop": trunk.dropout,
        "attn_pdrop": trunk.attention_dropout,
        "layer_norm_epsilon": trunk.layer_norm_epsilon,
        "initializer_range": trunk.initial_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _xlnet_values(model: XlnetConfig) -> dict[str, Any]:
    trunk = model.trunk
    _check_trunk(trunk, "post", "XLNet")
    return {
        "model_type": "xlnet",
        "vocab_size": model.vocab_size,
        "d_model": trunk.hidden_size,
        "n_layer": trunk.layers,
        "n_head": trunk.heads,
        "d_head": trunk.head_size,
        "d_inner": trunk.intermediate_size,
        "ff_activation": _THEIR_ACTIVATIONS[trunk.activation],
        "untie_r": True,
        "attn_type": model.attention_type,
        "same_length": model.same_length,
        "bi_data": False,
        "clamp_len": model.clamp_length or -1,
        "mem_len": model.memory_length or None,
        "dropout": trunk.dropout,
        "initializer_range": trunk.initial_std,
        "layer_norm_eps": trunk.layer_norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _check_trunk(trunk: TransformerConfig, norm: str, family: str) -> None:
    """Refuses to write a config that says less than the trunk does."""
    if trunk.norm != norm:
        raise ConfigError(
            f"trunk.norm: {family} of transformers is '{norm}'-norm only, this trunk is"
            f" '{trunk.norm}'-norm"
        )
    if trunk.base_width:
        raise ConfigError(
            f"trunk.base_width: {family} of transformers divides no logits by a width"
        )
    if trunk.gated:
        raise ConfigError(
            f"trunk.gated: {family} of transformers: no gated feed-forward layer there"
        )
    if trunk.heads * trunk.head_size != trunk.hidden_size:
        raise ConfigError(
            f"trunk.head_dim: {family} of transformers takes heads x head_dim ="
            f" {trunk.heads} x {trunk.head_size} to be hidden_size={trunk.hidden_size}"
        )
