"""What may be asked of generation, checked."""

import dataclasses
import math
import typing
from typing import Literal

from lmjax.errors import ConfigError

Method = Literal["sample", "greedy", "beam", "contrastive"]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How text is continued. The defaults draw from the model's own distribution.

    Attributes:
      max_new_tokens: at most; fewer where the text ends.
      method: `sample` draws each token; `greedy` takes the likeliest; `beam` keeps the `beams`
        likeliest texts; `contrastive` takes, of the `top_k` likeliest tokens, one that repeats
        little (Su et al. 2022).
      temperature: divides logits before drawing.
      top_k: draw from so many of the likeliest, and those as likely as the last; 0 = all. Of
        contrastive search, how many are looked at.
      top_p: draw from the fewest that hold this share of the probability (Holtzman et al. 2020).
      min_p: draw from those at least so likely, as a share of the likeliest (Nguyen et al. 2024).
      typical_p: draw from the most typical that hold this share (Meister et al. 2023).
      repetition_penalty: divides positive logits of tokens that are in the text already and
        multiplies negative ones (Keskar et al. 2019, as `transformers` has it); 1 = none.
      presence_penalty: is taken off the logits of tokens generated already.
      no_repeat_ngram: no n-gram of this size comes twice; 0 = any may.
      beams, length_penalty: of `beam`, whose texts are ranked by log p / tokens^length_penalty.
      returned: texts a prompt, the best beams first; more than 1 with `beam` alone.
      penalty_alpha: of contrastive search, the weight of dissimilarity.
      stop: strings that end a text, and are not part of it.
      begin: put the token that begins a document in front; an empty prompt always has it.
      seed: of the draws; a prompt's depend on it and on the prompt's place among the prompts.
    """

    max_new_tokens: int = 64
    method: Method = "sample"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    beams: int = 4
    length_penalty: float = 1.0
    returned: int = 1
    penalty_alpha: float = 0.6
    stop: tuple[str, ...] = ()
    begin: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in typing.get_args(Method):
            known = ", ".join(typing.get_args(Method))
            raise ConfigError(f"method: '{self.method}' is not one of {known}")
        for name in ("max_new_tokens", "beams", "returned"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("top_k", "no_repeat_ngram", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: must not be negative, got {getattr(self, name)}")
        for name in ("temperature", "repetition_penalty"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ConfigError(
                    f"{name}: must be positive, got {getattr(self, name)}"
                    + ("; method='greedy' takes the likeliest" if name == "temperature" else "")
                )
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}: must lie in (0, 1], got {getattr(self, name)}")
        for name in ("min_p", "penalty_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: must lie in [0, 1], got {getattr(self, name)}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ConfigError(f"stop: a tuple of strings that are not empty, got {self.stop!r}")
        if self.returned > (self.beams if self.method == "beam" else 1):
            raise ConfigError(
                f"returned: {self.returned} texts a prompt need method='beam' with as many beams"
            )
        if self.method == "contrastive" and self.top_k < 1:
            raise ConfigError("top_k: contrastive search looks at some of the likeliest; take 4")
