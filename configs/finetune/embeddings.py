"""Sentence embeddings: by default, which docstring belongs to a summary line?

The default needs no download: a pair is the summary of a docstring and the text below it. Own
pairs: `--config.data.train=pairs.jsonl --config.task.text=query --config.task.pair=answer`.
Single texts with dropout as noise (SimCSE): `--config.task.loss_form=simcse`. Pairs with a score,
e.g. STS-B: `--config.task.loss_form=cosine --config.task.label=score --config.task.highest=5.0`.
With in-batch negatives, config.training.batch_size is a hyperparameter of the model and should not
be chosen by the machine. Summaries share words with the text below them, so TF-IDF is a strong
baseline; a model of configs/quickstart.py does not beat it. Takes about 3 minutes with one on two
CPU cores.
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
