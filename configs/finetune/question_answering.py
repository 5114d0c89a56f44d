"""Extractive question answering: by default, what a parameter does, out of its docstring.

Nothing is downloaded: questions and answers are made of numpydoc sections. SQuAD's JSON:
`--config.data.train=train-v1.1.json --config.data.test=dev-v1.1.json`, and
`--config.task.no_answer=true` for 2.0, whose threshold is then chosen on the validation rows; the
papers' lengths are `--config.task.length=384 --config.task.question_length=64
--config.task.stride=128`. About 3 minutes on two CPU cores with
a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {
        "type": "lmjax.tasks.question_answering.QuestionAnswering",
        "length": 128,
        "freeze": "",
        "question_length": 24,
        "stride": 64,
        "answer_length": 30,
        "n_best": 20,
        "no_answer": False,
        # None: for the best F1 of the validation rows.
        "null_threshold": placeholder(float),
    }
    data = {"test": "pydocs", "train_rows": 3000}
    return finetuning(task, data, learning_rate=1e-3, epochs=3)
