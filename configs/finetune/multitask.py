"""Two tasks on one encoder: which package a docstring documents, and its names and types.

For `python -m experiments.finetune_several`; `init` is needed. A step is of one task, drawn in
proportion to n^(1 / temperature) of its n examples. A task is 'task' and 'data' as in any other
config of this directory. About 2 minutes on two CPU cores with a model of
configs/quickstart.py.
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
