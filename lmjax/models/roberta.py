"""RoBERTa (Liu et al. 2019): BERT without sentence prediction, on byte-level BPE.

`transformers` counts positions from the row after that of the padding id. Here, as in the other
families, they count from 0, and the rows before them, which no text reads, exist only in files.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.configuration import NonNegativeInt
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, MaskedLmNames
from lmjax.models.family import Joined, joined
from lmjax.models.heads import SequenceHead, Task
from lmjax.models.network import Network, TextInputs
from lmjax.models.published import Fields, Read, Rule, Rules
from lmjax.nn.transformer import SegmentTypes


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """RoBERTa's settings.

    Attributes:
      max_length: rows of the position table, the maximum sequence length; `transformers` adds
        padding_id + 1 rows.
      segment_types: rows of the token type table; texts of a pair have the same type.
      padding_id: id of the tokenizer's padding token, from which `transformers` counts positions:
        0 in tokenizers that are trained here, 1 in the published one.
    """

    published_type: ClassVar[str] = "roberta"
    published_prefix: ClassVar[str] = "Roberta"
    published_base: ClassVar[str] = "roberta."
    published_unused: ClassVar[str] = (
        r"(roberta\.)?embeddings\.position_ids"
        r"|(roberta\.)?pooler\.dense\.(weight|bias)"  # of classes that do not read it
    )
    published_refused: ClassVar[Mapping[str, str]] = {
        "RobertaForCausalLM": "causal RoBERTa is not supported"
    }
    published_heads: ClassVar[Mapping[str, tuple[str, str]]] = {
        "sequence_classification": ("classifier.dense", "classifier.out_proj"),
        "multiple_choice": ("roberta.pooler.dense", "classifier"),
    }
    published_token_types: ClassVar[bool] = False
    published_lm_layers: ClassVar[MaskedLmNames] = MaskedLmNames(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    )

    segment_types: SegmentTypes = 1
    padding_id: NonNegativeInt = 0

    def sequence_head(self, task: Task, classes: int, dropout: float) -> SequenceHead:
        before = task == "sequence_classification"
        return SequenceHead(
            self.trunk, classes, self.text_token, "tanh", dropout, dropout_before=before
        )

    def pretrained_head(self, params: Mapping[str, Any]) -> Any:
        """Returns None: RoBERTa pretrains no pooler."""
        return None

    def check_padding(self, padding: int | None) -> None:
        if padding != self.padding_id:
            raise ConfigError(
                f"config.model.padding_id: {self.padding_id}, but the tokenizer's padding token has"
                f" id {padding}; set it to {padding}"
            )

    def inputs(self, tokens: jax.Array, token_types: jax.Array, real: jax.Array) -> TextInputs:
        """Builds inputs from whole texts; positions count from the first real token."""
        positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        return super().inputs(tokens, token_types, real).replace(positions=positions)  # type: ignore[attr-defined]

    def special_tokens(self, pair: bool) -> int:
        return 4 if pair else 2

    def join(
        self, vocabulary: Vocabulary, first: np.ndarray, second: np.ndarray | None = None
    ) -> Joined:
        """Joins texts as: <s> a </s>, or <s> a </s> </s> b </s>."""
        tokens = [vocabulary.cls, *first, vocabulary.sep]
        if second is None:
            return joined(tokens, [0] * len(tokens), 1, len(tokens))
        begin = len(tokens) + 1
        tokens += [vocabulary.sep, *second, vocabulary.sep]
        return joined(tokens, [0] * len(tokens), 1, begin)

    @classmethod
    def read_published(cls, fields: Fields) -> Read:
        padding = fields.optional("pad_token_id", 1)
        rows = fields.get("max_position_embeddings", int)
        if padding is None or not 0 <= padding < rows - 1:
            raise ConfigError(
                f"'pad_token_id' is {padding}; positions count from it, so it must be a row of the"
                f" {rows} of 'max_position_embeddings' and not the last"
            )
        model = super().read_published(fields).model
        length = rows - padding - 1
        return Read(dataclasses.replace(model, max_length=length, padding_id=padding))

    def published_values(self) -> dict[str, Any]:
        return {
            **super().published_values(),
            "max_position_embeddings": self.max_length + self.padding_id + 1,
            "pad_token_id": self.padding_id,
            # Otherwise they have the defaults of the published vocabulary.
            **dict.fromkeys(("bos_token_id", "eos_token_id")),
        }

    def published_network(
        self, architecture: str, names: Collection[str], values: Mapping[str, Any], where: str
    ) -> Network:
        network = super().published_network(architecture, names, values, where)
        if network.fills_masks:
            self._check_activation(f"{where}: 'hidden_act'")
        return network

    def published_head_dropout(self, task: Task, values: Mapping[str, Any], where: str) -> float:
        if task == "multiple_choice":
            return self.trunk.dropout
        return super().published_head_dropout(task, values, where)

    def encoder_rules(self, ours: str, tied: tuple[str, ...] = ()) -> Rules:
        for rule in super().encoder_rules(ours, tied):
            positions = rule.theirs.endswith(".position_embeddings.weight")
            yield _without_first(rule, self.padding_id + 1) if positions else rule

    def lm_rules(self) -> Rules:
        self._check_activation("trunk.activation")
        return super().lm_rules()

    def _check_activation(self, where: str) -> None:
        if self.trunk.activation != "gelu":
            raise ConfigError(
                f"{where} is not 'gelu'; the masked-LM head of RoBERTa always uses gelu in"
                " transformers, but follows the trunk here"
            )


def _without_first(rule: Rule, rows: int) -> Rule:
    """A table of theirs whose first rows no text reads; they are written as zeros."""
    return dataclasses.replace(
        rule,
        split=lambda x: [x[rows:]],
        join=lambda parts: np.pad(parts[0], ((rows, 0), (0, 0))),
    )
