"""A tag for each word: by default, names and types of parameters in docstrings.

Nothing is downloaded: the rows are numpydoc sections, run on without the lines and colons that
would give names and types away. CoNLL columns: `--config.data.train=train.conll
--config.data.validation=dev.conll --config.task.words=0 --config.task.tags=-1`; JSON lines hold
two lists. Parts of speech: `--config.task.score=words`. About 2 minutes on two CPU cores with a
model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.tagging.Tagging"}
    data = {"test": "pydocs", "train_rows": 2000}
    return finetuning(task, data, learning_rate=1e-3, epochs=3)
