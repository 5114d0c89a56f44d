"""Evaluates pretrained models without training.

  python -m experiments.evaluate --data=blimp.jsonl --model=runs/gpt --model=runs/bert \
      --unigram=pydocs --trigram=pydocs --out=blimp
  python -m experiments.evaluate --data=supplement/ --model=runs/gpt
  python -m experiments.evaluate --task=perplexity --data='texts/*.txt' --model=runs/gpt --stride=64
  python -m experiments.evaluate --task=last_word --data=lambada.jsonl --model=runs/gpt
  python -m experiments.evaluate --task=prompting --config=configs/prompting.py:multiple_choice \
      --model=runs/gpt --model=runs/bert --config.template.shots=2
  python -m experiments.evaluate --task=harness --harness_tasks=lambada_openai --model=runs/gpt

Minimal pairs: accuracy of each model with its default scoring method (--method selects others), and
of unigram and trigram baselines; for several files also the mean of their accuracies. Perplexity:
of causal models, for each document separately, in overlapping windows. Last word: how often the
model predicts the last word of a text. Prompting: which of several choices a model prefers.
Harness: tasks of EleutherAI's lm-evaluation-harness. --out writes OUT.md with the table and
OUT.jsonl with the underlying results.
"""

import json
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from experiments.model_flag import MODELS
from lmjax.errors import ConfigError
from lmjax.tables import markdown_table

TASKS = ["minimal_pairs", "perplexity", "last_word", "prompting", "harness"]
TASK = flags.DEFINE_enum("task", "minimal_pairs", TASKS, "The evaluation.")
LENGTH = flags.DEFINE_integer("length", 0, "Tokens per window; 0 = all positions.", 0)
STRIDE = flags.DEFINE_integer("stride", 0, "Tokens between windows; 0 = half a window.", 0)
DATA = flags.DEFINE_string(
    "data",
    "",
    "Pairs: JSON lines, as a path, glob or directory. Perplexity: a corpus. Last word: rows with a"
    " text, or .txt with one text per line.",
)
TEXT_FEATURE = flags.DEFINE_string(
    "text_feature", "text", "The column or TFDS feature of the text."
)
ON_BAD_ROWS = flags.DEFINE_enum(
    "on_bad_rows", "refuse", ["refuse", "skip"], "Last word: how to treat texts without two words."
)
METHOD = flags.DEFINE_list(
    "method",
    [],
    "Scoring methods, separated by commas: causal, pseudo, pseudo_within_word, left_to_right,"
    " discriminator, stupid_backoff. Each model uses those that it supports.",
)
PER_PARADIGM = flags.DEFINE_integer("per_paradigm", 0, "Pairs per paradigm; 0 = all.", 0)
UNIGRAM = flags.DEFINE_string("unigram", "", "Corpus of the unigram baseline.")
TRIGRAM = flags.DEFINE_string("trigram", "", "Corpus of the trigram baseline.")
HARNESS_TASKS = flags.DEFINE_list("harness_tasks", [], "Tasks of lm-eval, separated by commas.")
INCLUDE_PATH = flags.DEFINE_string("include_path", None, "Directory with custom tasks.")
LIMIT = flags.DEFINE_integer("limit", None, "Harness: documents per task; all by default.", 1)
OUT = flags.DEFINE_string("out", "", "Output files without suffix; '' = none.")


def main() -> None:
    if not MODELS.value:
        raise ConfigError("--model: missing; give a run, such as runs/gpt")
    if TASK.value in ("minimal_pairs", "perplexity", "last_word") and not DATA.value:
        raise ConfigError("--data: missing; give a file, such as blimp.jsonl")
    {
        "minimal_pairs": minimal_pairs,
        "perplexity": perplexities,
        "last_word": last_word,
        "prompting": prompting,
        "harness": harness,
    }[TASK.value]()


def minimal_pairs() -> None:
    """Prints accuracies by phenomenon; OUT.md also has them by paradigm, OUT.jsonl by pair."""
    from lmjax.evaluation.minimal_pairs import (
        by_ngrams,
        judge,
        mean_of_files,
        read_pairs,
        shares,
        unigram,
    )

    pairs = read_pairs(DATA.value, PER_PARADIGM.value)
    columns = {}
    tokenizers: set[str] = set()
    for path, name, model in _models():
        for method in _methods(model):
            columns[f"{name} ({method})"] = judge(model, pairs, method)
        if model.tokenizer.fingerprint in tokenizers:
            continue
        tokenizers.add(model.tokenizer.fingerprint)
        if UNIGRAM.value:
            counts = _store(UNIGRAM.value, path, "--unigram").counts
            columns[f"unigram, tokens of {name}"] = unigram(model, pairs, counts)
        if TRIGRAM.value:
            trigrams = _trigrams(_store(TRIGRAM.value, path, "--trigram"), model.tokenizer)
            columns[f"trigram, tokens of {name}"] = by_ngrams(trigrams, pairs)
    tables = []
    files = len({pair.file for pair in pairs})
    for by in ("phenomenon", "paradigm"):
        found = {name: shares(pairs, right, by) for name, right in columns.items()}
        rows = []
        for group, share in next(iter(found.values())).items():
            cells = [_percent(table[group], group == "all") for table in found.values()]
            rows.append((group, f"{share.count:,}", *cells))
        if files > 1:
            means = [f"{mean_of_files(pairs, right):.1%}" for right in columns.values()]
            rows.append((f"mean of {files} files", "", *means))
        tables.append([(by, "pairs", *found), *rows])
    _show("Good sentence preferred; chance is 50%", tables[0])
    told = ({name: float(right[i]) for name, right in columns.items()} for i in range(len(pairs)))
    _write(tables, ({**vars(pair), **values} for pair, values in zip(pairs, told, strict=True)))


