"""Judges pretrained models without training, by minimal pairs (BLiMP) or by perplexity.

  python -m experiments.evaluate --data=blimp.jsonl --model=runs/gpt --model=runs/bert \
      --unigram=pydocs --out=blimp
  python -m experiments.evaluate --task=perplexity --data='texts/*.txt' --model=runs/gpt --stride=64

Minimal pairs: a column a model, scored in its family's own way (--method takes another), beside
chance and token frequencies of the corpus --unigram. Leaves OUT.md with the table and OUT.jsonl
with every pair. Perplexity: of causal models, each document by itself in overlapping windows.
"""

import json
import pathlib

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.errors import ConfigError

TASK = flags.DEFINE_enum("task", "minimal_pairs", ["minimal_pairs", "perplexity"], "What to do.")
LENGTH = flags.DEFINE_integer("length", 0, "Of a window in tokens; 0 = all positions.")
STRIDE = flags.DEFINE_integer("stride", 0, "From window to window; 0 = half of one.")
MODELS = flags.DEFINE_multi_string("model", [], "A run or Hugging Face directory; repeatable.")
DATA = flags.DEFINE_string("data", "", "Pairs: JSON lines, .gz or .xz too. Perplexity: a corpus.")
METHOD = flags.DEFINE_string("method", "", "causal, pseudo, left_to_right or discriminator.")
PER_PARADIGM = flags.DEFINE_integer("per_paradigm", 0, "Pairs of each paradigm; 0 = all.")
UNIGRAM = flags.DEFINE_string("unigram", "", "Corpus whose token frequencies are a baseline.")
OUT = flags.DEFINE_string("out", "", "Where to write, without the ending; '' = nowhere.")


def main() -> None:
    if not MODELS.value:
        raise ConfigError("--model: missing; give a run, such as runs/gpt")
    if not DATA.value:
        raise ConfigError("--data: missing; give a file, such as blimp.jsonl")
    minimal_pairs() if TASK.value == "minimal_pairs" else perplexities()


def perplexities() -> None:
    """A line a model."""
    import lmjax  # after the flags: it takes seconds
    from lmjax.data.corpora import open_corpus
    from lmjax.evaluation.perplexity import perplexity

    columns = ("model", "tokens", "words", "perplexity a token", "a word", "bits per byte")
    table = Table(*columns)
    for path in MODELS.value:
        documents = open_corpus(DATA.value, "all", where="--data").documents()
        found = perplexity(lmjax.load(path), documents, LENGTH.value, STRIDE.value)
        table.add_row(
            path,
            f"{found.tokens:,}",
            f"{found.words:,}",
            f"{found.per_token:.2f}",
            f"{found.per_word:.2f}",
            f"{found.bits_per_byte:.4f}",
        )
    Console(width=100).print(table)


def minimal_pairs() -> None:
    """A table, and files of what it is made of."""
    import lmjax  # after the flags: it takes seconds
    from lmjax.data.store import DataConfig, prepare
    from lmjax.data.tokenizers import TokenizerConfig
    from lmjax.evaluation.minimal_pairs import judge, read_pairs, shares, unigram
    from lmjax.evaluation.scoring import methods_of

    pairs = read_pairs(DATA.value, PER_PARADIGM.value)
    columns = {}
    tokenizers: set[str] = set()
    for path in MODELS.value:
        model = lmjax.load(path)
        method = METHOD.value or methods_of(model)[0]
        name = f"{pathlib.Path(path).name} ({method})"
        columns[name] = judge(model, pairs, method)  # type: ignore[arg-type]
        assert model.tokenizer is not None
        if UNIGRAM.value and model.tokenizer.fingerprint not in tokenizers:
            tokenizers.add(model.tokenizer.fingerprint)
            source = DataConfig(UNIGRAM.value, tokenizer=TokenizerConfig(path=path))
            counts = prepare(source, ("train",))[1]["train"].counts
            columns[f"unigram, tokens of {pathlib.Path(path).name}"] = unigram(model, pairs, counts)
    tables = {name: shares(pairs, right) for name, right in columns.items()}
    header = ("", "pairs", *tables)
    rows = []
    for name, share in next(iter(tables.values())).items():
        cells = [f"{table[name].accuracy:.1%}" for table in tables.values()]
        if name == "all":
            low_high = [table[name].interval for table in tables.values()]
            cells = [
                f"{cell} ({a:.1%} to {b:.1%})" for cell, (a, b) in zip(cells, low_high, strict=True)
            ]
        rows.append((name, f"{share.count:,}", *cells))
    table = Table(*header, title="Good sentence preferred; chance is 50%")
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, 26 * len(header))).print(table)
    if OUT.value:
        lines = [header, ("---",) + ("---:",) * (len(header) - 1), *rows]
        place = pathlib.Path(OUT.value)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".md").write_text("".join(f"| {' | '.join(r)} |\n" for r in lines))
        with place.with_suffix(".jsonl").open("w") as file:
            for i, pair in enumerate(pairs):
                told = {name: float(right[i]) for name, right in columns.items()}
                file.write(json.dumps({**vars(pair), **told}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    command_line.start(main)
