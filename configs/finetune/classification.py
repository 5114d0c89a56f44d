"""Text classification: by default, which of eight packages does a docstring document?

The default needs no download: rows are docstrings without the packages' names. Own data:
`--config.data.train=reviews.csv --config.data.test=test.csv --config.task.text=sentence
--config.task.label=label`, and `--config.task.pair=...` for a second text. Regression instead of
classification: `--config.task.type=lmjax.tasks.classification.Regression`. Takes about 2 minutes on
two CPU cores with a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.classification.Classification", "length": 64}
    data = {"test": "pydocs", "train_rows": 4000}
    return finetuning(task, data, learning_rate=1e-3, epochs=3)
