"""Transfers the style of texts, or continues texts in a style.

  python -m experiments.finetune --config=configs/finetune/mood.py \
      --config.init=runs/quickstart/bert --workdir=runs/mood
  python -m experiments.applications.restyle --judge=runs/mood \
      --model=runs/quickstart/bert --to=imperative
  python -m experiments.applications.restyle --judge=runs/packages \
      --model=runs/quickstart/gpt --to=matplotlib

With a masked model, the markers of a style are deleted and the gaps filled (Li et al. 2018); a
causal model samples several continuations of the first words. The judge, a run of classification,
chooses among them. The printed scores come from another classifier, of words, that took no part in
the choice: how many held-out texts are of the style before and after. --text restyles or continues
texts of your own.
"""

from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.errors import ConfigError

flags.DEFINE_string("judge", None, "A run of classification; its classes are the styles.")
flags.DEFINE_string("model", None, "A masked or causal language model that writes.")
flags.DEFINE_string("to", None, "The target style.")
flags.DEFINE_multi_string("text", [], "A text to restyle or continue; may be given several times.")
flags.DEFINE_integer("words", 3, "Words of a held-out text that a continuation begins with.", 1)
flags.DEFINE_integer("texts", 200, "Number of held-out texts at most.", 1)
flags.DEFINE_integer("seed", 0, "Seed of the samples.", 0)

_SHOWN = 8


def main() -> None:
    for name in ("judge", "model", "to"):
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name}: missing")
    # Imported after the flags are parsed: this takes seconds.
    import lmjax
    from experiments.applications.style_transfer import check_style
    from lmjax.tasks.classification import Classification
    from lmjax.tasks.opened import open_run

    judge, model = (
        open_run(flags.FLAGS.judge, Classification, "--judge"),
        lmjax.load(flags.FLAGS.model),
    )
    check_style(judge, flags.FLAGS.to, "--to")
    if model.network.continues_texts:
        continued(judge, model)
    elif model.network.fills_masks:
        restyled(judge, model)
    else:
        raise ConfigError(
            f"--model: {type(model.network).__name__} neither fills masks nor continues texts"
        )


def restyled(judge: Any, model: Any) -> None:
    """Rewrites texts of other styles in the target style."""
    from experiments.applications.style_transfer import alike, markers, restyle, style_scores

    to, train = flags.FLAGS.to, judge.rows("train")
    held_out = [row for row in judge.held_out() if row["gold"] != to][: flags.FLAGS.texts]
    if flags.FLAGS.text:
        predictions = judge.predict(flags.FLAGS.text)
        held_out = [{"text": p["text"], "gold": p["prediction"]} for p in predictions]
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
        scores = style_scores(train, [row["text"] for row in held_out], made, to)
        twins = [row.get("other") for row in held_out]
        if all(twins):
            same = [alike(text, twin) for text, twin in zip(made, twins, strict=True)]
            scores["like its twin"] = sum(same) / len(same)
        print_scores(f"{len(pairs):,} held-out texts of other styles", scores)


def continued(judge: Any, model: Any) -> None:
    """Continues the first words of texts in the target style."""
    from experiments.applications.style_transfer import continue_in_style, style_scores

    to, count = flags.FLAGS.to, flags.FLAGS.words
    prompts = flags.FLAGS.text or [
        " ".join(row["text"].split()[:count]) for row in judge.held_out()[: flags.FLAGS.texts]
    ]
    first, chosen = continue_in_style(model, judge, prompts, to, seed=flags.FLAGS.seed)
    show(("prompt", "continuation"), list(zip(prompts, chosen, strict=True)))
    if not flags.FLAGS.text:
        scores = style_scores(judge.rows("train"), first, chosen, to)
        print_scores(f"continuations of {len(prompts):,} prompts: the first, the chosen", scores)


def show(names: tuple[str, str], pairs: list[tuple[str, str]]) -> None:
    """Prints the first pairs."""
    table = Table(*names, show_lines=True)
    for before, after in pairs[:_SHOWN]:
        table.add_row(before, after)
    Console(width=120).print(table)


def print_scores(title: str, scores: dict[str, float]) -> None:
    """Prints one line."""
    print(f"{title}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


if __name__ == "__main__":
    command_line.start(main)
