"""Intent recognition: by default, which subpackage is a question about a parameter about?

The default needs no download: questions are built from parameters in docstrings. Own data, e.g.
banking77 or SNIPS: `--config.data.train=train.csv --config.data.test=test.csv
--config.task.text=text --config.task.label=category`.
`python -m experiments.applications.support_desk` uses the run to answer questions.
"""

from ml_collections import ConfigDict

from configs.finetune import classification


def get_config() -> ConfigDict:
    config = classification.get_config()
    config.task.pydocs = "intents"
    config.task.length = 32
    config.data.train_rows = 0
    return config
