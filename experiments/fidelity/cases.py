"""Small random models of every family, over all that their configs can say."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

VOCABULARY = 40
FAMILIES = ("bert", "gpt2", "xlnet", "electra")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and how it is read.

    Attributes:
      name: tells it from the others.
      network: the class of `transformers`.
      config: fields of its config.
      padding: on which side of the shorter texts; '' = no text is shorter.
      token_types: two types of tokens a text, or none given.
      mems: earlier positions that XLNet remembers.
      permuted: XLNet with perm_mask and target_mapping, both streams.
      batch: rows.
    """

    name: str
    network: str
    config: Mapping[str, Any]
    padding: Literal["", "left", "right"] = "right"
    token_types: bool = True
    mems: int = 0
    permuted: bool = False
    batch: int = 4

    @property
    def family(self) -> str:
        prefixes = {"Bert": "bert", "GPT2": "gpt2", "XLNet": "xlnet", "Electra": "electra"}
        return next(
            family for prefix, family in prefixes.items() if self.network.startswith(prefix)
        )


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
_ELECTRA = {**_BERT, "embedding_size": 10}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_XLNET = {"vocab_size": VOCABULARY, "d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 40}


def _bert(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"bert {name}", network, {**_BERT, **config}, **(how or {}))


def _gpt2(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"gpt2 {name}", network, {**_GPT2, **config}, token_types=False, **(how or {}))


def _xlnet(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"xlnet {name}", network, {**_XLNET, **config}, **(how or {}))


def _electra(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"electra {name}", network, {**_ELECTRA, **config}, **(how or {}))


_LABELS: dict[str, Any] = {
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
_TWO_STREAMS: dict[str, Any] = {"permuted": True, "padding": ""}
_LM = "XLNetLMHeadModel"

CASES = (
    _bert("pretraining", "BertForPreTraining"),
    _bert("left padding", "BertForPreTraining", {"padding": "left"}),
    _bert("no segments", "BertForMaskedLM", {"token_types": False, "padding": ""}),
    _bert("gelu_new", "BertForMaskedLM", hidden_act="gelu_new"),
    _bert("relu", "BertForMaskedLM", hidden_act="relu", intermediate_size=17),
    _bert("silu", "BertForPreTraining", hidden_act="silu"),
    _bert("untied", "BertForMaskedLM", tie_word_embeddings=False),
    _bert("untied pretraining", "BertForPreTraining", tie_word_embeddings=False),
    _bert("one head", "BertForPreTraining", num_attention_heads=1, num_hidden_layers=1),
    _bert("deep", "BertForMaskedLM", num_attention_heads=8, num_hidden_layers=4),
    _bert("four segment types", "BertForPreTraining", type_vocab_size=4),
    _bert("large epsilon", "BertForPreTraining", layer_norm_eps=1e-2),
    _bert("encoder", "BertModel"),
    _bert("next sentence", "BertForNextSentencePrediction"),
    _bert("sequence", "BertForSequenceClassification", **_LABELS),
    _bert("tokens", "BertForTokenClassification", **_LABELS),
    _bert("answers", "BertForQuestionAnswering"),
    _bert("choices", "BertForMultipleChoice"),
    _gpt2("lm", "GPT2LMHeadModel"),
    _gpt2("left padding", "GPT2LMHeadModel", {"padding": "left"}),
    _gpt2("no padding", "GPT2LMHeadModel", {"padding": ""}),
    _gpt2("gelu", "GPT2LMHeadModel", activation_function="gelu"),
    _gpt2("relu", "GPT2LMHeadModel", activation_function="relu", n_inner=17),
    _gpt2("silu", "GPT2LMHeadModel", activation_function="silu"),
    _gpt2("untied", "GPT2LMHeadModel", tie_word_embeddings=False),
    _gpt2("one head", "GPT2LMHeadModel", n_head=1, n_layer=1),
    _gpt2("deep", "GPT2LMHeadModel", n_head=8, n_layer=4),
    _gpt2("large epsilon", "GPT2LMHeadModel", layer_norm_epsilon=1e-2),
    _gpt2("unscaled scores", "GPT2LMHeadModel", scale_attn_weights=False),
    _gpt2("scores by layer", "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True, n_layer=3),
    _gpt2("encoder", "GPT2Model"),
    _gpt2("sequence", "GPT2ForSequenceClassification", **_LABELS),
    _gpt2("sequence, left", "GPT2ForSequenceClassification", {"padding": "left"}, **_LABELS),
    _gpt2("tokens", "GPT2ForTokenClassification", **_LABELS),
    _gpt2("answers", "GPT2ForQuestionAnswering"),
    _xlnet("lm", _LM),
    _xlnet("left padding", _LM, {"padding": "left"}),
    _xlnet("no segments", _LM, {"token_types": False}),
    _xlnet("two streams", _LM, _TWO_STREAMS),
    _xlnet("two streams, padding", _LM, {"permuted": True}),
    _xlnet("memory of 1", _LM, {**_TWO_STREAMS, "mems": 1}, mem_len=1),
    _xlnet("memory of 5", _LM, {**_TWO_STREAMS, "mems": 5}, mem_len=5),
    _xlnet("memory of 17", _LM, {**_TWO_STREAMS, "mems": 17}, mem_len=17),
    _xlnet("shorter memory to come", _LM, {"mems": 9}, mem_len=4),
    _xlnet("reuse_len", _LM, {**_TWO_STREAMS, "mems": 5}, mem_len=5, reuse_len=6),
    _xlnet("clamp_len", _LM, {**_TWO_STREAMS, "mems": 6}, clamp_len=3),
    _xlnet("uni", _LM, {"padding": ""}, attn_type="uni"),
    _xlnet("uni, padding", _LM, {"batch": 1}, attn_type="uni"),
    _xlnet("uni, memory", _LM, {"padding": "", "mems": 5}, attn_type="uni"),
    _xlnet("uni, same_length", _LM, {"padding": "", "mems": 5}, attn_type="uni", same_length=True),
    _xlnet("bi_data", _LM, {**_TWO_STREAMS, "mems": 4}, bi_data=True),
    _xlnet("relu", _LM, _TWO_STREAMS, ff_activation="relu", d_inner=17),
    _xlnet("gelu_new", _LM, ff_activation="gelu_new"),
    _xlnet("untied", _LM, _TWO_STREAMS, tie_word_embeddings=False),
    _xlnet("deep", _LM, _TWO_STREAMS, n_layer=3, n_head=4, d_head=6),
    _xlnet("large epsilon", _LM, layer_norm_eps=1e-2),
    _xlnet("encoder", "XLNetModel"),
    _xlnet("sequence", "XLNetForSequenceClassification", {"padding": "left"}, **_LABELS),
    _xlnet("tokens", "XLNetForTokenClassification", **_LABELS),
    _xlnet("answers", "XLNetForQuestionAnsweringSimple"),
    _xlnet("choices", "XLNetForMultipleChoice", {"padding": "left"}),
    _electra("discriminator", "ElectraForPreTraining"),
    _electra("E = H", "ElectraForPreTraining", embedding_size=24),
    _electra("left padding", "ElectraForPreTraining", {"padding": "left"}),
    _electra("no segments", "ElectraForPreTraining", {"token_types": False, "padding": ""}),
    _electra("gelu_new", "ElectraForPreTraining", hidden_act="gelu_new"),
    _electra("relu", "ElectraForPreTraining", hidden_act="relu", intermediate_size=17),
    _electra("one head", "ElectraForPreTraining", num_attention_heads=1, num_hidden_layers=1),
    _electra("deep", "ElectraForPreTraining", num_attention_heads=8, num_hidden_layers=4),
    _electra("large epsilon", "ElectraForPreTraining", layer_norm_eps=1e-2),
    _electra("generator", "ElectraForMaskedLM"),
    _electra("generator, E = H", "ElectraForMaskedLM", embedding_size=24),
    _electra("generator, untied", "ElectraForMaskedLM", tie_word_embeddings=False),
    _electra("encoder", "ElectraModel"),
    _electra("sequence", "ElectraForSequenceClassification", **_LABELS),
    _electra("tokens", "ElectraForTokenClassification", **_LABELS),
    _electra("answers", "ElectraForQuestionAnswering"),
    _electra("choices", "ElectraForMultipleChoice"),
)
