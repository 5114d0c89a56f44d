"""Style classification: by default, does a docstring describe ('Returns') or command ('Return')?

`python -m experiments.applications.restyle` uses the run. Own styles, e.g. the two classes of
SST-2: `--config.data.train=train.tsv --config.task.text=sentence --config.task.label=label`.
"""

from ml_collections import ConfigDict

from configs.finetune import classification


def get_config() -> ConfigDict:
    config = classification.get_config()
    config.task.pydocs = "moods"
    config.task.length = 48
    config.data.train_rows = 0
    return config
