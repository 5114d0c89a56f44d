"""Multiple choice: by default, which of four sentences goes on with a docstring.

Nothing is downloaded: the context is a docstring's first sentence, the choices are its second
and those of others of the same package. Own data: JSON lines of a text, a list of texts and the
number of the right one, from 0. About 4 minutes on two CPU cores with a model of
configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {
        "type": "lmjax.tasks.multiple_choice.MultipleChoice",
        "length": 64,
        "head_dropout": 0.1,
        "freeze": "",
        "context": "context",
        "choices": "choices",
        "label": "label",
        "most_choices": 0,
    }
    data = {"test": "pydocs", "train_rows": 3000}
    return finetuning(task, data, learning_rate=5e-4, epochs=3)
