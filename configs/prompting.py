"""Questions to models that were never trained to answer them; for experiments.evaluate.

  python -m experiments.evaluate --task=prompting --config=configs/prompting.py:multiple_choice \
      --model=runs/gpt --config.template.shots=2

`multiple_choice` needs no download: which of four descriptions is that of a parameter, out of
docstrings. `classification` needs data, such as reviews.csv with the columns `text` and `label`
(0 or 1):

  --config=configs/prompting.py:classification --config.data.train=reviews.csv \
      --config.data.test=test.csv --config.template.prompt='{text} It was' \
      --config.template.labels="('0', '1')" --config.template.words="('terrible', 'great')"

`data` is RowsConfig (lmjax/data/rows.py): `train` is what shots are drawn from, `test` (or else
`validation`) what is asked. `template` is lmjax.evaluation.prompting.Template. `rows` is how many
are asked, drawn by the seed; 0 = all.
"""

from typing import Any

from ml_collections import ConfigDict

from lmjax.configuration import size_of

TEMPLATES: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        # As numpydoc lays out a parameter: the description below it, indented.
        "template": {"prompt": "{context}\n", "choices": ("choices",), "before": "    "},
        "data": {"train": "pydocs", "test": "pydocs"},
    },
    "classification": {
        "template": {"prompt": "{text}\nLabel:", "labels": ("0", "1")},
        "data": {},  # which rows, the command says
    },
}


def get_config(name: str = "multiple_choice") -> ConfigDict:
    """The config of one of TEMPLATES."""
    return ConfigDict(TEMPLATES[size_of(TEMPLATES, name)])
