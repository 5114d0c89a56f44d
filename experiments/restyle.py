"""Writes in a style: gives texts another one, or goes on with texts in it.

  python -m experiments.finetune --config=configs/finetune/mood.py \
      --config.init=runs/quickstart/bert --workdir=runs/mood
  python -m experiments.restyle --judge=runs/mood --model=runs/quickstart/bert --to=imperative
  python -m experiments.restyle --judge=runs/packages --model=runs/quickstart/gpt --to=matplotlib

A masked model deletes what marks a style and fills the gaps anew (Li et al. 2018); a causal one
writes several continuations of the first words. The judge, a run of classification, chooses. What
is printed is told by another judge, of words, that had no part in it: how many of the held-out
texts are of the style, before and after. --text restyles or continues texts of your own.
"""

from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.errors import ConfigError

flags.DEFINE_string("judge", None, "A run of classification: its classes are the styles.")
flags.DEFINE_string("model", None, "What writes: a masked or a causal model.")
flags.DEFINE_string("to", None, "The style to write in.")
flags.DEFINE_multi_string("text", [], "To be restyled or continued; may be given several times.")
flags.DEFINE_integer("words", 3, "With which continuations of held-out texts begin.", 1)
flags.DEFINE_integer("texts", 200, "Held-out texts at most.", 1)
flags.DEFINE_integer("seed", 0, "Of what is drawn.", 0)

_SHOWN = 8


def main() -> None:
    for name in ("judge", "model", "to"):
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name}: missing")
    # After the flags: importing it takes seconds.
    import lmjax
    from lmjax.tasks.classification import Classification
    from lmjax.tasks.opened import open_run
    from lmjax.tasks.writing import check_style

    judge, model = (
        open_run(flags.FLAGS.judge, Classification, "--judge"),
        lmjax.load(flags.FLAGS.model),
    )
    check_style(judge, flags.FLAGS.to, "--to")
    if model.network.fills_masks:
        restyled(judge, model)
    elif model.network.continues_texts:
        continued(judge, model)
    else:
        raise ConfigError(
            f"--model: {type(model.network).__name__} neither fills masks nor continues texts"
        )


def restyled(judge: Any, model: Any) -> None:
    """Texts of the other styles, in the style."""
    from lmjax.tasks.writing import alike, markers, restyle, told_by_words

    to, train = flags.FLAGS.to, judge.rows("train")
    held_out = [row for row in judge.held_out() if row["gold"] != to][: flags.FLAGS.texts]
    if flags.FLAGS.text:
        told = judge.predict(flags.FLAGS.text)
        held_out = [{"text": p["text"], "gold": p["prediction"]} for p in told]
    made = [row["text"] for row in held_out]
    for style in sorted({row["gold"] for row in held_out} - {to}):
        at = [i for i, row in enumerate(held_out) if row["gold"] == style]
        texts = [held_out[i]["text"] for i in at]
        known = markers(train, style)
        for i, text in zip(
            at, restyle(model, judge, texts, known, to, seed=flags.FLAGS.seed), strict=True
        ):
            made[i] = text
    pairs = [(row["text"], text) for row, text in zip(held_out, made, strict=True)]
    show(("before", "after"), pairs)
    if not flags.FLAGS.text:
        scores = told_by_words(train, [row["text"] for row in held_out], made, to)
        twins = [row.get("other") for row in held_out]
        if all(twins):
            same = [alike(text, twin) for text, twin in zip(made, twins, strict=True)]
            scores["like its twin"] = sum(same) / len(same)
        print_scores(f"{len(pairs):,} held-out texts of other styles", scores)


def continued(judge: Any, model: Any) -> None:
    """What follows the first words of texts, in the style."""
    from lmjax.tasks.writing import continue_in_style, told_by_words

    to, count = flags.FLAGS.to, flags.FLAGS.words
    prompts = flags.FLAGS.text or [
        " ".join(row["text"].split()[:count]) for row in judge.held_out()[: flags.FLAGS.texts]
    ]
    first, chosen = continue_in_style(model, judge, prompts, to, seed=flags.FLAGS.seed)
    show(("begins with", "goes on"), list(zip(prompts, chosen, strict=True)))
    if not flags.FLAGS.text:
        scores = told_by_words(judge.rows("train"), first, chosen, to)
        print_scores(f"continuations of {len(prompts):,} beginnings: the first, the chosen", scores)


def show(names: tuple[str, str], pairs: list[tuple[str, str]]) -> None:
    """The first pairs."""
    table = Table(*names, show_lines=True)
    for before, after in pairs[:_SHOWN]:
        table.add_row(before, after)
    Console(width=120).print(table)


def print_scores(title: str, scores: dict[str, float]) -> None:
    """A line."""
    print(f"{title}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    command_line.start(main)
