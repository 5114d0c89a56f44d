"""Text from text: by default, what a function does, from its signature.

Nothing is downloaded: the prompt is a qualified name with its parameters, the target the first
sentence of the docstring. For GPTs: `--config.init=runs/gpt` or a GPT-2 of Hugging Face. Own
data: `--config.data.train=articles.jsonl --config.data.test=test.jsonl
--config.task.prompt=article --config.task.target=summary`. `lmjax.generate(lmjax.load(workdir),
"numpy argsort(a, axis, kind) [SEP]")` then goes on with a prompt.
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
