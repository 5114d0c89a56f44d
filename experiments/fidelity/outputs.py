"""One random model, read by `transformers` and by lmjax from the same file."""

import dataclasses
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import lmjax
from experiments.fidelity.cases import CAUSAL, LENGTH, VOCABULARY, Case
from lmjax.convert.huggingface import read_config
from lmjax.convert.pretrained import Pretrained, hidden_states

# A gradient is held against the largest of its tensor, or this share of the largest of all
# where the tensor's own is but rounding (a key's bias changes no softmax).
_GRADIENT_FLOOR = 1e-2
_ARGUMENTS = ("bi_data", "reuse_len")
_PREFIXES = {
    "distilbert": "DistilBert",
    "gpt2": "GPT2",
    "modernbert": "ModernBert",
    "modernbertdecoder": "ModernBertDecoder",
    "smollm3": "SmolLM3",
    "xlnet": "XLNet",
}


@dataclasses.dataclass(frozen=True)
class Differences:
    """Largest differences to `transformers`.

    Attributes:
      outputs: of logits, pooled states and new memories, absolute.
      hidden: of the hidden states of all layers, absolute.
      gradients: of the loss by each parameter, relative; see _GRADIENT_FLOOR.
      exported: of its outputs after it was written here and opened there, absolute.
      missing: tensors that transformers missed in what was written, or did not expect.
    """

    outputs: float
    hidden: float
    gradients: float
    exported: float
    missing: tuple[str, ...]


