"""Answers questions as a support desk: recognises the intent, finds sections, reads the answer.

  python -m experiments.finetune --config=configs/finetune/intents.py \
      --config.init=runs/quickstart/bert --workdir=runs/intents
  python -m experiments.finetune --config=configs/finetune/question_answering.py \
      --config.init=runs/quickstart/electra --workdir=runs/answers
  python -m experiments.applications.support_desk --intents=runs/intents --answers=runs/answers \
      --question="How do I use axis in nanmedian?"

Without --question it answers all held-out questions about docstrings and prints the scores of each
stage. --sections names JSON lines of your own with intent, source and text.
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.errors import ConfigError

flags.DEFINE_string("intents", None, "A run of configs/finetune/intents.py (its --workdir).")
flags.DEFINE_string("answers", None, "A run of configs/finetune/question_answering.py.")
flags.DEFINE_string("sections", "", "JSON lines to search; '' = sections of held-out docstrings.")
flags.DEFINE_multi_string("question", [], "A question; may be given several times.")


def main() -> None:
    for name in ("intents", "answers"):
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name}: missing; give a finished run of experiments.finetune")
    questions, path = flags.FLAGS.question, flags.FLAGS.sections
    if path and not questions:
        raise ConfigError("--question: missing; --sections of your own have no held-out questions")
    # Imported after the flags are parsed: this takes seconds.
    from experiments.applications.desk import Desk, Section, evaluate, read_sections
    from lmjax.data.docstrings import intent_rows
    from lmjax.tasks.classification import Classification
    from lmjax.tasks.opened import open_run
    from lmjax.tasks.question_answering import QuestionAnswering

    rows = [] if path else [r for s in ("validation", "test") for r in intent_rows(s, "")]
    made = {r["context"]: Section(r["label"], ".".join(r["asked"][:2]), r["context"]) for r in rows}
    sections = read_sections(path) if path else list(made.values())
    desk = Desk(
        open_run(flags.FLAGS.intents, Classification, "--intents"),
        open_run(flags.FLAGS.answers, QuestionAnswering, "--answers"),
        sections,
    )
    if questions:
        for question, answer in zip(questions, desk.answer(questions), strict=True):
            print(f"{question}\n  {answer.intent} ({answer.confidence:.2f})")
            if answer.section is not None:
                print(f"  {answer.section.source} ({answer.score:.2f}): {answer.text}")
            else:
                print("  no section shares a word with the question")
        return
    table = Table("", "", title=f"{len(rows):,} held-out questions, {len(sections):,} sections")
    for name, scores in evaluate(desk, rows).items():
        table.add_row(name, ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    Console(width=120).print(table)


if __name__ == "__main__":
    command_line.start(main)