def perplexities() -> None:
    """Prints one line per model."""
    from lmjax.data.corpora import open_corpus
    from lmjax.evaluation.perplexity import perplexity

    rows: list[Sequence[str]] = [
        ("model", "tokens", "unknown", "words", "perplexity per token", "per word", "bits per byte")
    ]
    lines = []
    for path, _, model in _models():
        corpus = open_corpus(DATA.value, "all", text_feature=TEXT_FEATURE.value, where="--data")
        documents = corpus.documents()
        found = perplexity(model, documents, LENGTH.value, STRIDE.value)
        numbers = f"{found.per_token:.2f}", f"{found.per_word:.2f}", f"{found.bits_per_byte:.4f}"
        counts = (f"{count:,}" for count in (found.tokens, found.unknown, found.words))
        rows.append((path, *counts, *numbers))
        lines.append({"model": path, **vars(found)})
    _show("Perplexity", rows)
    _write([rows], lines)


def last_word() -> None:
    """Prints one line per model and method; OUT.jsonl has the last word of every text."""
    from lmjax.data.rows import Notes
    from lmjax.evaluation.continuations import last_words, read_last_words

    notes, rule = Notes(), cast(Literal["refuse", "skip"], ON_BAD_ROWS.value)
    asked = read_last_words(DATA.value, TEXT_FEATURE.value, rule, notes)
    _print_notes(notes)
    pairs = [(row["context"], row["word"]) for row in asked]
    rows: list[Sequence[str]] = [
        ("", "texts", "last word correct", "perplexity per word", "contexts truncated")
    ]
    lines: list[Mapping[str, Any]] = []
    for _, name, model in _models():
        for method in _methods(model):
            found = last_words(model, pairs, method)
            cells = f"{len(pairs):,}", _percent(found.share, True), f"{found.perplexity:,.2f}"
            rows.append((f"{name} ({method})", *cells, f"{found.cut:,}"))
            lines += [
                {"model": name, "method": method, "where": row["where"], "word": row["word"]}
                | {"right": bool(right), "nats": float(nats)}
                for row, right, nats in zip(asked, found.right, found.nats, strict=True)
            ]
    _show("The last words of texts", rows)
    _write([rows], lines)


def prompting() -> None:
    """Prints one line per model and method, with all normalizations; OUT.jsonl has all scores."""
    if command_line.CONFIG.value is None:
        raise ConfigError(
            "--config: missing; give a file, such as --config=configs/prompting.py:multiple_choice"
        )
    config = command_line.config()
    from lmjax.evaluation.prompting import (
        NORMALISATIONS,
        answer,
        chance,
        draw_shots,
        majority,
        read_questions,
    )

    asked = read_questions(config.to_dict())
    _print_notes(asked.notes)
    context = asked.template.context(asked.rows[0], draw_shots(asked, 0))
    right = f"{asked.template.before}[{asked.rows[0]['choices'][asked.rows[0]['gold']]}]"
    print(f"The first of {len(asked.rows):,} prompts with its answer:\n{context}{right}\n")
    rows: list[Sequence[str]] = [("", *NORMALISATIONS, "contexts truncated", "too long")]
    lines: list[Mapping[str, Any]] = []
    for _, name, model in _models():
        for method in _methods(model):
            found = answer(model, asked, method)
            cells = [_percent(found.share(n), True) for n in NORMALISATIONS]
            rows.append((f"{name} ({method})", *cells, f"{found.cut:,}", f"{found.unanswered:,}"))
            lines += [
                {"model": name, "method": method, "where": row["where"], "gold": row["gold"]}
                | {n: _listed(found.scores[n][i]) for n in NORMALISATIONS}
                for i, row in enumerate(asked.rows)
            ]
    rows.append(("most frequent in train", _percent(majority(asked), True), *[""] * 5))
    rows.append(("chance", f"{chance(asked):.1%}", *[""] * 5))
    _show(f"Accuracy, {asked.template.shots} shots, scores by", rows)
    _write([rows], lines)


