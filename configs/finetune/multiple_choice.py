"""Multiple choice: by default, which of four descriptions is that of a parameter.

Nothing is downloaded: the context is the parameter's name and type out of a docstring, the
choices are what docstrings of the same package say of it and of three others. Own data: JSON
lines of a text, a list of texts and the number of the right one, from 0. About 5 minutes on two
CPU cores with a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.multiple_choice.MultipleChoice", "length": 48}
    data = {"test": "pydocs"}
    return finetuning(task, data, learning_rate=1e-3, epochs=5)
