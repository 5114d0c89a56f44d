"""RoBERTa, DistilBERT, ModernBERT, Ettin and SmolLM: older configs, and what is refused."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lmjax
from lmjax.convert.huggingface import abstract_params, read_config
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.models.distilbert import DistilBertConfig
from lmjax.models.modernbert import ModernBertConfig
from lmjax.models.modernbert_decoder import ModernBertDecoderConfig
from lmjax.models.network import Network
from lmjax.models.roberta import RobertaConfig
from lmjax.models.smollm3 import SmolLM3Config
from lmjax.nn.trunk import RotaryConfig, TransformerConfig
from tests.convert.test_files import change_config, random_params

TRUNK = TransformerConfig(layers=3, hidden_size=8, heads=2, intermediate_size=12, activation="gelu")
ROTARY = dataclasses.replace(TRUNK, positions="rotary", norm="pre", gated=True, biases="none")
MODERN = dataclasses.replace(
    ROTARY,
    rotary=RotaryConfig(base=160_000.0, local_base=10_000.0),
    window=63,
    global_every=2,
    first_norm=False,
    norm_bias=False,
)
SMOL = dataclasses.replace(ROTARY, normalization="rms_norm", unrotated_every=2)
NETWORKS: dict[str, Network] = {
    "roberta": RobertaConfig(TRUNK, max_length=6, vocab_size=20, padding_id=1).masked_lm(False),
    "distilbert": DistilBertConfig(TRUNK, max_length=6, vocab_size=20).masked_lm(False),
    "decoder": ModernBertDecoderConfig(MODERN, max_length=6, vocab_size=20).causal_lm(),
    "smollm3": SmolLM3Config(SMOL, max_length=6, vocab_size=20).causal_lm(),
}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("roberta", {"pad_token_id": None}, "'pad_token_id' is None; positions count from it"),
        ("roberta", {"pad_token_id": 7}, "'pad_token_id' is 7; positions count from it"),
        ("roberta", {"hidden_act": "relu"}, "'hidden_act' is not 'gelu'; the masked-LM head"),
        ("roberta", {"is_decoder": True}, "'is_decoder' is True"),
        ("roberta", {"architectures": ["RobertaForCausalLM"]}, "causal RoBERTa is not supported"),
        (
            "roberta",
            {"architectures": ["RobertaForNextSentencePrediction"]},
            "'architectures' in config.json names a class that Roberta does not have",
        ),
        ("roberta", {"position_embedding_type": "relative_key"}, "'position_embedding_type'"),
        ("distilbert", {"activation": "mish"}, "'activation' is 'mish'"),
        (
            "distilbert",
            {"architectures": ["DistilBertForSequenceClassification"], "seq_classif_dropout": 2},
            "'seq_classif_dropout' is 2; expected a rate",
        ),
        ("decoder", {"attention_bias": True}, "'attention_bias' is True: biases"),
        ("decoder", {"decoder_bias": False}, "'decoder_bias' is False"),
        ("decoder", {"local_attention": 2}, "'local_attention' is too small"),
        ("decoder", {"sliding_window": 7}, "'sliding_window' is 7: it must be half"),
        ("decoder", {"layer_types": ["full_attention"] * 2}, "'layer_types' is"),
        ("decoder", {"layer_types": ["full_attention", "chunked", "full_attention"]}, "equal dist"),
        ("decoder", {"rope_scaling": {"factor": 2}}, "'rope_scaling' is .*extended positions"),
        (
            "decoder",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "full_attention: extended positions are not supported",
        ),
        ("decoder", {"rope_parameters": {"rope_theta": 1e4}}, "'rope_parameters' has 'rope_theta'"),
        (
            "decoder",
            {"architectures": ["ModernBertDecoderForSequenceClassification"]},
            "decoder with a head for 'sequence_classification' is not supported",
        ),
        ("smollm3", {"no_rope_layers": [0, 1, 1]}, r"'no_rope_layers' is \[0, 1, 1\]; expected 3"),
        ("smollm3", {"no_rope_layers": [1]}, r"'no_rope_layers' is \[1\]"),
        ("smollm3", {"use_sliding_window": True}, "'use_sliding_window' is True"),
        ("smollm3", {"attention_bias": True}, "'attention_bias' and 'mlp_bias' differ"),
        (
            "smollm3",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 4,
                }
            },
            "'yarn' would scale the scores",
        ),
    ],
)
def test_a_function_that_is_not_built_is_refused_by_name(
    family: str, fields: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    network = NETWORKS[family]
    lmjax.save_huggingface(Pretrained(network, random_params(network)), tmp_path / "m")
    assert type(lmjax.load(tmp_path / "m").network) is type(network)
    change_config(tmp_path / "m", **fields)
    with pytest.raises(ConfigError, match=message):
        lmjax.load(tmp_path / "m")


@pytest.mark.parametrize("family", NETWORKS)
def test_a_padded_text_is_read_as_it_is_alone(family: str) -> None:
    network = NETWORKS[family]
    model = Pretrained(network, random_params(network))
    tokens = np.random.default_rng(0).integers(3, 20, (1, 4))
    alone = model(tokens)[0]
    assert model.hidden_states(tokens).shape == (4, 1, 4, 8)
    for side in ("left", "right") if family != "distilbert" else ("right",):
        room = (2, 0) if side == "left" else (0, 2)
        real = np.pad(np.ones_like(tokens), ((0, 0), room)) > 0
        padded = model(np.pad(tokens, ((0, 0), room), constant_values=1), real=real)
        np.testing.assert_allclose(padded[real], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            RobertaConfig(TRUNK, vocab_size=20).masked_lm(sentence_head=True),
            "transformers has no class for this network",
        ),
        (
            RobertaConfig(dataclasses.replace(TRUNK, activation="relu"), vocab_size=20).masked_lm(
                False
            ),
            "trunk.activation is not 'gelu'; the masked-LM head of RoBERTa",
        ),
        (
            DistilBertConfig(
                dataclasses.replace(TRUNK, layer_norm_epsilon=1e-5), vocab_size=20
            ).masked_lm(False),
            "trunk.layer_norm_epsilon: transformers supports only 1e-12 in DistilBERT",
        ),
        (
            DistilBertConfig(TRUNK, vocab_size=20, segment_types=2).masked_lm(False),
            "segment_types: 2, but DistilBERT has no token types",
        ),
        (
            ModernBertConfig(
                dataclasses.replace(MODERN, unrotated_every=2), vocab_size=20
            ).masked_lm(False),
            "trunk.unrotated_every: transformers supports only 0 in ModernBERT",
        ),
    ],
)
def test_what_transformers_cannot_express_is_not_written(
    network: Network, message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        lmjax.save_huggingface(Pretrained(network, random_params(network)), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_positions_of_roberta_count_from_the_padding_id_of_the_tokenizer(
    tmp_path: pathlib.Path,
) -> None:
    model = NETWORKS["roberta"].config
    with pytest.raises(ConfigError, match=r"config\.model\.padding_id: 1, but the .* id 0; set it"):
        model.check_padding(0)
    dataclasses.replace(model, padding_id=0).check_padding(0)
    params = random_params(NETWORKS["roberta"])
    given = Pretrained(NETWORKS["roberta"], params, token_ids={"pad_token_id": 0})
    with pytest.raises(ConfigError, match=r"config\.model\.padding_id: 1"):
        lmjax.save_huggingface(given, tmp_path / "m")


# Before version 5 of `transformers`, without layer types and with two bases.
OLDER: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "max_position_embeddings": 7999,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 50000.0,
    "local_attention": 128,
    "position_embedding_type": "sans_pos",
    "norm_eps": 1e-05,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "causal_mask": False,
}


def test_a_pair_of_encoder_and_decoder_of_older_configs() -> None:
    encoder = read_config(OLDER, "config.json").model
    decoder = read_config({**OLDER, "model_type": "modernbert-decoder"}, "config.json").model
    assert encoder.trunk.rotary == RotaryConfig(base=160_000.0, local_base=50_000.0)
    assert (encoder.trunk.global_every, encoder.trunk.window) == (3, 64)
    assert dataclasses.replace(decoder.trunk, window=64) == encoder.trunk
    shapes = [abstract_params(n) for n in (encoder.masked_lm(False), decoder.causal_lm())]
    assert shapes[0].keys() == shapes[1].keys()
    for model in (encoder, decoder):  # and as it is written
        assert read_config(model.published_values(), "config.json").model == model


def test_older_smollm_is_llama(caplog: pytest.LogCaptureFixture) -> None:
    values = {
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 9,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "attention_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
    model = read_config(values, "config.json").model
    assert (model.trunk.rotary.base, model.trunk.unrotated_every) == (100_000.0, 0)
    assert model.tie_embeddings
    assert not caplog.records
    own = {"model_type": "smollm3", "rope_theta": 5e6, "no_rope_layer_interval": 2}
    smol = read_config(
        {**{k: v for k, v in values.items() if k != "tie_word_embeddings"}, **own}, "config.json"
    ).model
    assert (smol.trunk.rotary.base, smol.trunk.unrotated_every) == (5e6, 2)
    assert smol.tie_embeddings


def test_roberta_s_files_read_as_in_transformers(tmp_path: pathlib.Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from lmjax.data.tokenizers import load_tokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"abc", "Ġ", "Ġa", "bc", "Ġabc", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\nb c\nĠa bc\n")
    ours = load_tokenizer(str(tmp_path))
    theirs = transformers.RobertaTokenizer(
        vocab=str(tmp_path / "vocab.json"),
        merges=str(tmp_path / "merges.txt"),
        mask_token=transformers.AddedToken("<mask>", lstrip=True),  # as in the published file
    )
    assert [ours.roles[r] for r in ("cls", "pad", "sep", "unk", "mask")] == [0, 1, 2, 3, 11]
    model = RobertaConfig(TRUNK, max_length=16, vocab_size=12, padding_id=1)
    vocabulary = ours.vocabulary(np.zeros(ours.size))
    model.check_padding(vocabulary.pad)
    texts = ["abc <mask> a", "bc<mask> abc"]
    ids = ours.encode_batch(texts, special_tokens=True)
    assert model.join(vocabulary, ids[0]).tokens.tolist() == theirs(texts[0])["input_ids"]
    assert model.join(vocabulary, *ids).tokens.tolist() == theirs(*texts)["input_ids"]
    joined = model.join(vocabulary, *ids)
    assert joined.tokens[joined.second :][: len(ids[1])].tolist() == ids[1].tolist()
    assert len(joined.tokens) == len(ids[0]) + len(ids[1]) + model.special_tokens(pair=True)
