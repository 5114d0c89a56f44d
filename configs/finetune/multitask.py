"""Multi-task fine-tuning: classification of docstrings by package, and tagging of parameters.

For `python -m experiments.finetune_several`; requires `init`. Each step trains one task, sampled in
proportion to n^(1 / temperature), where n is its number of examples. Each task has blocks 'task'
and 'data' as in the other configs of this directory. Takes about 2 minutes on two CPU cores with a
model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune import classification, tagging


def get_config() -> ConfigDict:
    config = classification.get_config()
    tasks = {"packages": config, "parameters": tagging.get_config()}
    blocks = {name: {"task": one.task, "data": one.data} for name, one in tasks.items()}
    del config.task
    del config.data
    config.tasks = ConfigDict(blocks)
    config.compare_scratch = False
    return config
