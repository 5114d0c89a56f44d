"""Conditional generation: by default, what does a function do, given its signature?

The default needs no download: the prompt is a qualified name with its parameters, the target the
first sentence of the docstring. Needs a GPT: `--config.init=runs/gpt` or a Hugging Face GPT-2. Own
data: `--config.data.train=articles.jsonl --config.data.test=test.jsonl
--config.task.prompt=article --config.task.target=summary`. `lmjax.generate(lmjax.load(workdir),
"numpy argsort(a, axis, kind) [SEP]")` then continues a prompt.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {
        "type": "lmjax.tasks.generation.Generation",
        "length": 64,
        "head_dropout": 0.0,
        "target_length": 24,
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
    }
    data = {"test": "pydocs"}
    config = finetuning(task, data, learning_rate=3e-3, epochs=6)
    config.model.type = "lmjax.models.gpt.GptConfig"
    return config
