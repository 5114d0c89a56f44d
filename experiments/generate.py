"""Continues prompts, or fills their masks.

  python -m experiments.generate --model=runs/gpt --prompt="Returns the sum of"
  python -m experiments.generate --model=gpt2-hf --prompt="Once" --prompt="Then" \
      --temperature=0.8 --top_p=0.9 --num_return_sequences=2
  python -m experiments.generate --model=runs/gpt --prompts=lines.txt --num_beams=4 --jsonl

--model is a run of lmjax (its --workdir) or a Hugging Face directory. A single greedy or sampled
text of a GPT or XLNet is streamed. Settings are the fields of `GenerationConfig`, documented in
lmjax/generation/settings.py; --helpfull lists them.
"""

import dataclasses
import json
import sys
import typing
from typing import Any

from absl import flags

from experiments import command_line
from experiments.model_flag import one_model
from lmjax.data.files import lines_of, read_texts
from lmjax.errors import ConfigError
from lmjax.generation.settings import GenerationConfig

flags.DEFINE_string("draft", None, "A small GPT with the same tokenizer: speculative decoding.")
flags.DEFINE_multi_string("prompt", [], "A text to continue; may be given several times.")
flags.DEFINE_string(
    "prompts",
    None,
    "A file with one prompt per line, or JSON lines (.jsonl) with a 'prompt'; - reads one prompt"
    " per line from standard input.",
)
flags.DEFINE_bool(
    "jsonl", False, "Print a JSON object per text: text, token ids, log-probabilities."
)


def _define_settings() -> None:
    """Defines a flag for each field of `GenerationConfig`; None if it is not given."""
    for name, hint in typing.get_type_hints(GenerationConfig).items():
        about = f"GenerationConfig.{name}"
        if hint is bool:
            flags.DEFINE_bool(name, None, about)
        elif hint is int:
            flags.DEFINE_integer(name, None, about)
        elif hint is float:
            flags.DEFINE_float(name, None, about)
        elif typing.get_origin(hint) is tuple:
            flags.DEFINE_multi_string(name, None, f"{about}; may be given several times")
        elif name == "early_stopping":
            flags.DEFINE_enum(name, None, ["false", "true", "never"], about)
        else:
            flags.DEFINE_string(name, None, about)


_define_settings()


def main() -> None:
    values, path = flags.FLAGS.flag_values_dict(), one_model()
    prompts, settings = _prompts(values), _settings(values)
    import lmjax
    from lmjax.generation.api import can_stream, stream

    model = lmjax.load(path)
    draft = lmjax.load(values["draft"]) if values["draft"] else None
    single = len(prompts) == 1 and draft is None and not values["jsonl"]
    if single and can_stream(model, settings):
        print(prompts[0], end="", flush=True)
        for piece in stream(model, prompts[0], **settings):
            print(piece, end="", flush=True)
        print()
        return
    made = lmjax.generate(model, prompts, draft=draft, **settings)
    copies = len(made) // len(prompts)
    for place, text in enumerate(made):
        prompt = prompts[place // copies]
        if values["jsonl"]:
            fields = dataclasses.asdict(text)
            given = {k: _plain(v) for k, v in fields.items() if v is not None}
            print(json.dumps({"prompt": prompt, **given}, ensure_ascii=False))
            continue
        if len(made) > 1:
            print(f"--- {place // copies + 1}" + (f".{place % copies + 1}" if copies > 1 else ""))
        print(prompt + text.text if text.follows else text.text)
    if draft is not None and not values["jsonl"]:
        rates = [text.accepted for text in made if text.accepted is not None]
        print(f"accepted draft tokens: {sum(rates) / len(rates):.0%}", file=sys.stderr)


def _prompts(values: dict[str, Any]) -> list[str]:
    given = list(values["prompt"])
    if values["prompts"] == "-":
        lines = lines_of(sys.stdin.buffer, "standard input", "--prompts")
        given += [line for _, line in lines]
    elif values["prompts"]:
        given += read_texts(values["prompts"], "--prompts", column="prompt")
    if not given:
        raise ConfigError("--prompt: missing; give a prompt, or a file of prompts as --prompts")
    return given


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(GenerationConfig)]
    settings = {name: values[name] for name in names if values[name] is not None}
    if settings.get("early_stopping") in ("true", "false"):
        settings["early_stopping"] = settings["early_stopping"] == "true"
    return settings


def _plain(value: Any) -> Any:
    """Converts an array to a list with numbers rounded to float32 precision."""
    if not hasattr(value, "tolist"):
        return value
    return [round(x, 6) if isinstance(x, float) else x for x in value.tolist()]


if __name__ == "__main__":
    command_line.start(main)
