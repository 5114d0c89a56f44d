"""The same training run here and in torch: weights, batches, optimizer, no dropout.

Ours is the real step, `lmjax.training.step`, with the real objective; torch gets each
batch as our objective has corrupted it, and `transformers`' own losses.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

import lmjax
from experiments.fidelity.cases import VOCABULARY
from experiments.fidelity.outputs import quiet
from lmjax.convert.pretrained import Pretrained
from lmjax.data.vocabulary import Vocabulary
from lmjax.models.bert import BertConfig
from lmjax.models.distilbert import DistilBertConfig
from lmjax.models.electra import ElectraConfig
from lmjax.models.family import ModelConfig
from lmjax.models.gpt import GptConfig
from lmjax.models.llama import LlamaConfig, Qwen2Config, Qwen3Config
from lmjax.models.modernbert import ModernBertConfig
from lmjax.models.modernbert_decoder import ModernBertDecoderConfig
from lmjax.models.roberta import RobertaConfig
from lmjax.models.smollm3 import SmolLM3Config
from lmjax.models.xlnet import XlnetConfig
from lmjax.nn.trunk import RotaryConfig, TransformerConfig
from lmjax.objectives.base import Objective, apply
from lmjax.objectives.causal import CausalLM
from lmjax.objectives.masked import MaskedLM
from lmjax.objectives.permuted import PermutedLM
from lmjax.objectives.rtd import ReplacedTokenDetection, sample_replacements
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.step import corrupt_batch, init_state, make_train_step

STEPS, BATCH, LENGTH = 50, 8, 16

OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3,
    schedule="linear",
    warmup_steps=5,
    epsilon=1e-8,
    bias_correction=True,
    weight_decay=0.01,
    decay="all",
    clip_norm=1.0,
)

_VOCABULARY = Vocabulary(
    size=VOCABULARY,
    pad=0,
    unk=1,
    cls=2,
    sep=3,
    mask=4,
    eod=5,
    special=np.arange(VOCABULARY) < 6,
    starts_word=np.arange(VOCABULARY) % 3 != 0,
    log_frequency=np.full(VOCABULARY, -np.log(VOCABULARY), np.float32),
)


BERTS = {"roberta": RobertaConfig, "distilbert": DistilBertConfig}
LLAMAS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "smollm3": SmolLM3Config,
}


@dataclasses.dataclass(frozen=True)
class Curves:
    """Losses of the steps, [steps] each."""

    ours: np.ndarray
    theirs: np.ndarray

    @property
    def difference(self) -> float:
        """The largest relative one."""
        return float(np.abs(self.ours / self.theirs - 1).max())


def make_objective(family: str) -> Objective:
    """A tiny objective of a family, without dropout."""
    trunk = TransformerConfig(
        layers=2,
        hidden_size=24,
        heads=2,
        intermediate_size=48,
        activation="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        initial_std=0.1,
    )
    if family == "bert":
        bert = BertConfig(trunk, max_length=LENGTH, vocab_size=VOCABULARY)
        return MaskedLM(vocabulary=_VOCABULARY, model=bert, max_predictions=4)
    if family in BERTS:
        bert = BERTS[family](trunk, max_length=LENGTH, vocab_size=VOCABULARY)
        return MaskedLM(
            vocabulary=_VOCABULARY, model=bert, max_predictions=4, sentence_prediction=False
        )
    if family == "gpt2":
        pre = dataclasses.replace(trunk, norm="pre", layer_norm_epsilon=1e-5)
        gpt = GptConfig(pre, max_length=LENGTH, vocab_size=VOCABULARY)
        return CausalLM(vocabulary=_VOCABULARY, model=gpt)
    if family.startswith("modernbert"):
        modern = dataclasses.replace(
            trunk,
            layers=3,
            positions="rotary",
            rotary=RotaryConfig(base=160_000.0, local_base=10_000.0),
            window=4,
            global_every=3,
            gated=True,
            norm="pre",
            first_norm=False,
            norm_bias=False,
            biases="none",
            layer_norm_epsilon=1e-5,
        )
        if family == "modernbertdecoder":
            decoder = ModernBertDecoderConfig(modern, max_length=LENGTH, vocab_size=VOCABULARY)
            return CausalLM(vocabulary=_VOCABULARY, model=decoder)
        modernbert = ModernBertConfig(modern, max_length=LENGTH, vocab_size=VOCABULARY)
        return MaskedLM(
            vocabulary=_VOCABULARY,
            model=modernbert,
            max_predictions=4,
            sentence_prediction=False,
        )
    if family in LLAMAS:
        modern = dataclasses.replace(
            trunk,
            heads=4,
            key_value_heads=2,
            head_dim=8,
            activation="silu",
            gated=True,
            positions="rotary",
            norm="pre",
            normalization="rms_norm",
            biases="query_key_value" if family == "qwen2" else "none",
            query_key_norm=family == "qwen3",
            unrotated_every=2 if family == "smollm3" else 0,
            layer_norm_epsilon=1e-6,
        )
        llama = LLAMAS[family](modern, max_length=LENGTH, vocab_size=VOCABULARY)
        return CausalLM(vocabulary=_VOCABULARY, model=llama)
    if family == "xlnet":
        xlnet = XlnetConfig(trunk, memory_length=6, vocab_size=VOCABULARY)
        return PermutedLM(
            vocabulary=_VOCABULARY, model=xlnet, num_predict=5, reuse_length=8, alpha=2
        )
    electra = ElectraConfig(
        trunk, embedding_size=12, generator_size=0.5, max_length=LENGTH, vocab_size=VOCABULARY
    )
    return ReplacedTokenDetection(vocabulary=_VOCABULARY, model=electra, max_predictions=4)


def make_batch(model: ModelConfig, index: int) -> dict[str, np.ndarray]:
    """A clean batch; tokens are drawn from a few, so that there is something to learn."""
    rng = np.random.default_rng(index)
    start = rng.integers(6, VOCABULARY, (BATCH, 1))
    tokens = (6 + (start + 5 * np.arange(LENGTH)) % (VOCABULARY - 6)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = _VOCABULARY.cls, _VOCABULARY.sep
    segment_ids = np.ones_like(tokens)
    if not (model.causal or model.left_padded):  # XLNet's memory has no padding
        segment_ids[::3, -3:] = 0
    second = (np.arange(LENGTH) > 8).astype(np.int32)
    return {
        "tokens": tokens,
        "token_types": np.tile(second * model.published_token_types, (BATCH, 1)),
        "segment_ids": segment_ids,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "label": rng.integers(0, 2, BATCH).astype(np.int32),
    }


def train(family: str) -> Curves:
    """50 steps on both sides from the same weights."""
    quiet()
    objective = make_objective(family)
    batches = [make_batch(objective.model, i) for i in range(STEPS)]
    first = jax.tree.map(jnp.asarray, batches[0])
    shapes = jax.eval_shape(lambda: init_state(objective, optax.identity(), 0, first, False)).params
    optimizer, schedule = make_optimizer(OPTIMIZER, STEPS, shapes)
    state = jax.jit(lambda: init_state(objective, optimizer, 0, first, False))()
    step = jax.jit(make_train_step(objective, optimizer))
    read = jax.jit(lambda state, batch: _corrupted(objective, state, batch))

    theirs = _Theirs(objective, state.params)
    ours_losses, their_losses = [], []
    for index, batch in enumerate(batches):
        corrupted = jax.device_get(read(state, batch))
        their_losses.append(theirs.step(corrupted, float(schedule(index))))
        state, metrics = step(state, batch)
        ours_losses.append(float(metrics["loss"]))
    return Curves(np.array(ours_losses), np.array(their_losses))

    return optax.identity()


def _corrupted(objective: Objective, state: Any, batch: Any) -> Any:
    """What the step will read; for ELECTRA with the generator's samples put in."""
    corrupted, _ = corrupt_batch(objective, jax.random.fold_in(state.key, state.step), batch)
    if isinstance(objective, ReplacedTokenDetection):
        given = objective.inputs(corrupted)
        logits = apply(objective.network, state.params, *given, method="generate")
        corrupted["replaced"] = sample_replacements(logits, corrupted)
        del corrupted["sampling_key"]
    return corrupted


