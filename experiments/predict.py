"""Predicts rows with a fine-tuned model; writes one JSON object per row.

  python -m experiments.predict --model=runs/packages --text="Returns the mean of an array."
  python -m experiments.predict --model=runs/packages --data=new.jsonl --out=predictions.jsonl
  tail -f new.jsonl | python -m experiments.predict --model=runs/packages --data=-

--model is a finished run of experiments.finetune, a task's directory in a run of
experiments.finetune_several, or a Hugging Face directory with a head for sequence classification,
token classification, question answering or multiple choice. Rows have the columns that the run was
trained with; labels are optional. Each output line contains the fields of its row, 'prediction',
and 'confidence' if the task has one. Lines are written in the order of the rows, as soon as they
are ready. Scores of rows with labels are printed to standard error.
"""

import contextlib
import glob
import json
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from absl import flags

from experiments import command_line
from experiments.model_flag import one_model
from lmjax.errors import ConfigError

if TYPE_CHECKING:
    from lmjax.tasks.opened import Item, Opened

flags.DEFINE_string(
    "data",
    None,
    "Rows: a path or glob of .jsonl, .json, .csv, .tsv or CoNLL columns; a TFDS name; 'pydocs'; or"
    " - for JSON lines from standard input.",
)
flags.DEFINE_multi_string(
    "text", [], "A text, for a task that reads a single text; may be given several times."
)
flags.DEFINE_string("out", "-", "A file for the JSON lines; - is standard output.")
flags.DEFINE_enum(
    "on_bad_rows",
    "refuse",
    ["refuse", "skip"],
    "How to treat unusable rows: 'refuse' stops with an error; 'skip' counts them and writes lines"
    " with 'error' instead of a prediction.",
)
flags.DEFINE_bool("score", True, "Read labels and score the rows that have one.")

_NAMED = 3  # rows without a prediction that are reported at the end
_WINDOW = 512  # rows that are sorted by length together
_REMEDY = "--on_bad_rows=skip skips such rows, --noscore ignores their labels"


def main() -> None:
    path, data, texts = one_model(), flags.FLAGS.data, flags.FLAGS.text
    if bool(data) == bool(texts):
        raise ConfigError(f"--data, --text: give {'one of them' if data else 'rows or a text'}")
    check_out(flags.FLAGS.out, data)
    # Imported after the flags are parsed: this takes seconds.
    import lmjax
    from lmjax.data.rows import Notes
    from lmjax.tasks.opened import added, line

    model = lmjax.load(path)
    if model.task is None:
        raise ConfigError(
            f"--model: '{path}' has no task to predict; use a run of experiments.finetune, or a"
            " model with a head and a tokenizer"
        )
    items, finite = read_items(model), data != "-"
    if flags.FLAGS.on_bad_rows == "refuse":
        if finite:
            refuse_bad_rows(model)
        items = refusing(items)
    whole = finite and model.task.ranks_rows
    windows = batched(items, sys.maxsize if whole else _WINDOW) if finite else arriving(items)
    notes, rows, bad = Notes(), 0, 0
    scored: list[dict[str, Any]] = []
    with output(flags.FLAGS.out) as file:
        for window in windows:
            for item, told in zip(window, model.told(window, notes, whole), strict=True):
                file.write(encoded(line(item, told)))
                if told is None:
                    notes.named += [f"{item.where or '--text'}: {item.row}"] if bad < _NAMED else []
                    bad += 1
                elif model.task.scored(told):
                    # Of the row's own fields, scores need only the label.
                    gold = {"gold": told["gold"]} if "gold" in told else {}
                    scored.append(gold | added(item, told))
            file.flush()
            rows += len(window)
    notes.add(f"of {rows:,} rows have no prediction", count=bad)
    for kind, count in notes.counts.items():
        print(f"{count:,} {kind}", file=sys.stderr)
    for named in notes.named:
        print(f"  {named}", file=sys.stderr)
    if rows and bad == rows:
        raise ConfigError("--data: none of the rows can be used")
    if scored:
        every = "  ".join(f"{name} {x:.4f}" for name, x in model.task.scores(scored).items())
        print(f"{len(scored):,} of {rows:,} rows are scored: {every}", file=sys.stderr)


