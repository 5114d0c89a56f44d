"""`lmjax.generate` and `lmjax.generation.api.stream`: the entry points of text generation."""

from collections.abc import Iterator
from typing import Any

from lmjax.configuration import build
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation.beams import search_beams
from lmjax.generation.constraints import make_constraint
from lmjax.generation.contrastive import search_contrastively
from lmjax.generation.infilling import infill
from lmjax.generation.outputs import Generated
from lmjax.generation.prompts import Prompts, check_room, read_prompts
from lmjax.generation.sampling import continue_texts
from lmjax.generation.settings import GenerationConfig
from lmjax.generation.speculative import speculate


def generate(
    model: Pretrained, prompts: Prompts, *, draft: Pretrained | None = None, **settings: Any
) -> list[Generated]:
    """Continues each prompt; a masked model fills the prompt's masks, or masks after the prompt.

    Args:
      model: the result of `lmjax.load`.
      prompts: a string, or a sequence of strings or lists of token ids. Strings may contain
        special tokens such as '[MASK]'.
      draft: a smaller GPT with the same tokenizer that proposes tokens (speculative decoding).
      **settings: fields of `GenerationConfig`.

    Returns:
      `num_return_sequences` texts per prompt, in the order of the prompts; beams are sorted from
      best to worst.

    Raises:
      ConfigError: a setting is invalid, or the model cannot generate text.
    """
    config = build(GenerationConfig, settings, "generate")
    listed = read_prompts(model, prompts, config)
    if _fills(model, config) and draft is None:
        return infill(model, listed, config)
    _check_left_to_right(model, config)
    if draft is not None:
        return speculate(model, draft, listed, config)
    if config.num_beams > 1:
        return search_beams(model, listed, config)
    if config.penalty_alpha:
        return search_contrastively(model, listed, config)
    texts: list[Generated] = []
    constraint = make_constraint(model, config, len(listed))
    for texts in continue_texts(model, listed, config, constraint):  # noqa: B007
        pass
    return texts


def stream(model: Pretrained, prompt: str, **settings: Any) -> Iterator[str]:
    """Yields the continuation of one prompt piece by piece, by sampling or greedy search.

    Text that may be the beginning of a stop string or an incomplete character is held back until
    it is complete.

    Raises:
      ConfigError: as `generate`, or the settings ask for more than one text.
    """
    config = build(GenerationConfig, settings, "generate")
    if not can_stream(model, settings):
        raise ConfigError("prompts: streaming needs one text, by sampling or greedy search")
    _check_left_to_right(model, config)
    listed = read_prompts(model, prompt, config)
    check_room(model, listed, config)
    return _pieces(continue_texts(model, listed, config, chunk=4), config)


def _pieces(texts: Iterator[list[Generated]], config: GenerationConfig) -> Iterator[str]:
    shown = 0
    for (so_far,) in texts:
        text, going = so_far.text, so_far.ended == "length"
        if going and len(so_far.token_ids) < config.max_new_tokens:
            text = text[: _settled(text, config.stop)]
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)


def can_stream(model: Pretrained, settings: dict[str, Any]) -> bool:
    """Whether `stream` supports these settings: a single text, generated left to right."""
    config = build(GenerationConfig, settings, "generate")
    several = config.num_beams > 1 or config.num_return_sequences > 1 or config.penalty_alpha > 0
    return not (several or config.constrained or _fills(model, config))


def _fills(model: Pretrained, config: GenerationConfig) -> bool:
    """Whether masks are filled. A model that also continues texts does so if `infill` is set."""
    wanted = config.infill != GenerationConfig().infill
    return model.network.fills_masks and (wanted or not model.network.continues_texts)


def _check_left_to_right(model: Pretrained, config: GenerationConfig) -> None:
    if not model.network.continues_texts:
        raise ConfigError(
            f"model: {type(model.network).__name__} cannot generate text; use a GPT, XLNet, BERT or"
            " ELECTRA generator with its language-model head"
        )
    off = GenerationConfig()
    for name in ("infill", "iterations", "group_size"):
        if getattr(config, name) != getattr(off, name):
            raise ConfigError(
                f"{name}: applies to masked models, but {type(model.network).__name__} generates"
                " left to right; unset it"
            )


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """Returns the length of the text that later tokens cannot change."""
    end = len(text.rstrip("\ufffd"))
    for string in stop:
        for size in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:size]):
                end -= size
                break
    return end
