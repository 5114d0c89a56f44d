"""Intent recognition: by default, which subpackage a question about a parameter is about.

Nothing is downloaded: the questions are made of the parameters that docstrings list. Own data,
such as banking77 or SNIPS: `--config.data.train=train.csv --config.data.test=test.csv
--config.task.text=text --config.task.label=category`.
`python -m experiments.applications.support_desk` answers questions with the run.
"""

from ml_collections import ConfigDict

from configs.finetune import classification


def get_config() -> ConfigDict:
    config = classification.get_config()
    config.task.pydocs = "intents"
    config.task.length = 32
    config.data.train_rows = 0
    return config
