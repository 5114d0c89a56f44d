"""Multiple choice: by default, which of four descriptions belongs to a parameter?

The default needs no download: the context is a parameter's name and type from a docstring, the
choices are its description and those of three other parameters of the same package. Own data: JSON
lines with a text, a list of texts and the index of the correct one, from 0. Takes about 5 minutes
on two CPU cores with a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.multiple_choice.MultipleChoice", "length": 48}
    data = {"test": "pydocs"}
    return finetuning(task, data, learning_rate=1e-3, epochs=5)
