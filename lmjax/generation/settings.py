"""The settings of `lmjax.generate`."""

import dataclasses
import math
from typing import Annotated, Literal

from lmjax.configuration import (
    Interval,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Seed,
    check_ranges,
)
from lmjax.errors import ConfigError

Infill = Literal["confidence", "mask_predict", "gibbs", "ancestral", "any_order"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is generated.

    The fields select the method: beam search if `num_beams` > 1, contrastive search if
    `penalty_alpha` > 0, greedy search if `temperature` is 0, and sampling otherwise. Filters of
    the distribution apply in the order of the fields below, which is that of `transformers`.

    Attributes:
      max_new_tokens: the most new tokens; for a masked model, the number of appended masks.
      repetition_penalty: divides positive logits of tokens in the text, including the prompt, and
        multiplies negative ones (Keskar et al. 2019 §4.1, as in `transformers`).
      presence_penalty: is subtracted from the logits of tokens that were already generated.
      no_repeat_ngram_size: no n-gram of this size occurs twice, including the prompt; 0 = off.
      temperature: divides the logits; 0 = the most probable token.
      top_k: keeps the k most probable tokens and ties with the last of them; 0 = all.
      top_p: keeps the smallest set of most probable tokens with this mass (Holtzman et al. 2020).
      min_p: keeps tokens with at least this fraction of the largest probability (Nguyen et al.
        2024).
      typical_p: keeps the smallest set with this mass whose information is closest to the entropy
        (Meister et al. 2023).
      num_beams: number of beams.
      length_penalty: the score of a finished text is log-probability / new tokens ** this.
      early_stopping: when beam search stops. True: `num_beams` texts are finished. False: the best
        running beam, at its current length, is worse than the worst of `num_beams` finished ones.
        'never': likewise, at the length most favorable to the running beam.
      num_return_sequences: texts per prompt: samples, or the best beams.
      penalty_alpha: of contrastive search (Su et al. 2022 eq. 5), over `top_k` candidates.
      draft_tokens: tokens that the draft model proposes per round of speculative decoding.
      infill: how a masked model fills masks. 'confidence': one at a time, the most probable first.
        'mask_predict': all at once, then the least probable ones again, in `iterations` rounds
        (Ghazvininejad et al. 2019 §3). 'gibbs': resamples one random position at a time, in
        `iterations` sweeps (Wang & Cho 2019 §2). 'ancestral': samples each mask once, in one of
        `iterations` steps at random, as in a masked diffusion (Sahoo et al. 2024, eq. 7).
        'any_order': `group_size` at a time, in a random order. XLNet fills masks if this is set to
        another value than 'confidence'; otherwise it continues the prompt.
      iterations: rounds of 'mask_predict', sweeps of 'gibbs' or steps of 'ancestral'.
      group_size: masks that 'any_order' fills at a time, each given the tokens before its group.
      stop: strings that end the text; they are not part of it.
      choices: strings; the generated text is one of them.
      regex: a regular expression that matches the whole generated text.
      json_schema: a JSON schema, as text, for the generated text.
      add_bos: puts the token that begins a document before prompts given as strings, as in
        training (GPT only; prompts given as ids are not changed).
      ignore_eos: generation continues after the end of a document.
      seed: a sample depends on the seed, the prompt's tokens and the number of earlier copies of
        the prompt, but not on other prompts.
    """

    max_new_tokens: PositiveInt = 64
    # Within these penalties logits stay finite in float32.
    repetition_penalty: Annotated[float, Interval("[1e-3, 1e3]")] = 1.0
    presence_penalty: Annotated[float, Interval("[-1e6, 1e6]")] = 0.0
    no_repeat_ngram_size: NonNegativeInt = 0
    temperature: Annotated[float, Interval("[0, inf)")] = 0.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Interval("(0, 1]")] = 1.0
    min_p: Probability = 0.0
    typical_p: Annotated[float, Interval("(0, 1]")] = 1.0
    num_beams: PositiveInt = 1
    length_penalty: Annotated[float, Interval("[-100, 100]")] = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: PositiveInt = 1
    penalty_alpha: Probability = 0.0
    draft_tokens: PositiveInt = 4
    infill: Infill = "confidence"
    iterations: PositiveInt = 10
    group_size: PositiveInt = 1
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    regex: str = ""
    json_schema: str = ""
    add_bos: bool = True
    ignore_eos: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if abs(self.length_penalty) * math.log10(self.max_new_tokens) > 30:
            raise ConfigError(
                f"length_penalty: max_new_tokens={self.max_new_tokens} to the power of"
                f" {self.length_penalty} overflows; use a value closer to 0"
            )
        if "" in self.stop:
            raise ConfigError("stop: an empty string ends every text immediately; remove it")
        if "" in self.choices:
            raise ConfigError("choices: an empty string is not a choice; remove it")
        self._check_method()

    @property
    def constrained(self) -> bool:
        """Whether `choices`, `regex` or `json_schema` constrains the text."""
        return bool(self.choices or self.regex or self.json_schema)

    def _check_method(self) -> None:
        filters = [
            name
            for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0), ("typical_p", 1.0))
            if getattr(self, name) != off
        ]
        if self.penalty_alpha:
            if self.temperature or self.num_beams > 1:
                raise ConfigError(
                    "penalty_alpha: contrastive search uses neither sampling nor beams; set"
                    " temperature to 0 and num_beams to 1"
                )
            if self.top_k < 2:
                raise ConfigError("top_k: contrastive search needs at least 2; 4 is common")
            filters.remove("top_k")
        if self.infill in ("gibbs", "ancestral") and not self.temperature:
            raise ConfigError(
                f"infill: '{self.infill}' samples; set temperature above 0, e.g. to 1"
            )
        if self.group_size > 1 and self.infill != "any_order":
            raise ConfigError(
                f"group_size: infill='{self.infill}' has no groups; set infill to 'any_order'"
            )
        if filters and not self.temperature:
            raise ConfigError(f"{filters[0]}: applies only to sampling; set temperature above 0")
        if self.num_beams > 1 and self.temperature:
            raise ConfigError("num_beams: beam search does not sample; set temperature to 0")
        if self.num_beams > 1 and self.stop:
            raise ConfigError("stop: beam search does not support stop strings; set num_beams to 1")
        if self.num_beams > 1 and self.constrained:
            raise ConfigError("num_beams: beam search does not support constraints; set it to 1")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences: {self.num_return_sequences} exceeds"
                f" num_beams={self.num_beams}; reduce it"
            )
        greedy = self.num_beams == 1 and not self.temperature
        if greedy and self.num_return_sequences > 1:
            raise ConfigError(
                "num_return_sequences: greedy search gives identical texts; set temperature or"
                " num_beams"
            )
        if sum(map(bool, (self.choices, self.regex, self.json_schema))) > 1:
            raise ConfigError("regex: set only one of choices, regex and json_schema")
