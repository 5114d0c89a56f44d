"""Fine-tuning: runs the pretraining loop on labelled rows and writes results and the model."""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from lmjax.atomic import write_json, write_text
from lmjax.convert.huggingface import save_huggingface
from lmjax.convert.pretrained import Pretrained
from lmjax.convert.runs import write_network
from lmjax.data.rows import Row
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.heads import CLASS_TASKS, Headed
from lmjax.tables import markdown_table
from lmjax.tasks.base import Scores, Task
from lmjax.tasks.collate import Collator, Epochs
from lmjax.tasks.initialization import put_in
from lmjax.tasks.opened import write_task
from lmjax.tasks.plan import FinetuneConfig, Prepared
from lmjax.tasks.predictor import Predictor
from lmjax.training.loop import RunPhase, train
from lmjax.training.memory_estimate import check_model_fits
from lmjax.training.multihost import detect_lost_processes
from lmjax.training.optimizers import OptimizerConfig, Schedule, make_optimizer
from lmjax.training.run_directory import OnMetrics, RunDirectory
from lmjax.training.step import Program, TrainState
from lmjax.trees import map_named


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """Predictions for a set of rows, and their scores."""

    scores: Scores
    predictions: list[Row]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      task: the task, including values selected after training.
      sets: predictions and scores of each split in `Prepared.scored`.
      chosen: validation scores behind the selection; {} if nothing is selected.
      parameters, trained: number of parameters, and of trained parameters.
      not_exported: why there is no model/ for `transformers`; '' if there is one.
    """

    task: Task
    sets: Mapping[str, ScoredRows]
    chosen: Scores
    parameters: int
    trained: int
    not_exported: str

    @property
    def scores(self) -> Scores:
        """The scores of the first set."""
        return next(iter(self.sets.values())).scores

    @property
    def predictions(self) -> list[Row]:
        """The predictions of the first set."""
        return next(iter(self.sets.values())).predictions


def finetune(
    prepared: Prepared,
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    name: str,
    *,
    seed: int,
    scratch: bool = False,
    on_metrics: OnMetrics | None = None,
) -> Result:
    """Fine-tunes with one seed, or resumes the run in `workdir`.

    Writes predictions.jsonl, report.md and results.json. `lmjax.load` opens the directory;
    `transformers` opens its subdirectory model/, which is written if it supports the model.

    Args:
      config: the config that `prepared` was created from.
      name: shown next to the progress bar.
      seed: seed of the head, the order of the examples and dropout.
      scratch: start from a random encoder instead.
      on_metrics: as in `lmjax.training.loop.pretrain`.

    Raises:
      ConfigError, DivergedError, PreemptedError: as `lmjax.training.loop.pretrain`.
    """
    if jax.process_count() > 1:
        raise ConfigError("--processes: fine-tuning runs in one process, on all of its devices")
    own = config.copy_and_resolve_references()
    own.seed = seed
    if scratch:
        own.init = ""
    directory = RunDirectory(workdir, own, FinetuneConfig)
    start = prepared.start.from_scratch() if scratch else prepared.start
    task = prepared.task
    check_model_fits(task.model, prepared.mesh)
    with directory.locked(), jax.set_mesh(prepared.mesh), detect_lost_processes():
        collate = Collator(task, prepared.training.batch_size, prepared.mesh.shape["sequence"])
        data = Epochs(prepared.examples["train"], collate, seed)
        training, optimizer = prepared.training.of_steps(data.batches_per_epoch, prepared.optimizer)
        row = {key: array[0] for key, array in data.batch_at(0).items()}
        make = functools.partial(make_task_optimizer, task.trainable)
        program = Program(task, row, training, optimizer, prepared.mesh, make)
        predictor = Predictor(
            task, collate, prepared.mesh, program.shardings.params, start.tokenizer
        )

        def predict(
            params: Any, split: str, task: Task | None = None
        ) -> tuple[list[Row], dict[str, float]]:
            """Predictions for all rows of a split, and the mean loss and metrics."""
            rows, examples = prepared.rows[split], prepared.examples[split]
            return predictor.predict(params, rows, examples, task)

        def evaluate(state: TrainState) -> dict[str, float]:
            predictions, means = predict(state.params, "validation")
            return means | prepared.task.scores(predictions)

        directory.claim(start.tokenizer)
        phase = RunPhase(program, data, evaluate, task.length, end=training.steps)
        state = train(
            [phase],
            directory,
            name=name,
            seed=seed,
            warm_start=lambda fresh: put_in(fresh, start),
            on_metrics=on_metrics,
        )
        task, sets, chosen = score_sets(
            prepared, lambda split, task: predict(state.params, split, task)[0]
        )
        sizes = jax.tree.map(lambda leaf: leaf.size, state.params)
        trained = jax.tree.leaves(_select(sizes, task.trainable))
        why = save_model(prepared, task, start.tokenizer, state.params, directory.path)
        result = Result(task, sets, chosen, sum(jax.tree.leaves(sizes)), sum(trained), why)
        write_results(prepared, result, directory.path)
    return result


def make_task_optimizer(
    trainable: Callable[[tuple[str, ...]], bool], config: OptimizerConfig, steps: int, shapes: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """Applies `make_optimizer` to the trainable parameters; the others stay unchanged.

    Args:
      trainable: path of a parameter -> whether it is trained.
      config, steps, shapes: as in `make_optimizer`.
    """
    labels = map_named(lambda path, _: "train" if trainable(path) else "keep", shapes)
    if set(jax.tree.leaves(labels)) == {"train"}:
        return make_optimizer(config, steps, shapes)
    # Moments and the clipped norm cover only the trained parameters.
    inner, schedule = make_optimizer(config, steps, _select(shapes, trainable, optax.MaskedNode()))
    return optax.partition({"train": inner, "keep": optax.set_to_zero()}, labels), schedule


def score_sets(
    prepared: Prepared, predict: Callable[[str, Task], list[Row]]
) -> tuple[Task, dict[str, ScoredRows], Scores]:
    """Tunes the task on validation and scores all sets with it.

    Args:
      predict: (split, task) -> predictions for the rows of the split.

    Returns:
      The tuned task, the scored sets, and the validation scores behind the selection.
    """
    task, chosen = prepared.task, dict[str, float]()
    if task.tunes:
        task, chosen = task.tune(predict("validation", task))
    sets = {}
    for split in prepared.scored:
        predictions = predict(split, task)
        sets[split] = ScoredRows(task.scores(predictions), predictions)
    return task, sets, chosen


def _select(tree: Any, trainable: Any, other: Any = None) -> Any:
    """Replaces the leaves that are not trained by `other`."""
    return map_named(lambda path, leaf: leaf if trainable(path) else other, tree)


def save_model(
    prepared: Prepared, task: Task, tokenizer: Tokenizer, params: Any, place: pathlib.Path
) -> str:
    """Writes the network and task files of `lmjax.load`, and model/ for `transformers`.

    Args:
      task: the task, including values selected after training.

    Returns:
      Why there is no model/; see `export_model`.
    """
    write_network(task.saved_network, task.class_names, place, task.adapter.scale)
    write_task(task, prepared.data, place)
    return export_model(task, tokenizer, params, place)


def export_model(task: Task, tokenizer: Tokenizer, params: Any, place: pathlib.Path) -> str:
    """Writes model/ for `transformers` atomically.

    If `transformers` lacks the head, only the encoder is written.

    Returns:
      Why there is no model/ if `transformers` has no class for it; else ''.
    """
    vocabulary = task.vocabulary
    network: Any = task.saved_network
    kept = task.merged(params)
    if isinstance(network, Headed) and network.task not in CLASS_TASKS.values():
        network, kept = network.encoder, kept["encoder"]
    labels = task.class_names if isinstance(network, Headed) else ()
    ids = {"pad_token_id": vocabulary.pad}
    ids |= {"bos_token_id": vocabulary.eod, "eos_token_id": vocabulary.eod}
    model = Pretrained(network, kept, tokenizer, labels, ids)
    new, old = place / "model.tmp", place / "model"
    shutil.rmtree(new, ignore_errors=True)
    try:
        asks = task.head == "language_model"
        save_huggingface(model, new, length=task.length, asks=asks)
    except ConfigError as error:
        return str(error)
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    return ""


def write_results(prepared: Prepared, result: Result, place: pathlib.Path) -> None:
    """Writes results.json, and predictions.jsonl and report.md of each set.

    The file names of named test sets end with the name of the set.
    """
    notes = {split: dict(found.counts) for split, found in prepared.notes.items()}
    counts = {split: len(rows) for split, rows in prepared.rows.items()}
    scores = {split: found.scores for split, found in result.sets.items()}
    alone = prepared.scored[0] if not suffix_of(prepared, prepared.scored[0]) else None
    values: dict[str, Any] = {
        "scored": alone or list(scores),
        "scores": scores[alone] if alone else scores,
        "baselines": prepared.baselines[alone] if alone else prepared.baselines,
        "rows": counts,
        "notes": notes,
        "parameters": result.parameters,
        "trained_parameters": result.trained,
    }
    if result.chosen:
        values["chosen_on_validation"] = result.chosen
    write_json(place / "results.json", values)
    for split, found in result.sets.items():
        suffix = suffix_of(prepared, split)
        lines = [json.dumps(row, ensure_ascii=False, default=_plain) for row in found.predictions]
        write_text(place / f"predictions{suffix}.jsonl", "\n".join(lines) + "\n")
        every = {"fine-tuned": found.scores, **prepared.baselines[split]}
        report = [
            f"# {type(prepared.task).__name__}",
            "",
            f"Trained on {counts['train']:,} rows; scored on the {counts[split]:,}"
            f" rows of {split}.",
            "",
            *score_table({name: [scores] for name, scores in every.items()}),
            "",
            *_chosen_lines(result.chosen, counts["validation"], split),
            *note_lines(prepared),
            *result.task.report(found.predictions),
        ]
        write_text(place / f"report{suffix}.md", "\n".join(report) + "\n")


def suffix_of(prepared: Prepared, split: str) -> str:
    """Returns the suffix of a set's file names; '' for a single unnamed set."""
    return "" if prepared.scored in (("test",), ("validation",)) else f"-{split}"


