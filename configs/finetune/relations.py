"""Relation extraction: by default, does a type or default value belong to a parameter?

The default needs no download: two spans in numpydoc sections are marked, the name of a parameter
and a type or default value, which belongs to the same or to another parameter. Own data: the files
of SemEval-2010 task 8, `--config.data.train=TRAIN_FILE.TXT --config.data.test=TEST_FILE_FULL.TXT`,
or JSON lines with 'text', 'head' and 'tail' ([begin, end] in characters) and 'label'. The score is
SemEval's: macro-F1 over relations including their direction, without 'Other'. A type usually
directly follows its name, and the baseline, a linear model of the words between, has this feature;
a model of configs/quickstart.py does not beat it.
The run's model/ contains only the encoder; `lmjax.load` opens the run with its task.
Takes about 4 minutes on two CPU cores with a model of configs/quickstart.py.
"""

from ml_collections import ConfigDict

from configs.finetune.recipe import finetuning


def get_config() -> ConfigDict:
    task = {"type": "lmjax.tasks.relations.Relations", "length": 96}
    data = {"test": "pydocs"}
    return finetuning(task, data, learning_rate=5e-4, epochs=3)
