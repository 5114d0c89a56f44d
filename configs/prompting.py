"""Zero- and few-shot prompting; for experiments.evaluate.

  python -m experiments.evaluate --task=prompting --config=configs/prompting.py:multiple_choice \
      --model=runs/gpt --config.template.shots=2

`multiple_choice` uses embedded docstrings: which of four descriptions belongs to a parameter?
`classification` needs data, e.g. reviews.csv with the columns `text` and `label` (0 or 1):

  --config=configs/prompting.py:classification --config.data.train=reviews.csv \
      --config.data.test=test.csv --config.template.prompt='{text} It was' \
      --config.template.labels="('0', '1')" --config.template.words="('terrible', 'great')"

`data` is a RowsConfig (lmjax/data/rows.py): shots are drawn from `train`; `test`, or else
`validation`, is evaluated. `template` is a lmjax.evaluation.prompting.Template. `rows` is the
number of evaluated rows, sampled with the seed; 0 = all.
"""

from typing import Any

from ml_collections import ConfigDict

from lmjax.configuration import size_of

TEMPLATES: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        # The layout of a parameter in numpydoc: an indented description below the name.
        "template": {"prompt": "{context}\n", "choices": ("choices",), "before": "    "},
        "data": {"train": "pydocs", "test": "pydocs"},
    },
    "classification": {
        "template": {"prompt": "{text}\nLabel:", "labels": ("0", "1")},
        "data": {},  # set on the command line
    },
}


def get_config(name: str = "multiple_choice") -> ConfigDict:
    """Returns the config of one of TEMPLATES."""
    return ConfigDict(TEMPLATES[size_of(TEMPLATES, name)])
