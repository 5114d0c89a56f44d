"""Language-model pretraining in pure JAX: four objectives, one trunk."""

import typing

if typing.TYPE_CHECKING:
    from lmjax.api import evaluate, finetune, pretrain
    from lmjax.convert.huggingface import save_huggingface
    from lmjax.convert.pretrained import Pretrained
    from lmjax.evaluation.scoring import token_scores
    from lmjax.generation.api import generate, stream
    from lmjax.tasks.opened import load

__all__ = [
    "Pretrained",
    "evaluate",
    "finetune",
    "generate",
    "load",
    "pretrain",
    "save_huggingface",
    "stream",
    "token_scores",
]

_WHERE = {
    "pretrain": "api",
    "finetune": "api",
    "evaluate": "api",
    "load": "tasks.opened",
    "save_huggingface": "convert.huggingface",
    "Pretrained": "convert.pretrained",
    "token_scores": "evaluation.scoring",
    "generate": "generation.api",
    "stream": "generation.api",
}


def __getattr__(name: str) -> typing.Any:
    """Imports attributes on first use, so that `import lmjax` is fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lmjax' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"lmjax.{_WHERE[name]}"), name)
