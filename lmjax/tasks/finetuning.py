"""Fine-tuning: the loop of pretraining on labelled rows, and what is left of it to read."""

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
from lmjax.training.loop import train
from lmjax.training.memory_estimate import check_model_fits
from lmjax.training.multihost import detect_lost_processes
from lmjax.training.optimizers import OptimizerConfig, Schedule, make_optimizer
from lmjax.training.run_directory import OnMetrics, RunDirectory
from lmjax.training.step import Program, TrainState
from lmjax.trees import map_named


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """The predictions of one set of rows, and their scores."""

    scores: Scores
    predictions: list[Row]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
      task: with what was chosen after training.
      sets: of each of `Prepared.scored`.
      chosen: the scores of the validation rows that the choice was made by; {} without one.
      parameters, trained: how many numbers the parameters are, and how many of them changed.
      not_exported: why there is no model/ for `transformers`; '' where there is one.
    """

    task: Task
    sets: Mapping[str, ScoredRows]
    chosen: Scores
    parameters: int
    trained: int
    not_exported: str

    @property
    def scores(self) -> Scores:
        """Of the first set."""
        return next(iter(self.sets.values())).scores

    @property
    def predictions(self) -> list[Row]:
        """Of the first set."""
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
    """Fine-tunes with one seed, or continues where the run in `workdir` was.

    Leaves predictions.jsonl, report.md and results.json; the directory is one that `lmjax.load`
    opens, and model/ in it is one for `transformers`, where that has the model.

    Args:
      config: that `prepared` was made of.
      name: shown beside the progress bar.
      seed: of the head, the order of the examples and dropout.
      scratch: begin with a random encoder instead.
      on_metrics: as `lmjax.training.loop.pretrain` takes it.

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
        state = train(
            program,
            directory,
            data,
            evaluate,
            name=name,
            seed=seed,
            length=task.length,
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
    """`make_optimizer` for the trainable parameters; the others are kept.

    Args:
      trainable: path of a parameter -> whether it is trained.
      config, steps, shapes: as `make_optimizer` takes them.
    """
    labels = map_named(lambda path, _: "train" if trainable(path) else "keep", shapes)
    if set(jax.tree.leaves(labels)) == {"train"}:
        return make_optimizer(config, steps, shapes)
    # Moments and the norm that is clipped are those of the trained parameters alone.
    inner, schedule = make_optimizer(config, steps, _select(shapes, trainable, optax.MaskedNode()))
    return optax.partition({"train": inner, "keep": optax.set_to_zero()}, labels), schedule


def score_sets(
    prepared: Prepared, predict: Callable[[str, Task], list[Row]]
) -> tuple[Task, dict[str, ScoredRows], Scores]:
    """The task with what is chosen on validation, the sets scored by it, and what chose it.

    Args:
      predict: (split, task) -> predictions for its rows.
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
    """The tree with `other` in place of what is not trained."""
    return map_named(lambda path, leaf: leaf if trainable(path) else other, tree)


def save_model(
    prepared: Prepared, task: Task, tokenizer: Tokenizer, params: Any, place: pathlib.Path
) -> str:
    """Writes what `lmjax.load` builds network and task of, and model/ for `transformers`.

    Args:
      task: with what was chosen after training.

    Returns:
      Why there is no model/; see `export_model`.
    """
    write_network(task.saved_network, task.class_names, place, task.adapter.scale)
    write_task(task, prepared.data, place)
    return export_model(task, tokenizer, params, place)


def export_model(task: Task, tokenizer: Tokenizer, params: Any, place: pathlib.Path) -> str:
    """Writes model/ for `transformers`, whole or not at all.

    Of a head that `transformers` has not, the encoder is written alone.

    Returns:
      Why there is no model/, where `transformers` has no class for it; else ''.
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
    """results.json, and for each set predictions.jsonl and report.md, named after a named set."""
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
            f"{counts['train']:,} rows to learn from; scores are of the {counts[split]:,}"
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
    """What the names of a set's files have behind them; '' where there is one without a name."""
    return "" if prepared.scored in (("test",), ("validation",)) else f"-{split}"


def _chosen_lines(chosen: Scores, count: int, split: str) -> list[str]:
    if not chosen:
        return []
    same = " They are the rows that are scored here." if split == "validation" else ""
    header = f"Chosen on the {count:,} rows of validation, by their scores:{same}"
    return [header, "", *(f"- {name} {value:.4f}" for name, value in chosen.items()), ""]


def note_lines(prepared: Prepared) -> list[str]:
    """What was skipped, cut or split, a line each, and an empty line behind them."""
    lines = []
    for split, notes in prepared.notes.items():
        for kind, count in notes.counts.items():
            lines.append(f"- {split}: {count:,} {kind}")
        lines += [f"  - {named}" for named in notes.named]
    return [*lines, ""] if lines else []


def table_rows(scores: Mapping[str, Sequence[Scores]]) -> list[tuple[str, ...]]:
    """A header and a line for each name: the median over seeds, and their range.

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
    """`table_rows` as lines of Markdown."""
    header, *rows = table_rows(scores)
    return markdown_table(header, rows)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value)