def compare(case: Case, folder: pathlib.Path, seed: int = 0) -> Differences:
    """Makes the model, writes it with transformers, opens it here, and compares."""
    quiet()
    theirs = make_theirs(case, seed)
    theirs.save_pretrained(folder / "theirs")
    _without_arguments(folder / "theirs" / "config.json")
    ours = lmjax.load(folder / "theirs")
    arrays = make_arrays(case, seed)

    their_outputs, their_hidden, their_loss = run_theirs(case, theirs, arrays)
    theirs.zero_grad()
    their_loss.backward()

    @jax.jit
    def run(params: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs = run_ours(case, ours, params, arrays)
            return our_loss(outputs, arrays), outputs

        (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return outputs, _our_hidden(case, ours, params, arrays), gradients

    outputs, hidden, gradients = run(ours.params)
    real = arrays["real"]
    lmjax.save_huggingface(ours, folder / "ours")
    again, told = getattr(transformers, case.network).from_pretrained(
        folder / "ours", output_loading_info=True, attn_implementation="eager"
    )
    _set_arguments(case, again)
    exported, _, _ = run_theirs(case, again.eval(), arrays)
    return Differences(
        outputs=max(_difference(outputs[k], their_outputs[k], real) for k in their_outputs),
        hidden=_difference(np.moveaxis(hidden, 0, 2), np.moveaxis(their_hidden, 0, 2), real),
        gradients=_gradient_difference(ours, gradients, theirs),
        exported=max(_difference(exported[k], their_outputs[k], real) for k in their_outputs),
        missing=tuple(sorted(name for names in told.values() for name in map(str, names))),
    )


def make_theirs(case: Case, seed: int) -> Any:
    """Their model with random weights of a spread at which every part shows."""
    config_class = getattr(transformers, f"{_prefix(case)}Config")
    torch.manual_seed(seed)
    config = config_class(**case.config, attn_implementation="eager")
    model = getattr(transformers, case.network)(config).eval()
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() or "ln_" in name
        mean = 1.0 if norm and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean, 0.2)
    model.tie_weights()
    return model


def make_arrays(case: Case, seed: int) -> dict[str, np.ndarray]:
    """Tokens, segments, padding; targets for every kind of output; XLNet's own inputs."""
    rng = np.random.default_rng(seed)
    batch, length = case.batch, LENGTH
    tokens = rng.integers(2, VOCABULARY, (batch, length))
    segments = (np.arange(length) >= 6).astype(np.int64)[None].repeat(batch, 0)
    real = np.ones((batch, length), bool)
    for row in range(0, batch, 2):
        short = slice(length - 3 - row, None) if case.padding == "right" else slice(0, 3 + row)
        real[row, short] = not case.padding
    tokens[~real] = 0
    sizes, depths = ("hidden_size", "n_embd", "d_model", "dim"), ("num_hidden_layers", "n_layer")
    hidden = next(case.config[k] for k in sizes if k in case.config)
    layers = next(case.config[k] for k in (*depths, "n_layers") if k in case.config)
    # A random order of the real positions: i is blind to j unless j comes before it. The
    # first positions of the order are no targets, so that every target sees something.
    order = np.argsort(np.where(real, rng.random((batch, length)), 2.0), axis=1).argsort(axis=1)
    latest = np.argsort(np.where(real, -order, 1), axis=1)[:, :3]
    return {
        "tokens": tokens,
        "token_types": segments if case.token_types else np.zeros_like(segments),
        "real": real,
        "mems": rng.normal(size=(layers, batch, case.mems, hidden)).astype(np.float32),
        "perm_mask": order[:, :, None] <= order[:, None, :],
        "target_mapping": latest,
        "classes": rng.integers(0, 2, (batch, length)),
        "words": rng.integers(0, VOCABULARY, (batch, length)),
        "answers": np.where(real, np.arange(length), -1).max(1) - rng.integers(0, 3, batch),
        "states": rng.normal(size=(batch, length, hidden)).astype(np.float32),
    }


def run_theirs(case: Case, model: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    """Their outputs, hidden states [layers + 1, batch, length, hidden] and loss."""
    choices = case.network.endswith("MultipleChoice")

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array[:, None] if choices else array)

    given: dict[str, Any] = {
        "input_ids": tensor(arrays["tokens"]),
        "output_hidden_states": True,
    }
    if case.padding:
        given["attention_mask"] = tensor(arrays["real"].astype(np.int64))
    if case.token_types:
        given["token_type_ids"] = tensor(arrays["token_types"])
    if case.family in CAUSAL:
        positions = np.maximum(arrays["real"].cumsum(1) - 1, 0)
        given["position_ids"] = tensor(positions)
    if case.family == "xlnet":
        given["use_mems"] = case.mems > 0
        if case.padding:
            given["attention_mask"] = given["attention_mask"].float()
        if case.mems:
            given["mems"] = [torch.tensor(m).transpose(0, 1) for m in arrays["mems"]]
    if case.permuted:
        given["perm_mask"] = tensor(arrays["perm_mask"].astype(np.float32))
        given["target_mapping"] = torch.nn.functional.one_hot(
            torch.tensor(arrays["target_mapping"]), LENGTH
        ).float()
    found = model(**given)
    named = {name: value for name, value in found.items() if torch.is_tensor(value)}
    states = found.hidden_states[:: 2 if case.permuted else 1]
    if choices:
        named["logits"] = named["logits"].reshape(-1, 1)
    loss = their_loss(named, arrays)
    if found.get("mems"):
        named["mems"] = torch.stack([m.transpose(0, 1) for m in found.mems])
    outputs = {name: value.detach().numpy() for name, value in named.items()}
    return outputs, np.stack([h.detach().numpy() for h in states]), loss


def run_ours(
    case: Case, model: Pretrained, params: Any, arrays: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Our outputs under their names."""
    network = model.network
    arguments = _arguments(case, network, arrays)
    method = None if case.network == "XLNetLMHeadModel" else "whole"
    output: Any = network.apply({"params": params}, *arguments, method=method)
    if case.network == "XLNetLMHeadModel":
        hidden, mems = output
        logits: Any = network.apply({"params": params}, hidden, method="decode")
        return {"logits": logits, **({} if mems is None else {"mems": mems})}
    if case.network.endswith(("QuestionAnswering", "QuestionAnsweringSimple")):
        return {"start_logits": output[..., 0], "end_logits": output[..., 1]}
    if case.network == "BertForPreTraining":
        return {"prediction_logits": output[0], "seq_relationship_logits": output[1]}
    if case.network in ("BertModel", "RobertaModel"):
        return {"last_hidden_state": output[0], "pooler_output": output[1]}
    encoder = case.network == f"{_prefix(case)}Model"
    return {"last_hidden_state" if encoder else "logits": output}


def _arguments(case: Case, network: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
    names = ("tokens", "token_types", "real")
    inputs = network.config.inputs(*(jnp.asarray(arrays[name]) for name in names))
    if case.network != "XLNetLMHeadModel":
        return (inputs,)
    if case.permuted:
        inputs = inputs.replace(mask=inputs.mask & ~jnp.asarray(arrays["perm_mask"]))
    forward = np.arange(case.batch) < case.batch // 2
    return (
        inputs,
        jnp.asarray(arrays["mems"]) if case.mems else None,
        jnp.asarray(arrays["target_mapping"]) if case.permuted else None,
        jnp.asarray(np.where(forward, 1, -1)) if case.config.get("bi_data") else None,
        case.config.get("reuse_len", 0),
    )


def _our_hidden(
    case: Case, model: Pretrained, params: Any, arrays: dict[str, np.ndarray]
) -> jax.Array:
    method = None if case.network == "XLNetLMHeadModel" else "whole"
    arguments = _arguments(case, model.network, arrays)
    return hidden_states(model.network, params, *arguments, method=method)


def their_loss(outputs: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """Cross entropies of all logits, mean squares of all states, at real positions."""
    F = torch.nn.functional
    total: Any = 0.0
    for name, value in outputs.items():
        kind, target, weight = _goal(name, value.shape, arrays)
        target, weight = torch.tensor(target), torch.tensor(weight)
        if kind == "states":
            losses = ((value - target) ** 2).mean(-1)
        elif kind == "binary":
            losses = F.binary_cross_entropy_with_logits(value, target.float(), reduction="none")
        else:
            losses = -torch.log_softmax(value, -1).gather(-1, target[..., None])[..., 0]
        total = total + (losses * weight).sum() / weight.sum()
    return total


def our_loss(outputs: dict[str, jax.Array], arrays: dict[str, np.ndarray]) -> jax.Array:
    """`their_loss` in jax."""
    total = jnp.float32(0)
    for name, value in outputs.items():
        if name == "mems":
            continue
        kind, target, weight = _goal(name, value.shape, arrays)
        if kind == "states":
            losses = ((value - target) ** 2).mean(-1)
        elif kind == "binary":
            losses = jax.nn.softplus(value) - value * target
        else:
            logs = jax.nn.log_softmax(value, -1)
            losses = -jnp.take_along_axis(logs, target[..., None], -1)[..., 0]
        total += (losses * weight).sum() / weight.sum()
    return total


def _goal(name: str, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Any:
    """What an output is scored on: the kind of loss, the targets, the weights."""
    real = arrays["real"].astype(np.float32)
    ones = np.ones(len(real), np.float32)
    if name in ("start_logits", "end_logits"):
        return "classes", arrays["answers"], ones
    if name == "pooler_output":
        return "states", arrays["states"][:, 0], ones
    if name == "last_hidden_state":
        return "states", arrays["states"], real
    if shape[1:] == (LENGTH,):
        return "binary", arrays["classes"], real
    if shape[1:] == (1,):
        return "binary", arrays["classes"][:, :1], ones[:, None]
    if len(shape) == 2:
        return "classes", arrays["classes"][:, 0], ones
    if shape[1] != LENGTH:  # XLNet's chosen positions, all of them real
        return "classes", arrays["words"][:, : shape[1]], np.ones(shape[:2], np.float32)
    return "classes", arrays["words" if shape[2] == VOCABULARY else "classes"], real


def _difference(ours: Any, theirs: Any, real: np.ndarray) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    gap = np.abs(ours - theirs)
    return float(gap[real].max() if gap.shape[:2] == real.shape else gap.max())


def _gradient_difference(model: Pretrained, gradients: Any, theirs: Any) -> float:
    # torch gives None where nothing depends on a parameter.
    found = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in theirs.named_parameters()
    }
    flat = {
        k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(gradients, sep="/").items()
    }
    said = {k: v for k, v in theirs.config.to_dict().items() if k not in _ARGUMENTS}
    _, query_scale = read_config(said, "config")
    largest = max(np.abs(grad).max() for grad in found.values())
    worst = 0.0
    published = model.network.published()
    assert published is not None
    for rule in published.rules:
        bare = rule.theirs.removeprefix(f"{theirs.base_model_prefix}.")
        grad = found[rule.theirs] if rule.theirs in found else found[bare]
        for path, expected in zip(rule.ours, rule.split(grad), strict=True):
            ours = flat[path]
            if "/query/" in path:  # a scale of the scores went into our queries
                ours = ours * query_scale(int(path.split("layer_")[1].split("/")[0]))
            if path.endswith("token/embedding") and "word_embeddings" in rule.theirs:
                # torch's padding_idx blocks the gradient of [PAD]'s row in BERT and ELECTRA.
                ours, expected = ours[1:], expected[1:]
            scale = max(np.abs(expected).max(), _GRADIENT_FLOOR * largest)
            worst = max(worst, float(np.abs(ours - expected).max() / scale))
    return worst


def _prefix(case: Case) -> str:
    return _PREFIXES.get(case.family, case.family.capitalize())


def _without_arguments(config: pathlib.Path) -> None:
    """Fields of theirs that are refused here, because they are arguments of a call."""
    values = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in values.items() if k not in _ARGUMENTS}))


def _set_arguments(case: Case, model: Any) -> None:
    if case.config.get("bi_data"):
        model.transformer.bi_data = True
    if "reuse_len" in case.config:
        model.transformer.reuse_len = case.config["reuse_len"]


def quiet() -> None:
    """No bars and notices of transformers from here on."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