def _chosen_lines(chosen: Scores, count: int, split: str) -> list[str]:
    if not chosen:
        return []
    same = " (the same that this report scores)" if split == "validation" else ""
    header = f"Selected by the scores of the {count:,} validation rows{same}:"
    return [header, "", *(f"- {name} {value:.4f}" for name, value in chosen.items()), ""]


def note_lines(prepared: Prepared) -> list[str]:
    """Lists what was skipped, truncated or split, followed by an empty line."""
    lines = []
    for split, notes in prepared.notes.items():
        for kind, count in notes.counts.items():
            lines.append(f"- {split}: {count:,} {kind}")
        lines += [f"  - {named}" for named in notes.named]
    return [*lines, ""] if lines else []


def table_rows(scores: Mapping[str, Sequence[Scores]]) -> list[tuple[str, ...]]:
    """Returns a header and one row per name with the median and the range over seeds.

    Args:
      scores: name -> scores of each seed.
    """
    names = list(next(iter(scores.values()))[0])
    rows = [("", *names)]
    for who, found in scores.items():
        cells = []
        for name in names:
            values = [s[name] for s in found if name in s]
            cell = f"{np.median(values):.4f}" if values else ""
            if len(values) > 1:
                cell += f" ({min(values):.4f} to {max(values):.4f}, {len(values)} seeds)"
            cells.append(cell)
        rows.append((who, *cells))
    return rows


def score_table(scores: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Formats `table_rows` as lines of Markdown."""
    header, *rows = table_rows(scores)
    return markdown_table(header, rows)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value)
