"""Continues text with a pretrained model.

  python -m experiments.generate --model=runs/gpt --prompt="Returns the sum of" --top_p=0.9
  python -m experiments.generate --model=gpt2 --file=prompts.txt --method=beam --json > out.jsonl

A run of lmjax or a Hugging Face directory of GPT-2 or XLNet. One prompt is shown as it is written;
several (a line each in --file, '-' for standard input) are written together.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags

from experiments import command_line
from lmjax.errors import ConfigError
from lmjax.generation.config import GenerationConfig

MODEL = flags.DEFINE_string("model", "", "A run, or a Hugging Face directory.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to go on with; may be given again.")
FILE = flags.DEFINE_string("file", "", "A file of prompts, a line each; '-' reads them.")
JSON = flags.DEFINE_bool("json", False, "Write a JSON object a text, with its tokens and scores.")
STOP = flags.DEFINE_multi_string("stop", [], "A string that ends a text; may be given again.")
_DEFINE: dict[type, Any] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    str: flags.DEFINE_string,
}
SETTINGS = {
    field.name: _DEFINE[type(field.default)](
        field.name, field.default, "See lmjax.generation.config.GenerationConfig."
    )
    for field in dataclasses.fields(GenerationConfig)
    if field.name != "stop"
}


def main() -> None:
    settings = {name: flag.value for name, flag in SETTINGS.items()} | {"stop": tuple(STOP.value)}
    prompts = read_prompts()
    if not MODEL.value:
        raise ConfigError("--model: missing; give a run, such as runs/gpt")
    import lmjax  # after the flags: it takes seconds

    try:
        GenerationConfig(**settings)  # before anything is opened
        model = lmjax.load(MODEL.value)
        if len(prompts) == 1 and settings["method"] != "beam" and not JSON.value:
            print(prompts[0], end="", flush=True)
            for piece in lmjax.stream(model, prompts[0], **settings):
                print(piece, end="", flush=True)
            print()
            return
        found = lmjax.generate(model, prompts, **settings)
    except ConfigError as error:
        raise ConfigError(str(error).replace("generate.", "--", 1)) from error
    for i, one in enumerate(found):
        prompt = prompts[i // settings["returned"]]
        if JSON.value:
            line = {"prompt": prompt, **dataclasses.asdict(one)}
            print(json.dumps(line, ensure_ascii=False))
        else:
            print(f"{prompt}{one.text}\n")


def read_prompts() -> list[str]:
    """Of the flags, or of a file."""
    if FILE.value and PROMPT.value:
        raise ConfigError("--file: give prompts by --prompt or in a file, not both")
    if not FILE.value:
        return PROMPT.value or [""]
    try:
        text = (
            sys.stdin.read()
            if FILE.value == "-"
            else pathlib.Path(FILE.value).read_text(encoding="utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file: '{FILE.value}' cannot be read ({error})") from error
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"--file: no prompt in '{FILE.value}'; a line each")
    return prompts


if __name__ == "__main__":
    command_line.start(main)
