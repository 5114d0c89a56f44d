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

from experiments.command_line import size_of

TEMPLATES: dict[str, dict[str, Any]] = {
    "multiple_choice": {
        # As numpydoc lays out a parameter: the description below it, indented.
        "template": {"prompt": "{context}\n", "choices": ("choices",), "before": "    "},
        "data": {"train": "pydocs", "test": "pydocs"},
    },
    "classification": {
        "template": {"prompt": "{text}\nLabel:", "labels": ("0", "1")},
        "data": {"train": ""},
    },
}


def get_config(name: str = "multiple_choice") -> ConfigDict:
    """The config of one of TEMPLATES."""
    chosen = TEMPLATES[size_of(tuple(TEMPLATES), name)]
    template = {
        "label": "label",
        "labels": (),
        "words": (),
        "choices": (),
        "before": " ",
        "separator": "\n\n",
        "shots": 0,
        "unconditional": "Answer:",
    }
    data = {
        "validation": "",
        "test": "",
        "header": True,
        "on_bad_rows": "refuse",
        "train_rows": 0,
        "cache_dir": "",
    }
    return ConfigDict(
        {
            "seed": 0,
            "rows": 0,
            "template": template | chosen["template"],
            "data": data | chosen["data"],
        }
    )
