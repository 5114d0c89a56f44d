"""Extractive question answering: by default, what does a parameter do, given its docstring?

The default needs no download: questions and answers are built from numpydoc sections. SQuAD's JSON:
`--config.data.train=train-v1.1.json --config.data.test=dev-v1.1.json`, and
`--config.task.no_answer=true` for 2.0, which selects a threshold on the validation rows. The
papers' lengths are `--config.task.length=384 --config.task.question_length=64
--config.task.stride=128`. Takes about 3 minutes on two CPU cores with a model of
configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {
        "type": "lmjax.tasks.question_answering.QuestionAnswering",
        "question_length": 24,
        "stride": 64,
    }
    data = {"test": "pydocs", "train_rows": 3000}
    return finetuning(task, data, learning_rate=1e-3, epochs=3)
