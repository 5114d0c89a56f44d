"""`lmjax.generate`: one door to every way of generating text."""

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
    """Goes on with each prompt; a masked model fills its masks, or masks behind it.

    Args:
      model: of `lmjax.load`.
      prompts: a string, or several, each a string or a list of token ids. A string names special
        tokens by writing them out: '[MASK]'.
      draft: a smaller GPT of the same tokenizer that proposes tokens (speculative decoding).
      **settings: fields of `GenerationConfig`.

    Returns:
      For each prompt in order its `num_return_sequences` texts; beams with the best first.

    Raises:
      ConfigError: a setting that cannot be, or a model that generates nothing.
    """
    config = build(GenerationConfig, settings, "generate")
    masked = model.network.fills_masks
    listed = read_prompts(model, prompts, config)
    if masked and draft is None:
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
    """The text that follows one prompt, in pieces as it comes; sampled or greedy.

    What may be the beginning of a stop string, or half a character, is held back until it
    is known.

    Raises:
      ConfigError: as `generate`, and more than one text at a time.
    """
    config = build(GenerationConfig, settings, "generate")
    if not can_stream(model, settings):
        raise ConfigError("prompts: a stream is of one text from left to right, sampled or greedy")
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
    """Whether `stream` takes these settings: one text, whose tokens come one after the other."""
    config = build(GenerationConfig, settings, "generate")
    several = config.num_beams > 1 or config.num_return_sequences > 1 or config.penalty_alpha > 0
    return not (several or config.constrained or model.network.fills_masks)


def _check_left_to_right(model: Pretrained, config: GenerationConfig) -> None:
    if not model.network.continues_texts:
        raise ConfigError(
            f"model: {type(model.network).__name__} generates no text; give a GPT, XLNet, BERT or"
            " ELECTRA generator with its language-model head"
        )
    off = GenerationConfig()
    for name in ("infill", "iterations"):
        if getattr(config, name) != getattr(off, name):
            raise ConfigError(
                f"{name}: it is for masked models, and {type(model.network).__name__} writes"
                " from left to right"
            )


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """How much of the text can be shown whatever follows."""
    end = len(text.rstrip("\ufffd"))
    for string in stop:
        for size in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:size]):
                end -= size
                break
    return end
