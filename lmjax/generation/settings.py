"""What `lmjax.generate` can be asked for."""

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

Infill = Literal["confidence", "mask_predict", "gibbs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How text is generated.

    Which method it is follows from the fields: `num_beams` above 1 is beam search,
    `penalty_alpha` above 0 contrastive search, a temperature of 0 greedy search, and any other
    temperature sampling. Filters of the distribution apply in the order in which they stand here,
    which is that of `transformers`.

    Attributes:
      max_new_tokens: at most so many; of a masked model, how many masks are appended.
      repetition_penalty: logits of tokens in the text, prompt included, are divided by it where
        positive and multiplied where negative (Keskar et al. 2019 §4.1, as `transformers` has it).
      presence_penalty: taken off the logits of tokens generated before.
      no_repeat_ngram_size: no n-gram of this size comes twice, prompt included; 0 = off.
      temperature: divides the logits; 0 = the most probable token.
      top_k: only the k most probable, and what ties with the last of them; 0 = all.
      top_p: the smallest set of the most probable that holds this mass (Holtzman et al. 2020).
      min_p: only what has this part of the largest probability (Nguyen et al. 2024).
      typical_p: the smallest set of this mass whose information is nearest to the entropy
        (Meister et al. 2023).
      num_beams: of beam search.
      length_penalty: a finished text's score is its log-probability / new tokens ** this.
      early_stopping: False ends when the best running beam, at its length now, is worse than
        the worst of `num_beams` finished; 'never' at the length that suits it best; True as soon
        as so many are finished.
      num_return_sequences: texts for each prompt: samples, or the best beams.
      penalty_alpha: of contrastive search (Su et al. 2022 eq. 5), over `top_k` candidates.
      draft_tokens: proposed by the draft model before the model looks at them.
      infill: how a masked model fills masks: 'confidence' one after the other, the most
        probable first; 'mask_predict' all at once, the least probable again, in `iterations`
        rounds (Ghazvininejad et al. 2019 §3); 'gibbs' one drawn again at random places, in
        `iterations` sweeps (Wang & Cho 2019 §2).
      iterations: of 'mask_predict' and 'gibbs'.
      stop: strings, each of which ends the text before it.
      choices: strings, one of which the generated text is to be.
      regex: a regular expression that the generated text matches as a whole.
      json_schema: a JSON schema, as text, that the generated text fits.
      add_bos: the token that begins a document stands before a prompt given as a string, as
        in training (GPT alone; prompts given as ids are taken as they are).
      ignore_eos: the end of a document ends nothing.
      seed: a sample depends on it, on the prompt's tokens and on how often the same prompt
        came before, not on the other prompts.
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
                f" {self.length_penalty} overflows; give one nearer to 0"
            )
        if "" in self.stop:
            raise ConfigError("stop: an empty string would end every text at once")
        if "" in self.choices:
            raise ConfigError("choices: an empty string is none to choose")
        self._check_method()

    @property
    def constrained(self) -> bool:
        """Whether `choices`, `regex` or `json_schema` says what may be generated."""
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
                    "penalty_alpha: contrastive search neither samples nor keeps beams; leave"
                    " temperature at 0 and num_beams at 1"
                )
            if self.top_k < 2:
                raise ConfigError("top_k: contrastive search chooses among at least 2; 4 is usual")
            filters.remove("top_k")
        if self.infill == "gibbs" and not self.temperature:
            raise ConfigError("infill: 'gibbs' samples; set temperature above 0, 1 is usual")
        if filters and not self.temperature:
            raise ConfigError(
                f"{filters[0]}: it shapes what samples are drawn from; set temperature above 0"
            )
        if self.num_beams > 1 and self.temperature:
            raise ConfigError("num_beams: beams are searched, not sampled; leave temperature at 0")
        if self.num_beams > 1 and self.stop:
            raise ConfigError("stop: beam search ends at the end of a document only")
        if self.num_beams > 1 and self.constrained:
            raise ConfigError("num_beams: constrained text is searched with one beam")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences: {self.num_return_sequences} of {self.num_beams} beams"
            )
        greedy = self.num_beams == 1 and not self.temperature
        if greedy and self.num_return_sequences > 1:
            raise ConfigError(
                "num_return_sequences: greedy texts are all the same; set temperature or num_beams"
            )
        if sum(map(bool, (self.choices, self.regex, self.json_schema))) > 1:
            raise ConfigError("regex: give one of choices, regex and json_schema")
