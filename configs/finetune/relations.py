"""Relation extraction: by default, is this type or this default value that parameter's?

Nothing is downloaded: two spans of numpydoc sections are marked, a parameter's name and a
type or default that is its own or another parameter's. Own data: SemEval-2010 task 8's files
as they are, `--config.data.train=TRAIN_FILE.TXT --config.data.test=TEST_FILE_FULL.TXT`, or JSON
lines with 'text', 'head' and 'tail' ([begin, end] in characters) and 'label'. The score is
SemEval's: macro-F1 over the relations in their right direction, without 'Other'. A type mostly
stands right behind its name, which the baseline, a linear model of the words between, is told; a
model of configs/quickstart.py does not beat it.
model/ of the run is the encoder alone; `lmjax.load` opens the run with its task.
About 4 minutes on two CPU cores with a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.relations.Relations", "length": 96}
    data = {"test": "pydocs"}
    return finetuning(task, data, learning_rate=5e-4, epochs=3)
