"""Small random models of every family, over all that their configs can say."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

VOCABULARY, LENGTH = 40, 11
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3", "smollm3", "modernbertdecoder")
FAMILIES = ("bert", "roberta", "distilbert", "xlnet", "electra", "modernbert", *CAUSAL)


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
        return max((n for n in FAMILIES if self.network.lower().startswith(n)), key=len)


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
_ROBERTA = {
    **_BERT,
    "type_vocab_size": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 40,
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


_MODERNBERT = {
    **_BERT,
    "num_hidden_layers": 4,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 1,
}
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def _bert(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"bert {name}", network, {**_BERT, **config}, **(how or {}))


def _roberta(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    made = {"token_types": False, **(how or {})}
    return Case(f"roberta {name}", network, {**_ROBERTA, **config}, **made)


def _distilbert(
    name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any
) -> Case:
    made = {**_DISTILBERT, **config}
    return Case(f"distilbert {name}", network, made, token_types=False, **(how or {}))


def _gpt2(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"gpt2 {name}", network, {**_GPT2, **config}, token_types=False, **(how or {}))


def _xlnet(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"xlnet {name}", network, {**_XLNET, **config}, **(how or {}))


def _electra(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    return Case(f"electra {name}", network, {**_ELECTRA, **config}, **(how or {}))


def _llama(name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any) -> Case:
    family = network.split("For")[0].removesuffix("Model").lower()
    return Case(f"{family} {name}", network, {**_LLAMA, **config}, token_types=False, **(how or {}))


def _modernbert(
    name: str, network: str, how: Mapping[str, Any] | None = None, **config: Any
) -> Case:
    made = {**_MODERNBERT, **config}
    every = made.pop("every", 3)
    kinds = ["full_attention", "sliding_attention"]
    made["layer_types"] = [kinds[i % every > 0] for i in range(made["num_hidden_layers"])]
    family = "modernbertdecoder" if "Decoder" in network else "modernbert"
    return Case(f"{family} {name}", network, made, token_types=False, **(how or {}))


def _modern_activation(name: str) -> dict[str, Any]:
    return {"hidden_activation": name, "classifier_activation": name}


def _rope(kind: str, **values: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


_LABELS: dict[str, Any] = {
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}
_TWO_STREAMS: dict[str, Any] = {"permuted": True, "padding": ""}
_LM = "XLNetLMHeadModel"
_SMOL = "SmolLM3ForCausalLM"

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
    _roberta("lm", "RobertaForMaskedLM"),
    _roberta("left padding", "RobertaForMaskedLM", {"padding": "left"}),
    _roberta("no padding", "RobertaForMaskedLM", {"padding": ""}),
    _roberta("two segment types", "RobertaForMaskedLM", {"token_types": True}, type_vocab_size=2),
    _roberta("published padding id", "RobertaForMaskedLM", pad_token_id=1),
    _roberta(
        "no spare rows", "RobertaForMaskedLM", pad_token_id=1, max_position_embeddings=LENGTH + 2
    ),
    _roberta("untied", "RobertaForMaskedLM", tie_word_embeddings=False),
    _roberta("one head", "RobertaForMaskedLM", num_attention_heads=1, num_hidden_layers=1),
    _roberta("deep", "RobertaForMaskedLM", num_attention_heads=8, num_hidden_layers=4),
    _roberta("large epsilon", "RobertaForMaskedLM", layer_norm_eps=1e-2),
    _roberta("encoder", "RobertaModel"),
    _roberta("relu", "RobertaModel", hidden_act="relu", intermediate_size=17),
    _roberta("sequence", "RobertaForSequenceClassification", **_LABELS),
    _roberta("tokens", "RobertaForTokenClassification", **_LABELS),
    _roberta("answers", "RobertaForQuestionAnswering", {"padding": ""}),
    _roberta("choices", "RobertaForMultipleChoice"),
    _distilbert("lm", "DistilBertForMaskedLM"),
    _distilbert("left padding", "DistilBertForMaskedLM", {"padding": "left"}),
    _distilbert("no padding", "DistilBertForMaskedLM", {"padding": ""}),
    _distilbert("gelu_new", "DistilBertForMaskedLM", activation="gelu_new"),
    _distilbert("relu", "DistilBertForMaskedLM", activation="relu", hidden_dim=17),
    _distilbert("untied", "DistilBertForMaskedLM", tie_word_embeddings=False),
    _distilbert("sinusoids", "DistilBertForMaskedLM", sinusoidal_pos_embds=True),
    _distilbert("one head", "DistilBertForMaskedLM", n_heads=1, n_layers=1),
    _distilbert("deep", "DistilBertForMaskedLM", n_heads=8, n_layers=4),
    _distilbert("encoder", "DistilBertModel"),
    _distilbert("sequence", "DistilBertForSequenceClassification", **_LABELS),
    _distilbert("tokens", "DistilBertForTokenClassification", **_LABELS),
    _distilbert("answers", "DistilBertForQuestionAnswering"),
    _distilbert("choices", "DistilBertForMultipleChoice"),
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
    *(
        case
        for prefix, lm, narrow in (
            ("ModernBert", "ModernBertForMaskedLM", 2),
            ("ModernBertDecoder", "ModernBertDecoderForCausalLM", 4),
        )
        for case in (
            _modernbert("lm", lm),
            _modernbert("left padding", lm, {"padding": "left"}),
            _modernbert("no padding", lm, {"padding": ""}),
            _modernbert("gelu_new", lm, **_modern_activation("gelu_new")),
            _modernbert("silu", lm, **_modern_activation("silu")),
            _modernbert("untied", lm, tie_word_embeddings=False),
            _modernbert("one head", lm, num_attention_heads=1),
            _modernbert("deep", lm, num_attention_heads=6, num_hidden_layers=7),
            _modernbert("global layers only", lm, every=1),
            _modernbert("every second layer global", lm, every=2),
            _modernbert("narrow window", lm, local_attention=narrow),
            _modernbert("wide window", lm, local_attention=64),
            _modernbert("large epsilon", lm, norm_eps=1e-2),
            _modernbert("norms with biases", lm, norm_bias=True),
            _modernbert("wide feed-forward", lm, intermediate_size=61),
            _modernbert("encoder", f"{prefix}Model"),
        )
    ),
    *(
        case
        for prefix in ("Llama", "Qwen2", "Qwen3", "SmolLM3")
        for lm in (f"{prefix}ForCausalLM",)
        for case in (
            _llama("lm", lm),
            _llama("left padding", lm, {"padding": "left"}),
            _llama("no padding", lm, {"padding": ""}),
            _llama("grouped queries", lm, num_attention_heads=6, num_key_value_heads=2, head_dim=4),
            _llama("one key-value head", lm, num_key_value_heads=1),
            _llama("wide heads", lm, head_dim=16),
            _llama("tied", lm, tie_word_embeddings=True),
            _llama("gelu", lm, hidden_act="gelu"),
            _llama("large epsilon", lm, rms_norm_eps=1e-2),
            _llama("large base", lm, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
            _llama("linear extension", lm, **_rope("linear", factor=4.0)),
            _llama(
                "yarn",
                lm,
                {"padding": ""},
                **_rope("yarn", factor=4.0, original_max_position_embeddings=8),
            ),
            _llama(
                "llama3 extension",
                lm,
                **_rope(
                    "llama3",
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=12,
                ),
            ),
            _llama("deep", lm, num_hidden_layers=4, intermediate_size=17),
            _llama("encoder", f"{prefix}Model"),
            _llama("sequence", f"{prefix}ForSequenceClassification", **_LABELS),
        )
    ),
    _llama("biases", "LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    _llama("untied", _SMOL, no_rope_layer_interval=2, tie_word_embeddings=False),
    _llama("half unrotated", _SMOL, {"padding": "left"}, no_rope_layer_interval=2),
    _llama("listed layers", _SMOL, num_hidden_layers=3, no_rope_layers=[1, 0, 1, 0]),
    _llama("none rotated", _SMOL, no_rope_layers=[0, 0], attention_bias=True, mlp_bias=True),
    _llama("half linear", _SMOL, no_rope_layer_interval=2, **_rope("linear", factor=4.0)),
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