class _Theirs:
    """The same weights in torch."""

    def __init__(self, objective: Objective, params: Any):
        self.objective, self.mems = objective, None
        classes: tuple[str, ...] = ("ElectraForMaskedLM", "ElectraForPreTraining")
        if not isinstance(objective, ReplacedTokenDetection):
            published = objective.network.published()
            assert published is not None
            classes = (published.architecture,)
        self.models = []
        pretrained = Pretrained(objective.network, params)
        for name, part in zip(classes, ("generator", "discriminator"), strict=False):
            with tempfile.TemporaryDirectory() as folder:
                place = pathlib.Path(folder) / "model"
                lmjax.save_huggingface(pretrained, place, part)
                model = getattr(transformers, name).from_pretrained(
                    place, attn_implementation="eager"
                )
            self.models.append(model.train())
        if len(self.models) == 2:  # one set of embeddings, as in the paper
            generator, discriminator = self.models
            discriminator.electra.embeddings = generator.electra.embeddings
            generator.tie_weights()
        if isinstance(objective, PermutedLM):
            self.models[0].transformer.reuse_len = objective.reuse_length
            self.mems = [
                torch.zeros(objective.model.memory_length, BATCH, objective.model.trunk.hidden_size)
                for _ in range(objective.model.trunk.layers)
            ]
        # torch would keep the row of [PAD] as it is; ours, like the authors', trains it.
        for model in self.models:
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.padding_idx = None
        self.parameters = list({id(p): p for m in self.models for p in m.parameters()}.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=1.0,
            betas=(OPTIMIZER.b1, OPTIMIZER.b2),
            eps=OPTIMIZER.epsilon,
            weight_decay=OPTIMIZER.weight_decay,
        )

    def step(self, batch: dict[str, np.ndarray], learning_rate: float) -> float:
        """One update; returns the loss before it."""
        loss = self.loss({k: torch.tensor(np.asarray(v)) for k, v in batch.items()})
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, OPTIMIZER.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        model, real = self.models[0], (batch["segment_ids"] > 0).long()
        given = {"input_ids": batch["tokens"].long(), "attention_mask": real}
        if isinstance(self.objective, CausalLM):
            return model(**given, labels=given["input_ids"]).loss
        model_config = self.objective.model
        if isinstance(model_config, RobertaConfig):
            # transformers would not count positions of padding tokens that replace others.
            given["position_ids"] = batch["positions"].long() + model_config.padding_id + 1
        if model_config.published_token_types:
            given["token_type_ids"] = batch["token_types"].long()
        if isinstance(self.objective, PermutedLM):
            weights = batch["target_weights"] > 0
            found = model(
                **given | {"attention_mask": real.float()},
                perm_mask=(batch["query_place"][:, :, None] <= batch["key_place"][:, None]).float(),
                target_mapping=torch.nn.functional.one_hot(
                    batch["target_mapping"].long(), LENGTH
                ).float(),
                labels=torch.where(weights, batch["targets"].long(), -100),
                mems=self.mems,
                use_mems=True,
            )
            self.mems = found.mems
            return found.loss
        labels = torch.full(real.shape, -100)
        rows, slots = torch.nonzero(batch["target_weights"] > 0, as_tuple=True)
        labels[rows, batch["target_positions"][rows, slots]] = batch["targets"][rows, slots].long()
        if isinstance(self.objective, MaskedLM):
            if self.objective.sentence_prediction:
                given["next_sentence_label"] = batch["label"].long()
            return model(**given, labels=labels).loss
        replaced = (batch["replaced"] != batch["original"]).long()
        detected = self.models[1](
            **given | {"input_ids": batch["replaced"].long()}, labels=replaced
        )
        scale = self.objective.weights
        return scale["mlm"] * model(**given, labels=labels).loss + scale["rtd"] * detected.loss