def harness() -> None:
    """Prints the results of lm-eval, one line per model, task and metric."""
    if not HARNESS_TASKS.value:
        raise ConfigError("--harness_tasks: missing; give tasks of lm-eval, separated by commas")
    from lmjax.evaluation.harness import harness_model, register

    register()  # reports missing packages before any file is read
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=INCLUDE_PATH.value)
    for task in HARNESS_TASKS.value:
        if not manager.match_tasks([task]):
            raise ConfigError(
                f"--harness_tasks: lm-eval has no task '{task}'; check --include_path"
            )
    rows: list[Sequence[str]] = [("model", "task", "metric", "value", "standard error")]
    lines = []
    for _, name, model in _models():
        for method in _methods(model):
            found = lm_eval.simple_evaluate(
                model=harness_model(model, method),
                tasks=HARNESS_TASKS.value,
                task_manager=manager,
                limit=LIMIT.value,
            )
            for task, values in found["results"].items():
                lines.append({"model": name, "method": method, "task": task, **values})
                for key, value in values.items():
                    metric, _, filtered = key.partition(",")
                    if isinstance(value, float) and not metric.endswith("_stderr"):
                        error = values.get(f"{metric}_stderr,{filtered}")
                        told = f"{error:.4f}" if isinstance(error, float) else ""
                        label = metric if filtered in ("", "none") else f"{metric} ({filtered})"
                        rows.append((f"{name} ({method})", task, label, f"{value:.4f}", told))
    _show("lm-evaluation-harness", rows)
    _write([rows], lines)


def _models() -> Iterator[tuple[str, str, Any]]:
    """Yields (directory, its name, model) of each --model."""
    import lmjax  # imported after the flags are parsed: this takes seconds
    from lmjax.evaluation.scoring import methods_of

    names = [pathlib.Path(path).name for path in MODELS.value]
    for path, name in zip(MODELS.value, names, strict=True):
        model = lmjax.load(path)
        try:
            methods_of(model)
        except ConfigError as error:
            raise ConfigError(f"--model: {path}: {error}") from error
        yield path, name if names.count(name) == 1 else path, model


def _methods(model: Any) -> Sequence[Any]:
    """Returns the methods of --method that the model supports, or its default."""
    from lmjax.evaluation.scoring import Method, methods_of

    known = methods_of(model)
    every = typing.get_args(Method)
    for method in METHOD.value:
        if method not in every:
            raise ConfigError(f"--method: '{method}' is not one of {', '.join(sorted(every))}")
    chosen = [method for method in METHOD.value if method in known]
    if METHOD.value and not chosen:
        raise ConfigError(
            f"--method: a {type(model.network).__name__} does not support"
            f" {', '.join(METHOD.value)}; use {', '.join(known)}"
        )
    return chosen or known[:1]


def _store(corpus: str, path: str, flag: str) -> Any:
    """Prepares the corpus of a flag with the tokenizer of the model in `path`."""
    from lmjax.data.corpora import check_corpus
    from lmjax.data.store import DataConfig, prepare
    from lmjax.data.tokenizers import TokenizerConfig

    check_corpus(corpus, flag, text_feature=TEXT_FEATURE.value)
    source = DataConfig(
        corpus, text_feature=TEXT_FEATURE.value, tokenizer=TokenizerConfig(path=path)
    )
    return prepare(source, ("train",))[1]["train"]


def _trigrams(store: Any, tokenizer: Any) -> Any:
    from lmjax.convert.ngrams import opened
    from lmjax.models.ngram_estimation import estimate

    found = estimate(
        (store.tokens, store.sentence_offsets),
        tokenizer.size,
        (tokenizer.roles["eod"],) * 2,
        order=3,
        discount_fallback=True,
    )
    for order in found.fell_back:
        print(f"{order}-grams: too few rare ones to estimate discounts; using 0.5, 1 and 1.5")
    return opened(found.config, found.params, tokenizer)


def _listed(scores: Any) -> list[float] | None:
    """Converts scores for JSON; None for a row without scores."""
    return None if scores is None else [float(score) for score in scores]


def _percent(share: Any, with_interval: bool) -> str:
    low, high = share.interval
    return f"{share.accuracy:.1%}" + (f" ({low:.1%} to {high:.1%})" if with_interval else "")


def _print_notes(notes: Any) -> None:
    for kind, count in notes.counts.items():
        print(f"{kind}: {count} rows, e.g. {', '.join(notes.named)}")


def _show(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first row is its header."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(100, 26 * len(rows[0]))).print(table, markup=False)


def _write(tables: Sequence[Sequence[Sequence[str]]], lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes OUT.md and OUT.jsonl if --out is set."""
    if not OUT.value:
        return
    place = pathlib.Path(OUT.value)
    place.parent.mkdir(parents=True, exist_ok=True)
    texts = ["\n".join(markdown_table(header, rows)) + "\n" for header, *rows in tables]
    place.with_name(f"{place.name}.md").write_text("\n".join(texts), encoding="utf-8")
    with place.with_name(f"{place.name}.jsonl").open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    command_line.start(main)
