"""Which network a checkpoint holds, by its tensors and by the class that its config names."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

from lmjax.convert.configs import ModelConfig
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, BertEncoder, BertForPreTraining, BertWithPooler
from lmjax.models.electra import (
    ElectraConfig,
    ElectraDiscriminator,
    ElectraEncoder,
    ElectraGenerator,
)
from lmjax.models.gpt import Gpt, GptConfig, GptEncoder
from lmjax.models.heads import Headed, MarkedHead, PoolingHead, SequenceHead, Task, Token, TokenHead
from lmjax.models.xlnet import Xlnet, XlnetConfig, XlnetEncoder

_NO_UNIT = (0.0, 1.0)

# Tensors that a checkpoint may hold beside what its class uses.
UNUSED = re.compile(
    r"(bert|electra)?\.?embeddings\.position_ids"
    r"|(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"  # causal masks, once stored
    r"|(bert\.)?pooler\.dense\.(weight|bias)"  # of classes that read tokens
    r"|cls\.seq_relationship\.(weight|bias)"  # without a pooler
)

_CLASS_TASKS: dict[str, Task] = {
    "ForSequenceClassification": "sequence_classification",
    "ForNextSentencePrediction": "next_sentence",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
    "ForQuestionAnsweringSimple": "question_answering",
}
_PREFIX = {BertConfig: "Bert", GptConfig: "GPT2", XlnetConfig: "XLNet", ElectraConfig: "Electra"}
_REFUSED = {
    "GPT2DoubleHeadsModel": "load it as GPT2LMHeadModel",
    "XLNetForQuestionAnswering": "its beam search over answers is not built here;"
    " XLNetForQuestionAnsweringSimple is",
    "BertLMHeadModel": "a causal BERT is not built here",
    "ElectraForCausalLM": "a causal ELECTRA is not built here",
}


def choose_network(
    model: ModelConfig, values: Mapping[str, Any], names: Collection[str], where: str
) -> nn.Module:
    """The network of a checkpoint.

    Args:
      model: what `values`, its config.json, says of the model.
      names: of the tensors.
      where: the config.json, for messages.

    Raises:
      ConfigError: its class has no counterpart here, or is not said where it must be.
    """
    architecture = _architecture(model, values, where)
    task = _CLASS_TASKS.get(architecture.removeprefix(_PREFIX[type(model)]))
    if task is None:
        task = _task_by_names(names, where)
    if task is not None:
        dropout = _head_dropout(model, values, task, where)
        return headed(model, task, len(labels_of(values, where)), dropout)
    present = {name.split(".")[0] for name in names}
    if isinstance(model, GptConfig):
        return GptEncoder(model) if architecture == "GPT2Model" else Gpt(model)
    if isinstance(model, XlnetConfig):
        return Xlnet(model) if "lm_loss" in present else XlnetEncoder(model)
    if isinstance(model, ElectraConfig):
        return _electra(model, present, values, where)
    pooled = any(re.match(r"(bert\.)?pooler\.", name) for name in names)
    if any(name.startswith("cls.predictions.") for name in names):
        sentence = pooled and any(name.startswith("cls.seq_relationship.") for name in names)
        return BertForPreTraining(model, sentence_head=sentence)
    return BertWithPooler(model) if pooled else BertEncoder(model)


def with_head(model: ModelConfig, task: Task, classes: int, dropout: float) -> nn.Module:
    """`headed`, or for 'language_model' a GPT with its token table as the head."""
    if task != "language_model":
        return headed(model, task, classes, dropout)
    if not isinstance(model, GptConfig):
        raise ConfigError(f"task: '{task}' is of a GPT, not of a {type(model).__name__}")
    return Gpt(model)


def headed(model: ModelConfig, task: Task, classes: int, dropout: float) -> Headed:
    """An encoder with the head that `transformers` gives it for `task`.

    Relations have Baldini Soares et al.'s (2019), embeddings one that only pools, of which
    `transformers` has neither.

    Args:
      classes: of the labels; not used where the task says how many.
      dropout: of the head, where it has any.
    """
    encoder = encoder_of(model)
    trunk = model.trunk
    if task == "question_answering":
        return Headed(encoder, TokenHead(trunk, 2, 0.0), task)
    if task == "token_classification":
        return Headed(encoder, TokenHead(trunk, classes, dropout), task)
    if task == "relation_classification":
        return Headed(encoder, MarkedHead(trunk, classes, dropout), task)
    if task == "mean_embedding":
        return Headed(encoder, PoolingHead("mean"), task)
    if task == "token_embedding":
        kinds: dict[type, Token] = {GptConfig: "last_real", XlnetConfig: "last"}
        return Headed(encoder, PoolingHead(kinds.get(type(model), "first")), task)
    classes = {"multiple_choice": 1, "next_sentence": 2}.get(task, classes)
    if isinstance(model, GptConfig):
        head = SequenceHead(trunk, classes, "last_real", "", 0.0, use_bias=False)
    elif isinstance(model, XlnetConfig):
        head = SequenceHead(trunk, classes, "last", "tanh", dropout)
    elif isinstance(model, ElectraConfig):
        before = task == "sequence_classification"
        head = SequenceHead(trunk, classes, "first", "gelu", dropout, dropout_before=before)
    else:
        head = SequenceHead(trunk, classes, "first", "tanh", dropout)
    return Headed(encoder, head, task)


def in_unit(network: nn.Module, unit: tuple[float, float]) -> nn.Module:
    """A network whose head gives mean + scale * what it gave, with unit = (mean, scale)."""
    if unit == _NO_UNIT:
        return network
    if not (isinstance(network, Headed) and isinstance(network.head, SequenceHead)):
        raise ConfigError("unit: only a head for sequences has one")
    return Headed(network.encoder, network.head.clone(unit=unit), network.task)


def without_unit(network: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """The same function with the unit of a regression's head folded into its parameters.

    Where the head has no bias (GPT's), the mean goes into the bias of the norm in front of it.

    Raises:
      ConfigError: neither is there.
    """
    head: Any = network.head if isinstance(network, Headed) else None
    if not isinstance(head, SequenceHead) or head.unit == _NO_UNIT:
        return network, params
    mean, scale = head.unit
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    kernel = flat["head/output/kernel"] = np.asarray(flat["head/output/kernel"]) * scale
    norm = "encoder/stack/final_norm/bias"
    if head.use_bias:
        flat["head/output/bias"] = np.asarray(flat["head/output/bias"]) * scale + mean
    elif norm in flat and kernel.any():
        flat[norm] = np.asarray(flat[norm]) + mean * kernel[:, 0] / np.square(kernel).sum()
    else:
        raise ConfigError(
            "config.task.mean: there is neither a bias in the head nor a norm in front of it that"
            " could hold the mean; 0.0 leaves it out"
        )
    plain = Headed(network.encoder, head.clone(unit=_NO_UNIT), network.task)
    return plain, flax.traverse_util.unflatten_dict(flat, sep="/")


def exported(network: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """What `transformers` has a class for: of heads that it has not, the encoder alone."""
    if not isinstance(network, Headed) or network.task in _CLASS_TASKS.values():
        return network, params
    return network.encoder, params["encoder"]


def encoder_of(model: ModelConfig) -> nn.Module:
    """The family's encoder, called (tokens, segments, positions, mask, seeds)."""
    if isinstance(model, BertConfig):
        return BertEncoder(model)
    if isinstance(model, GptConfig):
        return GptEncoder(model)
    if isinstance(model, XlnetConfig):
        return XlnetEncoder(model)
    return ElectraEncoder(model, model.trunk)


def architecture_of(network: nn.Module) -> str:
    """The class of `transformers` that a network is."""
    if isinstance(network, Headed):
        (prefix,) = [p for kind, p in _PREFIX.items() if isinstance(network.encoder.config, kind)]
        (name,) = [n for n, t in _CLASS_TASKS.items() if t == network.task and "Simple" not in n]
        simple = "Simple" if prefix == "XLNet" and network.task == "question_answering" else ""
        return prefix + name + simple
    if isinstance(network, BertForPreTraining):
        return "BertForPreTraining" if network.sentence_head else "BertForMaskedLM"
    return {
        BertEncoder: "BertModel",
        BertWithPooler: "BertModel",
        GptEncoder: "GPT2Model",
        Gpt: "GPT2LMHeadModel",
        XlnetEncoder: "XLNetModel",
        Xlnet: "XLNetLMHeadModel",
        ElectraEncoder: "ElectraModel",
        ElectraGenerator: "ElectraForMaskedLM",
        ElectraDiscriminator: "ElectraForPreTraining",
    }[type(network)]


def labels_of(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The names of the classes, in order (`id2label`)."""
    named = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(_count(values))}
    try:
        by_index = {int(index): str(label) for index, label in named.items()}
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: 'id2label' is no map of numbers to names") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise ConfigError(f"{where}: 'id2label' does not count from 0 without gaps")
    return tuple(by_index[i] for i in range(len(by_index)))


def _count(values: Mapping[str, Any]) -> int:
    count = values.get("num_labels", 2)
    return count if isinstance(count, int) and 0 < count < 1_000_000 else 2


def _architecture(model: ModelConfig, values: Mapping[str, Any], where: str) -> str:
    listed = values.get("architectures") or [""]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{where}: 'architectures' is {listed!r}; a list of one name is expected")
    name = listed[0]
    if name in _REFUSED:
        raise ConfigError(f"{where}: 'architectures' names {name}: {_REFUSED[name]}")
    if name and not name.startswith(_PREFIX[type(model)]):
        raise ConfigError(
            f"{where}: 'architectures' names {name}, but 'model_type' is"
            f" {values.get('model_type')!r}; one of them is wrong"
        )
    return name


def _task_by_names(names: Collection[str], where: str) -> Task | None:
    """The task of a head, for a config that does not name a class with one."""
    first = {name.split(".")[0] for name in names}
    if "qa_outputs" in first:
        return "question_answering"
    if "score" in first or "logits_proj" in first or "classifier.out_proj.weight" in names:
        return "sequence_classification"
    if "classifier" in first:
        raise ConfigError(
            f"{where}: there is a classifier, and 'architectures' does not say of what; name the"
            " class, such as BertForSequenceClassification or BertForTokenClassification"
        )
    return None


def _electra(
    model: ElectraConfig, present: Collection[str], values: Mapping[str, Any], where: str
) -> nn.Module:
    if "discriminator_predictions" in present:
        return ElectraDiscriminator(model)
    if "generator_predictions" not in present:
        return ElectraEncoder(model, model.trunk)
    check_generator_activation(model, where)
    return ElectraGenerator(model)


def check_generator_activation(model: ElectraConfig, where: str) -> None:
    """Refuses a generator whose head would not be the same function on both sides."""
    if model.generator_trunk.activation != "gelu":
        raise ConfigError(
            f"{where}: 'hidden_act' is not 'gelu': the generator's head of transformers is gelu"
            " whatever it says, the authors' (and ours) follows it; no network is both"
        )


def _head_dropout(model: ModelConfig, values: Mapping[str, Any], task: Task, where: str) -> float:
    """The rate in the head, and a refusal of heads that are not built here."""
    if task == "next_sentence" or (isinstance(model, XlnetConfig) and task.startswith("token")):
        return 0.0
    summary = None  # what transformers calls the layer between hidden state and classes
    if isinstance(model, XlnetConfig) and task in ("sequence_classification", "multiple_choice"):
        summary = {"type": "last", "use_proj": True, "activation": "tanh"}
    elif isinstance(model, ElectraConfig) and task == "multiple_choice":
        summary = {"type": "first", "use_proj": True, "activation": "gelu"}
    for name, built in (summary or {}).items():
        value = values.get(f"summary_{name}", built)
        if value != built:
            raise ConfigError(f"{where}: 'summary_{name}' is {value!r}; only {built!r} is built")
    field = "summary_last_dropout" if summary else "classifier_dropout"
    default = 0.1 if summary or isinstance(model, GptConfig) else model.trunk.dropout
    value = values.get(field)
    value = default if value is None else value
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{where}: '{field}' is {value!r}; a rate in [0, 1) is expected")
    return float(value)
