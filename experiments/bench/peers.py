"""The peers: `transformers` in PyTorch, as shipped and tuned."""

import atexit
import contextlib
import functools
import pathlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from experiments.bench.rounds import Made, Subject
from lmjax.host import tune_host_memory

Variant = Literal["as shipped", "tuned", "tuned, AVX-512", "bfloat16"]

# MKL, which PyTorch contains, takes its AVX-512 kernels only on CPUs for which this function of its
# own says that they are from Intel.
_AVX512 = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def variants(dtype: str) -> list[Variant]:
    """The variants to compare with on this machine."""
    if dtype == "bfloat16":
        return ["bfloat16"]
    found: list[Variant] = ["as shipped", "tuned"]
    return [*found, "tuned, AVX-512"] if _handicapped() and shutil.which("gcc") else found


def subject(make: str, variant: Variant, **settings: Any) -> Subject:
    """The subject 'torch, VARIANT'."""
    environment = {}
    if variant == "tuned, AVX-512":
        environment["LD_PRELOAD"] = str(_avx512())
    return Subject(
        f"torch {variant}" if variant == "as shipped" else f"torch, {variant}",
        make,
        {**settings, "variant": variant},
        environment,
    )


def _handicapped() -> bool:
    """Whether MKL takes AVX2 kernels although the CPU has AVX-512."""
    info = pathlib.Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not info.exists():
        return False
    said = info.read_text()
    return "avx512f" in said and "GenuineIntel" not in said


@functools.cache
def _avx512() -> pathlib.Path:
    """Builds the library that makes MKL take its AVX-512 kernels."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    source, library = (pathlib.Path(folder.name) / f"avx512.{end}" for end in ("c", "so"))
    source.write_text(_AVX512)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def training_step(
    objective: str, size: dict[str, int], batch: int, length: int, vocab_size: int, variant: Variant
) -> Made:
    """A step of training: forward, backward, clipping and AdamW, with dropout 0.1.

    Args:
      objective: 'bert', 'gpt', 'xlnet' or 'electra'.
      size: layers, hidden_size, heads; see `embedding_size` and `GENERATOR` for ELECTRA.
    """
    if variant != "as shipped":
        tune_host_memory()
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    make = {"bert": _bert, "gpt": _gpt, "xlnet": _xlnet, "electra": _electra}[objective]
    with device:
        model, loss = make(torch, size, batch, length, vocab_size)
    step = _updates(torch, device, model, loss, variant)
    return step, {"work": batch * length, "device": str(device)}


def finetuning_epoch(
    size: dict[str, int], batch: int, length: int, dtype: str, variant: Variant
) -> Made:
    """An epoch of `experiments.bench.finetune`, each batch padded to its longest text."""
    if variant != "as shipped":
        tune_host_memory()
    import torch
    import transformers

    from experiments.bench import finetune

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    made = finetune.prepared(size, batch, length, dtype)
    config = transformers.BertConfig(
        vocab_size=made.task.vocabulary.size, max_position_embeddings=512, **_shared(size)
    )
    model = transformers.BertForSequenceClassification(config)
    arrays = [
        {name: torch.tensor(array, device=device).long() for name, array in rows.items()}
        for rows in finetune.batches(made, batch)
    ]

    def loss(rows: Any) -> Any:
        return model(
            input_ids=rows["tokens"],
            attention_mask=(rows["segment_ids"] > 0).long(),
            token_type_ids=rows["token_types"],
            labels=rows["gold"],
        ).loss

    step = _updates(torch, device, model, loss, variant)

    def epoch() -> None:
        for rows in arrays:
            step(rows)

    return epoch, {"work": len(arrays) * batch, "device": str(device)}


def _updates(
    torch: Any, device: Any, model: Any, loss: Callable[..., Any], variant: Variant
) -> Callable[..., None]:
    """Returns a step with the arguments of `loss`: gradients, clipping and AdamW."""
    model.to(device).train()
    fused = variant != "as shipped"
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=fused)
    if device.type == "cuda":
        loss = torch.compile(loss)
    half = variant == "bfloat16"

    def step(*arguments: Any) -> None:
        cast = torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()
        with cast:
            value = loss(*arguments)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()

    return step


Loss = tuple[Any, Callable[[], Any]]

GENERATOR = 4  # ELECTRA's discriminator is that many times as wide as its generator


def embedding_size(hidden_size: int) -> int:
    """Returns ELECTRA's embedding size: 128 in small models, as in the paper's small one."""
    return 128 if hidden_size < 768 else hidden_size


def _shared(size: dict[str, int]) -> dict[str, Any]:
    """Settings of Hugging Face's BERT-like configs."""
    return {
        "num_hidden_layers": size["layers"],
        "hidden_size": size["hidden_size"],
        "num_attention_heads": size["heads"],
        "intermediate_size": 4 * size["hidden_size"],
    }


