"""`lmjax.generate`: one door to every way of generating text."""

from collections.abc import Iterator
from typing import Any

from lmjax.configuration import build
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.generation.beams import search_beams
from lmjax.generation.continuing import continue_texts
from lmjax.generation.contrastive import search_contrastively
from lmjax.generation.generated import Generated
from lmjax.generation.prompts import Prompts, read_prompts
from lmjax.generation.readers import check_reader
from lmjax.generation.settings import GenerationConfig
from lmjax.generation.speculative import speculate


def generate(
    model: Pretrained, prompts: Prompts, *, draft: Pretrained | None = None, **settings: Any
) -> list[Generated]:
    """Goes on with each prompt.

    Args:
      model: of `lmjax.load`.
      prompts: a string, or several, each a string or a list of token ids.
      draft: a smaller GPT of the same tokenizer that proposes tokens (speculative decoding).
      **settings: fields of `GenerationConfig`.

    Returns:
      For each prompt in order its `num_return_sequences` texts; beams with the best first.

    Raises:
      ConfigError: a setting that cannot be, or a model that generates nothing.
    """
    config = build(GenerationConfig, settings, "generate")
    check_reader(model.network)
    listed = read_prompts(model, prompts, config)
    if draft is not None:
        return speculate(model, draft, listed, config)
    if config.num_beams > 1:
        return search_beams(model, listed, config)
    if config.penalty_alpha:
        return search_contrastively(model, listed, config)
    texts: list[Generated] = []
    for texts in continue_texts(model, listed, config):  # noqa: B007
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
    check_reader(model.network)
    listed = read_prompts(model, prompt, config)
    if len(listed) > 1 or config.num_beams > 1 or config.penalty_alpha:
        raise ConfigError("prompts: a stream is of one text, sampled or greedy")
    shown = 0
    for (so_far,) in continue_texts(model, listed, config, chunk=4):
        text, going = so_far.text, so_far.ended == "length"
        if going and len(so_far.token_ids) < config.max_new_tokens:
            text = text[: _settled(text, config.stop)]
        if len(text) > shown:
            yield text[shown:]
            shown = len(text)


def _settled(text: str, stop: tuple[str, ...]) -> int:
    """How much of the text can be shown whatever follows."""
    end = len(text.rstrip("\ufffd"))
    for string in stop:
        for size in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:size]):
                end -= size
                break
    return end
