"""Answers questions as a support desk does: whose it is, where the answer stands, what it is.

  python -m experiments.finetune --config=configs/finetune/intents.py \
      --config.init=runs/quickstart/bert --workdir=runs/intents
  python -m experiments.finetune --config=configs/finetune/question_answering.py \
      --config.init=runs/quickstart/electra --workdir=runs/answers
  python -m experiments.support_desk --intents=runs/intents --answers=runs/answers \
      --question="How do I use axis in nanmedian?"

Without --question the desk is asked all held-out questions of the embedded default, and how good
each of its parts is, is printed. --sections names own ones: JSON lines with intent, source, text.
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.data.files import (
    BadRowError,
    fault_of,
    find_files,
    form_of,
    json_row,
    read_lines,
)
from lmjax.errors import ConfigError

flags.DEFINE_string("intents", None, "A run of configs/finetune/intents.py (its --workdir).")
flags.DEFINE_string("answers", None, "A run of configs/finetune/question_answering.py.")
flags.DEFINE_string("sections", "", "JSON lines to search; '' = sections of held-out docstrings.")
flags.DEFINE_multi_string("question", [], "To be answered; may be given several times.")


def main() -> None:
    for name in ("intents", "answers"):
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name}: missing; give a finished run of experiments.finetune")
    questions, path = flags.FLAGS.question, flags.FLAGS.sections
    if path and not questions:
        raise ConfigError("--question: missing; own --sections come without questions to judge by")
    # After the flags: importing it takes seconds.
    from lmjax.data.docstrings import intent_rows
    from lmjax.tasks.classification import Classification
    from lmjax.tasks.desk import Desk, Section, judge
    from lmjax.tasks.opened import open_run
    from lmjax.tasks.question_answering import QuestionAnswering

    rows = [] if path else [r for s in ("validation", "test") for r in intent_rows(s, "")]
    made = {r["context"]: Section(r["label"], ".".join(r["asked"][:2]), r["context"]) for r in rows}
    sections = [Section(**s) for s in read_sections(path)] if path else list(made.values())
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
                print("  nothing there shares a word with the question")
        return
    table = Table("", "", title=f"{len(rows):,} held-out questions, {len(sections):,} sections")
    for name, scores in judge(desk, rows).items():
        table.add_row(name, ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    Console(width=120).print(table)


def read_sections(path: str) -> list[dict[str, str]]:
    """Blocks of intent, source and text.

    Raises:
      ConfigError: names the line that is none.
    """
    found = []
    where = "--sections"
    for file in find_files(path, where, lambda file: form_of(file) == ".jsonl"):
        for number, line in read_lines(file, where):
            if not line.strip():
                continue
            row = json_row(line)
            fault = fault_of(row)
            if isinstance(row, BadRowError) or fault:
                raise ConfigError(f"{where}: {file}:{number}: {fault}")
            names = ("intent", "source", "text")
            if missing := [name for name in names if row.get(name) is None]:
                raise ConfigError(f"{where}: {file}:{number}: no '{missing[0]}'")
            found.append({name: str(row[name]) for name in names})
    return found


if __name__ == "__main__":
    command_line.start(main)
