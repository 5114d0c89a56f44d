"""Models of lmjax in EleutherAI's lm-evaluation-harness (Gao et al. 2021).

  lm_eval.simple_evaluate(model=harness_model(lmjax.load("runs/gpt")), tasks=["lambada_openai"])

Unlike the harness's own adapter for GPT-2, every context follows the token that begins a document,
as in training, not only an empty context.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

from lmjax.convert.pretrained import Pretrained
from lmjax.convert.runs import load
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import continuation_scores
from lmjax.evaluation.perplexity import LONGEST, perplexity
from lmjax.evaluation.scoring import Method, methods_of, token_scores
from lmjax.extras import require

# Settings with the same name here and in the harness; 'until' and the length differ.
_SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty")


def harness_model(model: Pretrained, method: Method | None = None) -> Any:
    """Wraps a model as an `lm_eval.api.model.LM` for `lm_eval.simple_evaluate`.

    Args:
      model: the result of `lmjax.load`.
      method: the scoring method; None = the family's default.

    Raises:
      ConfigError: lm-eval is not installed, or the model cannot score texts.
    """
    return register()(model, method)


@functools.cache
def register() -> type:
    """Registers the adapter with lm-eval as `lmjax` (model_args pretrained=DIR).

    Raises:
      ConfigError: lm-eval is not installed.
    """
    require("lm_eval.api.model", "harness", "the harness")
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs

    class HarnessModel(LM):
        """See `harness_model`. Other arguments of the harness are ignored."""

        def __init__(
            self,
            pretrained: Pretrained | str,
            method: Method | None = None,
            max_gen_toks: int = 64,
            **_: Any,
        ) -> None:
            super().__init__()
            self.model = load(pretrained) if isinstance(pretrained, str) else pretrained
            self.method: Method = method or methods_of(self.model)[0]
            self.max_gen_toks = max_gen_toks

        @property
        def room(self) -> int:
            """The longest text, in tokens."""
            return getattr(self.model.config, "max_length", None) or LONGEST

        @property
        def tokenizer_name(self) -> str:
            assert self.model.tokenizer is not None
            return f"lmjax-{self.model.tokenizer.fingerprint}"

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            asked = [request.args for request in requests]
            # Deduplicated: unconditional scores of a choice are requested once per row.
            distinct = list(dict.fromkeys(asked))
            found, cut = continuation_scores(self.model, distinct, self.method)
            if cut.any():
                logging.getLogger(__name__).warning(
                    "%d of %d contexts did not fit and lost their beginning", cut.sum(), len(cut)
                )
            answers = {
                pair: (float(scores.logs.sum()), bool(scores.greedy.all()))
                for pair, scores in zip(distinct, found, strict=True)
            }
            for pair in distinct:
                self.cache_hook.add_partial("loglikelihood", pair, answers[pair])
            return [answers[pair] for pair in asked]

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            texts = [request.args[0] for request in requests]
            if "causal" not in self.model.network.score_methods:
                scores = token_scores(self.model, texts, self.method)
                return [float(logs.sum()) for logs in scores]
            # Windows overlap by one token, as in the harness.
            stride = self.room - 1
            return [
                -perplexity(self.model, [text], stride=stride).nats if text.strip() else 0.0
                for text in texts
            ]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[tuple[Any, ...], list[int]] = {}
            for i, request in enumerate(requests):
                values = normalize_gen_kwargs(request.args[1], self.max_gen_toks)
                groups.setdefault(tuple(sorted(_settings(values).items())), []).append(i)
            texts = [""] * len(requests)
            for settings, indices in groups.items():
                prompts = [requests[i].args[0] for i in indices]
                for i, text in zip(indices, self._generate(prompts, dict(settings)), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
            return texts

        def _generate(self, prompts: list[str], settings: Mapping[str, Any]) -> list[str]:
            from lmjax.generation.api import generate

            tokenizer = self.model.tokenizer
            assert tokenizer is not None
            ids = tokenizer.encode_batch(prompts)
            if not self.model.network.begins_documents:
                return [g.text for g in generate(self.model, ids, **settings)]
            fits = self.room - settings["max_new_tokens"] - 1
            if fits < 1:
                raise ConfigError(
                    f"max_gen_toks: {settings['max_new_tokens']} leave no room for a prompt in"
                    f" the {self.room} positions; reduce it"
                )
            begin = self.model.begin_id
            cut = sum(len(i) > fits for i in ids)
            if cut:
                logging.getLogger(__name__).warning(
                    "%d of %d prompts did not fit and lost their beginning", cut, len(ids)
                )
            read = [[begin, *i[-fits:].tolist()] for i in ids]
            return [g.text for g in generate(self.model, read, **settings)]

    register_model("lmjax")(HarnessModel)
    return HarnessModel


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the harness's normalized generation arguments to fields of `GenerationConfig`.

    Raises:
      ConfigError: an argument is not supported.
    """
    values = {name: value for name, value in values.items() if value is not None}
    sampled = values.pop("do_sample", False)
    settings = {"max_new_tokens": values.pop("max_gen_toks")}
    settings["stop"] = tuple(text for text in values.pop("until", ()) if text)
    for name in _SETTINGS:
        if name in values:
            settings[name] = values.pop(name)
    if not sampled:
        settings |= {"temperature": 0.0}
        for name in ("top_p", "top_k"):
            settings.pop(name, None)
    elif "temperature" not in settings:
        settings["temperature"] = 1.0
    if values:
        raise ConfigError(f"generation_kwargs: {', '.join(values)}: not supported; remove it")
    return settings