def read_items(model: "Opened") -> Iterator["Item"]:
    """Yields the parsed rows of --data or --text."""
    from lmjax.data.rows import RowsConfig, raw_rows
    from lmjax.tasks.opened import Item

    gold: Any = "optional" if flags.FLAGS.score else "ignored"
    data, task = flags.FLAGS.data, model.task
    source: Iterable[tuple[str, Any]]
    assert task is not None
    if data == "pydocs":
        for i, row in enumerate(task.embedded("test", "")):
            if not flags.FLAGS.score:
                row = {name: value for name, value in row.items() if name != "gold"}
            where = f"pydocs test {i}"
            yield Item({}, {**row, "where": where}, where)
        return
    if data == "-":
        source = standard_input()
    elif data:
        source = raw_rows(data, "test", model.data or RowsConfig(train=data), "--data")
    else:
        source = (("", text) for text in flags.FLAGS.text)
    for where, values in source:
        for item in model.read(values, where, gold):
            if isinstance(item.row, dict) and "gold" in item.row:
                task.check_metrics()
            yield item


def standard_input() -> Iterator[tuple[str, Any]]:
    """Yields (location, columns) of JSON lines as they arrive."""
    from lmjax.data.files import BadRowError, json_row

    # Not sys.stdin, which could not be closed at exit while a thread waits for it.
    with open(0, "rb", closefd=False) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield f"-:{number}", BadRowError(f"not UTF-8 (byte {error.start})")
                continue
            if text.strip():
                yield f"-:{number}", json_row(text)


def refusing(items: Iterable["Item"]) -> Iterator["Item"]:
    """Yields usable items; raises ConfigError at the first unusable one."""
    for item in items:
        if not isinstance(item.row, dict):
            raise ConfigError(f"{item.where}: {item.row}; {_REMEDY}")
        yield item


def refuse_bad_rows(model: "Opened") -> None:
    """Reads all rows once before prediction starts.

    Raises:
      ConfigError: there are no rows, or some cannot be used.
    """
    from lmjax.data.rows import Notes, settle

    bad, total = [], 0
    for total, item in enumerate(read_items(model), 1):  # noqa: B007
        if not isinstance(item.row, dict):
            bad.append((item.where or "--text", str(item.row)))
    named = "--data" if flags.FLAGS.data else "--text"
    settle(bad, "refuse", named, total, Notes(), _REMEDY)
    if not total:
        raise ConfigError(f"--data: '{flags.FLAGS.data}' has no rows; give a file with rows")


def batched(items: Iterable["Item"], size: int) -> Iterator[list["Item"]]:
    """Yields lists of `size` items; the last may be shorter."""
    window: list[Item] = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def arriving(items: Iterable["Item"]) -> Iterator[list["Item"]]:
    """Yields lists of the items available so far, without waiting for more."""
    waiting: queue.Queue[Any] = queue.Queue(_WINDOW)
    end = object()

    def feed() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(end)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=feed, daemon=True).start()
    while True:
        found = [waiting.get()]
        while len(found) < _WINDOW and not waiting.empty():
            found.append(waiting.get())
        last = found[-1]
        if last is end or isinstance(last, BaseException):
            found.pop()
        if found:
            yield found
        if isinstance(last, BaseException):
            raise last
        if last is end:
            return


def check_out(path: str, data: str | None) -> None:
    """Raises ConfigError if the output cannot be a file or is one of the inputs."""
    if pathlib.Path(path).is_dir() or not pathlib.Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--out: '{path}' cannot be a file; give a file in an existing directory")
    for given in glob.glob(os.path.expanduser(data or "")):
        if os.path.exists(path) and os.path.samefile(given, path):
            raise ConfigError(f"--out: '{path}' is read by --data; give another file")


@contextlib.contextmanager
def output(path: str) -> Iterator[BinaryIO]:
    """Opens the output file."""
    if path != "-":
        with pathlib.Path(path).open("wb") as file:
            yield file
        return
    try:
        yield sys.stdout.buffer
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def encoded(values: dict[str, Any]) -> bytes:
    """Encodes a line of JSON."""
    try:
        return (json.dumps(values, ensure_ascii=False, default=str) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate
        return (json.dumps(values, default=str) + "\n").encode()


if __name__ == "__main__":
    command_line.start(main)
