"""Which tensor of a published checkpoint is which parameter here, both ways.

Names on their side are those of `transformers`' classes, ours the paths of the parameters
with unrolled layers. A kernel of ours is [in, out]: torch's Linear holds the transpose,
GPT-2's Conv1D the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import numpy as np

from lmjax.models.bert import BertConfig, BertEncoder, BertForPreTraining, BertWithPooler
from lmjax.models.electra import (
    ElectraDiscriminator,
    ElectraEncoder,
    ElectraGenerator,
)
from lmjax.models.gpt import Gpt, GptConfig, GptEncoder
from lmjax.models.heads import Headed, SequenceHead
from lmjax.models.xlnet import Xlnet, XlnetConfig, XlnetEncoder


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of theirs and the parameters of ours that it holds.

    Attributes:
      theirs: its name; `also` are other names that the same numbers may stand under, or
        stand under a second time.
      copies: second names that are written too, and whose numbers are not used.
      ours: paths of the parameters.
      split: theirs -> ours; `join`: ours -> theirs.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]
    also: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()


Rules = Iterator[Rule]


def _same(theirs: str, ours: str, also: tuple[str, ...] = ()) -> Rule:
    return Rule(theirs, (ours,), lambda x: [x], lambda parts: parts[0], also)


def _reshaped(theirs: str, ours: str, shape: tuple[int, ...], their_shape: tuple[int, ...]) -> Rule:
    return Rule(
        theirs, (ours,), lambda x: [x.reshape(shape)], lambda parts: parts[0].reshape(their_shape)
    )


def _transposed(theirs: str, ours: str) -> Rule:
    return Rule(theirs, (ours,), lambda x: [x.T], lambda parts: parts[0].T)


def _dense(theirs: str, ours: str, bias: bool = True) -> Rules:
    yield _transposed(f"{theirs}.weight", f"{ours}/kernel")
    if bias:
        yield _same(f"{theirs}.bias", f"{ours}/bias")


def _conv1d(theirs: str, ours: str) -> Rules:
    yield _same(f"{theirs}.weight", f"{ours}/kernel")
    yield _same(f"{theirs}.bias", f"{ours}/bias")


def _norm(theirs: str, ours: str) -> Rules:
    # gamma and beta: as in checkpoints converted from TensorFlow before 2020.
    yield _same(f"{theirs}.weight", f"{ours}/scale", (f"{theirs}.gamma",))
    yield _same(f"{theirs}.bias", f"{ours}/bias", (f"{theirs}.beta",))


def _table(theirs: str, ours: str, also: tuple[str, ...] = ()) -> Rule:
    return _same(f"{theirs}.weight", f"{ours}/embedding", also)


def _text_embeddings(theirs: str, ours: str, tied: tuple[str, ...]) -> Rules:
    yield _table(f"{theirs}.word_embeddings", f"{ours}/token", tied)
    yield _table(f"{theirs}.position_embeddings", f"{ours}/position")
    yield _table(f"{theirs}.token_type_embeddings", f"{ours}/segment")
    yield from _norm(f"{theirs}.LayerNorm", f"{ours}/embedding_norm")


def _bert_layers(theirs: str, ours: str, layers: int) -> Rules:
    for i in range(layers):
        t, o = f"{theirs}.layer.{i}", f"{ours}/blocks/layer_{i}"
        for part in ("query", "key", "value"):
            yield from _dense(f"{t}.attention.self.{part}", f"{o}/attention/{part}")
        yield from _dense(f"{t}.attention.output.dense", f"{o}/attention/output")
        yield from _norm(f"{t}.attention.output.LayerNorm", f"{o}/attention_norm")
        yield from _dense(f"{t}.intermediate.dense", f"{o}/feed_forward/inner")
        yield from _dense(f"{t}.output.dense", f"{o}/feed_forward/outer")
        yield from _norm(f"{t}.output.LayerNorm", f"{o}/feed_forward_norm")


def bert_encoder(config: BertConfig, ours: str, tied: tuple[str, ...] = ()) -> Rules:
    yield from _text_embeddings("bert.embeddings", f"{ours}embeddings", tied)
    yield from _bert_layers("bert.encoder", f"{ours}stack", config.trunk.layers)


def electra_encoder(encoder: ElectraEncoder, ours: str, tied: tuple[str, ...] = ()) -> Rules:
    yield from _text_embeddings("electra.embeddings", f"{ours}embeddings", tied)
    if encoder.config.embedding_features != encoder.trunk.hidden_size:
        yield from _dense("electra.embeddings_project", f"{ours}embeddings_project")
    yield from _bert_layers("electra.encoder", f"{ours}stack", encoder.trunk.layers)


def gpt_encoder(config: GptConfig, ours: str, tied: tuple[str, ...] = ()) -> Rules:
    yield _table("transformer.wte", f"{ours}embeddings/token", tied)
    yield _table("transformer.wpe", f"{ours}embeddings/position")
    for i in range(config.trunk.layers):
        t, o = f"transformer.h.{i}", f"{ours}stack/blocks/layer_{i}"
        for theirs, leaf in (("weight", "kernel"), ("bias", "bias")):
            yield Rule(
                f"{t}.attn.c_attn.{theirs}",
                tuple(f"{o}/attention/{part}/{leaf}" for part in ("query", "key", "value")),
                lambda x: np.split(x, 3, axis=-1),
                lambda parts: np.concatenate(parts, axis=-1),
            )
        yield from _conv1d(f"{t}.attn.c_proj", f"{o}/attention/output")
        yield from _norm(f"{t}.ln_1", f"{o}/attention_norm")
        yield from _conv1d(f"{t}.mlp.c_fc", f"{o}/feed_forward/inner")
        yield from _conv1d(f"{t}.mlp.c_proj", f"{o}/feed_forward/outer")
        yield from _norm(f"{t}.ln_2", f"{o}/feed_forward_norm")
    yield from _norm("transformer.ln_f", f"{ours}stack/final_norm")


def xlnet_encoder(config: XlnetConfig, ours: str, tied: tuple[str, ...] = ()) -> Rules:
    trunk = config.trunk
    hidden, heads, size = trunk.hidden_size, trunk.heads, trunk.head_size
    yield _table("transformer.word_embedding", f"{ours}token", tied)
    yield _reshaped("transformer.mask_emb", f"{ours}mask_embedding", (1, hidden), (1, 1, hidden))
    for i in range(trunk.layers):
        t, o = f"transformer.layer.{i}", f"{ours}layers/layer_{i}"
        for theirs, part in (("q", "query"), ("k", "key"), ("v", "value"), ("r", "relative")):
            yield _reshaped(
                f"{t}.rel_attn.{theirs}",
                f"{o}/attention/{part}/kernel",
                (hidden, heads * size),
                (hidden, heads, size),
            )
        yield Rule(  # [hidden, heads, size] although it maps heads to hidden
            f"{t}.rel_attn.o",
            (f"{o}/attention/output/kernel",),
            lambda x: [x.reshape(hidden, heads * size).T],
            lambda parts: parts[0].T.reshape(hidden, heads, size),
        )
        yield _same(f"{t}.rel_attn.r_w_bias", f"{o}/attention/content_bias")
        yield _same(f"{t}.rel_attn.r_r_bias", f"{o}/attention/position_bias")
        yield _same(f"{t}.rel_attn.r_s_bias", f"{o}/attention/segment_bias")
        yield _same(f"{t}.rel_attn.seg_embed", f"{o}/attention/segment_embedding")
        yield from _norm(f"{t}.rel_attn.layer_norm", f"{o}/attention_norm")
        yield from _dense(f"{t}.ff.layer_1", f"{o}/feed_forward/inner")
        yield from _dense(f"{t}.ff.layer_2", f"{o}/feed_forward/outer")
        yield from _norm(f"{t}.ff.layer_norm", f"{o}/feed_forward_norm")


def rules(network: nn.Module) -> list[Rule]:
    """All tensors of `network`, in the order of its layers."""
    return list(_rules(network))


def _rules(network: nn.Module) -> Rules:
    if isinstance(network, BertEncoder):
        yield from bert_encoder(network.config, "")
    elif isinstance(network, BertWithPooler):
        yield from bert_encoder(network.config, "encoder/")
        yield from _dense("bert.pooler.dense", "pooler/dense")
    elif isinstance(network, BertForPreTraining):
        yield from _bert_for_pretraining(network)
    elif isinstance(network, GptEncoder):
        yield from gpt_encoder(network.config, "")
    elif isinstance(network, Gpt):
        tied = network.config.tie_embeddings
        yield from gpt_encoder(network.config, "encoder/", ("lm_head.weight",) if tied else ())
        if not tied:
            yield _table("lm_head", "decoder")
    elif isinstance(network, XlnetEncoder):
        yield from xlnet_encoder(network.config, "")
    elif isinstance(network, Xlnet):
        tied = network.config.tie_embeddings
        yield from xlnet_encoder(network.config, "encoder/", ("lm_loss.weight",) if tied else ())
        if not tied:
            yield _table("lm_loss", "decoder")
        yield _same("lm_loss.bias", "output_bias")
    elif isinstance(network, ElectraEncoder):
        yield from electra_encoder(network, "")
    elif isinstance(network, ElectraGenerator):
        yield from _electra_generator(network)
    elif isinstance(network, ElectraDiscriminator):
        encoder = ElectraEncoder(network.config, network.config.trunk)
        yield from electra_encoder(encoder, "encoder/")
        yield from _dense("discriminator_predictions.dense", "dense")
        yield from _dense("discriminator_predictions.dense_prediction", "prediction")
    elif isinstance(network, Headed):
        yield from _headed(network)
    else:
        raise TypeError(f"{type(network).__name__} has no counterpart in transformers")


def _bert_for_pretraining(network: BertForPreTraining) -> Rules:
    tied = network.config.tie_embeddings
    also = ("cls.predictions.decoder.weight",) if tied else ()
    yield from bert_encoder(network.config, "encoder/", also)
    yield from _dense("cls.predictions.transform.dense", "transform/dense")
    yield from _norm("cls.predictions.transform.LayerNorm", "transform/norm")
    if tied:
        yield _same("cls.predictions.bias", "output_bias", ("cls.predictions.decoder.bias",))
    else:
        # transformers keeps two biases then, and adds the decoder's.
        yield _table("cls.predictions.decoder", "decoder")
        bias = _same("cls.predictions.decoder.bias", "output_bias")
        yield dataclasses.replace(bias, copies=("cls.predictions.bias",))
    if network.sentence_head:
        yield from _dense("bert.pooler.dense", "pooler/dense")
        yield from _dense("cls.seq_relationship", "sentence")


def _electra_generator(network: ElectraGenerator) -> Rules:
    tied = network.config.tie_embeddings
    encoder = ElectraEncoder(network.config, network.config.generator_trunk)
    yield from electra_encoder(encoder, "encoder/", ("generator_lm_head.weight",) if tied else ())
    yield from _dense("generator_predictions.dense", "transform/dense")
    yield from _norm("generator_predictions.LayerNorm", "transform/norm")
    if not tied:
        yield _table("generator_lm_head", "decoder")
    yield _same("generator_lm_head.bias", "output_bias")


# Where the layers of a head stand in their classes: (transform, output).
_HEADS = {
    (BertEncoder, "next_sentence"): ("bert.pooler.dense", "cls.seq_relationship"),
    (BertEncoder, "sequence_classification"): ("bert.pooler.dense", "classifier"),
    (BertEncoder, "multiple_choice"): ("bert.pooler.dense", "classifier"),
    (GptEncoder, "sequence_classification"): ("", "score"),
    (XlnetEncoder, "sequence_classification"): ("sequence_summary.summary", "logits_proj"),
    (XlnetEncoder, "multiple_choice"): ("sequence_summary.summary", "logits_proj"),
    (ElectraEncoder, "sequence_classification"): ("classifier.dense", "classifier.out_proj"),
    (ElectraEncoder, "multiple_choice"): ("sequence_summary.summary", "classifier"),
}


def _headed(network: Headed) -> Rules:
    encoder, head = network.encoder, network.head
    if isinstance(encoder, BertEncoder):
        yield from bert_encoder(encoder.config, "encoder/")
    elif isinstance(encoder, GptEncoder):
        yield from gpt_encoder(encoder.config, "encoder/")
    elif isinstance(encoder, XlnetEncoder):
        yield from xlnet_encoder(encoder.config, "encoder/")
    elif isinstance(encoder, ElectraEncoder):
        yield from electra_encoder(encoder, "encoder/")
    if isinstance(head, SequenceHead):
        transform, output = _HEADS[type(encoder), network.task]
        if head.transform:
            yield from _dense(transform, "head/transform")
        yield from _dense(output, "head/output", bias=head.use_bias)
    else:
        answers = network.task == "question_answering"
        yield from _dense("qa_outputs" if answers else "classifier", "head/output")
