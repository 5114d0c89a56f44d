"""Token classification: by default, names and types of parameters in docstrings.

The default needs no download: rows are numpydoc sections without the line breaks and colons that
would reveal names and types. CoNLL columns: `--config.data.train=train.conll
--config.data.validation=dev.conll --config.task.words=0 --config.task.tags=-1`; JSON lines have two
lists. Parts of speech: `--config.task.score=words`. Takes about 2 minutes on two CPU cores with a
model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.tagging.Tagging"}
    data = {"test": "pydocs", "train_rows": 2000}
    return finetuning(task, data, learning_rate=1e-3, epochs=3)
