"""Sentence embeddings: by default, which of all docstrings does a summary line stand over?

Nothing is downloaded: a pair is the summary of a docstring and what stands below it. Own
pairs: `--config.data.train=pairs.jsonl --config.task.text=query --config.task.pair=answer`.
Texts alone, by dropout (SimCSE): `--config.task.loss_form=simcse`. Pairs with a number, as
STS-B: `--config.task.loss_form=cosine --config.task.label=score --config.task.highest=5.0`.
In-batch negatives make the batch part of the task: config.training.batch_size is a setting of
the model, not of the machine. Summaries share words with what they stand over: TF-IDF is hard
to beat here, and a model of configs/quickstart.py does not. About 3 minutes with one on two CPU
cores.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {
        "type": "lmjax.tasks.embeddings.Embeddings",
        "length": 64,
        "head_dropout": 0.0,
    }
    data = {"test": "pydocs", "train_rows": 6000}
    config = finetuning(task, data, learning_rate=5e-4, epochs=3)
    config.training.batch_size = 64
    return config