def _tokens(torch: Any, vocab_size: int, batch: int, length: int) -> Any:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.integers(10, vocab_size, (batch, length)))


def _masked(torch: Any, tokens: Any) -> tuple[Any, Any]:
    """15% of the tokens masked, and the labels; drawn once, at no cost to the step."""
    generator = torch.Generator(tokens.device).manual_seed(0)
    drawn = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    chosen = drawn.argsort(1) < round(0.15 * tokens.shape[1])
    return torch.where(chosen, 4, tokens), torch.where(chosen, tokens, -100)


def _bert(torch: Any, size: dict[str, int], batch: int, length: int, vocab_size: int) -> Loss:
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocab_size, max_position_embeddings=max(512, length), **_shared(size)
    )
    model = transformers.BertForPreTraining(config)
    tokens, labels = _masked(torch, _tokens(torch, vocab_size, batch, length))
    types = torch.zeros_like(tokens)
    pairs = torch.zeros(batch, dtype=torch.long)
    mask = torch.ones_like(tokens)

    def loss() -> Any:
        return model(
            input_ids=tokens,
            attention_mask=mask,
            token_type_ids=types,
            labels=labels,
            next_sentence_label=pairs,
        ).loss

    return model, loss


def _gpt(torch: Any, size: dict[str, int], batch: int, length: int, vocab_size: int) -> Loss:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_layer=size["layers"],
        n_embd=size["hidden_size"],
        n_head=size["heads"],
        n_positions=max(1024, length),
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = _tokens(torch, vocab_size, batch, length)
    return model, lambda: model(input_ids=tokens, labels=tokens, use_cache=False).loss


def _xlnet(torch: Any, size: dict[str, int], batch: int, length: int, vocab_size: int) -> Loss:
    import transformers

    config = transformers.XLNetConfig(
        vocab_size=vocab_size,
        n_layer=size["layers"],
        d_model=size["hidden_size"],
        n_head=size["heads"],
        d_inner=4 * size["hidden_size"],
    )
    model = transformers.XLNetLMHeadModel(config)
    tokens = _tokens(torch, vocab_size, batch, length)
    rng = np.random.default_rng(0)
    predicted = length // 6
    order = np.stack([rng.permutation(length) for _ in range(batch)])
    rank = order.argsort(1)
    targets = np.sort(order[:, -predicted:], 1)
    hidden = rank[:, None, :] >= rank[:, :, None]
    hidden &= (rank >= length - predicted)[:, None, :]
    perm_mask = torch.tensor(hidden).float()
    mapping = torch.tensor(np.eye(length)[targets]).float()
    labels = tokens.gather(1, torch.tensor(targets))

    def loss() -> Any:
        logits = model(input_ids=tokens, perm_mask=perm_mask, target_mapping=mapping).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return model, loss


def _electra(torch: Any, size: dict[str, int], batch: int, length: int, vocab_size: int) -> Loss:
    import transformers

    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size(size["hidden_size"]),
        "max_position_embeddings": max(512, length),
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    narrow = {
        **size,
        "hidden_size": size["hidden_size"] // GENERATOR,
        "heads": max(1, size["heads"] // GENERATOR),
    }
    generator, discriminator = (
        cls(transformers.ElectraConfig(**shared, **_shared(part)))
        for cls, part in (
            (transformers.ElectraForMaskedLM, narrow),
            (transformers.ElectraForPreTraining, size),
        )
    )
    generator.electra.embeddings = discriminator.electra.embeddings  # tied
    generator.tie_weights()
    tokens = _tokens(torch, vocab_size, batch, length)
    masked, labels = _masked(torch, tokens)
    mask = torch.ones_like(tokens)

    def loss() -> Any:
        made = generator(input_ids=masked, attention_mask=mask, labels=labels)
        with torch.no_grad():
            logits = made.logits[labels >= 0].float()
            noise = -torch.log(-torch.log(torch.rand_like(logits)))
            sampled = (logits + noise).argmax(-1)
            corrupted = masked.clone()
            corrupted[labels >= 0] = sampled
        replaced = (corrupted != tokens).float()
        found = discriminator(input_ids=corrupted, attention_mask=mask, labels=replaced)
        return made.loss + 50.0 * found.loss

    return torch.nn.ModuleList([generator, discriminator]), loss
