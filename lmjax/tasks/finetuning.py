"""Fine-tuning: the loop of pretraining on labelled rows, and what is left of it to read."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from lmjax.convert.huggingface import save_huggingface
from lmjax.convert.networks import exported
from lmjax.convert.pretrained import Pretrained
from lmjax.convert.runs import write_network
from lmjax.data.rows import Row
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import ConfigError
from lmjax.models.heads import Headed
from lmjax.tasks.base import Scores, Task
from lmjax.tasks.batches import Collator, Epochs
from lmjax.tasks.plan import MAY_CHANGE, Prepared
from lmjax.tasks.reading import Reader
from lmjax.tasks.starting import Start, put_in
from lmjax.training.distributed import noticing_lost_processes
from lmjax.training.loop import Run
from lmjax.training.optimizers import OptimizerConfig, make_optimizer
from lmjax.training.reporting import RunDirectory
from lmjax.training.schedules import Schedule
from lmjax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ends with.

    Attributes:
      scores: on the rows of `Prepared.scored`.
      predictions: of these rows.
      parameters, trained: how many numbers the parameters are, and how many of them changed.
      not_exported: why there is no model/ for `transformers`; '' where there is one.
    """

    scores: Scores
    predictions: list[Row]
    parameters: int
    trained: int
    not_exported: str


def finetune(
    prepared: Prepared,
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    name: str,
    *,
    seed: int,
    scratch: bool = False,
) -> Result:
    """Fine-tunes with one seed, or continues where the run in `workdir` was.

    Leaves predictions.jsonl, report.md and results.json; the directory is one that `lmjax.load`
    opens, and model/ in it is one for `transformers`, where that has the model.

    Args:
      config: that `prepared` was made of.
      name: shown beside the progress bar.
      seed: of the head, the order of the examples and dropout.
      scratch: begin with a random encoder instead.

    Raises:
      ConfigError, DivergedError, PreemptedError: as `lmjax.training.loop.pretrain`.
    """
    if jax.process_count() > 1:
        raise ConfigError("--processes: fine-tuning runs in one process, on all of its devices")
    own = config.copy_and_resolve_references()
    own.seed = seed
    if scratch:
        own.init = ""
    directory = RunDirectory(workdir, own, MAY_CHANGE)
    start = prepared.start.from_scratch() if scratch else prepared.start
    start.tokenizer.save(directory.path / "tokenizer.json")
    with jax.set_mesh(prepared.mesh), noticing_lost_processes():
        run = _Finetuning(prepared, start, directory, seed)
        state = run.train(name)
        predictions, _ = run.predict(state.params, prepared.scored)
    scores = prepared.task.scores(predictions)
    sizes = jax.tree.map(lambda leaf: leaf.size, state.params)
    trained = jax.tree.leaves(_select(sizes, prepared.task.trainable))
    task = prepared.task
    write_network(task.network, task.class_names, directory.path, task.adapter.scale)
    why = export_model(task, start.tokenizer, state.params, directory.path)
    result = Result(scores, predictions, sum(jax.tree.leaves(sizes)), sum(trained), why)
    write_results(prepared, result, directory.path)
    return result


class _Finetuning(Run):
    """The loop, beginning with a pretrained encoder and looking at scores."""

    def __init__(self, prepared: Prepared, start: Start, directory: RunDirectory, seed: int):
        self.prepared = prepared
        sequence = prepared.mesh.shape["sequence"]
        self.collate = Collator(prepared.task, prepared.training.batch_size, sequence)
        data = {
            split: Epochs(prepared.examples[split], self.collate, seed)
            for split in ("train", "validation")
        }
        training, optimizer = prepared.training.of_steps(
            data["train"].batches_per_epoch, prepared.optimizer
        )
        super().__init__(
            prepared.task,
            directory,
            data,
            seed=seed,
            training=training,
            optimizer=optimizer,
            mesh=prepared.mesh,
            length=prepared.task.length,
            begin=lambda fresh: put_in(fresh, start),
        )
        self.reader = Reader(
            prepared.task, self.collate, self.mesh, self.program.places.params, start.tokenizer
        )

    def transformation(
        self, config: OptimizerConfig, steps: int, shapes: Any
    ) -> tuple[optax.GradientTransformation, Schedule]:
        trainable = self.prepared.task.trainable
        labels = _map_paths(lambda path, _: "train" if trainable(path) else "keep", shapes)
        if set(jax.tree.leaves(labels)) == {"train"}:
            return super().transformation(config, steps, shapes)
        # Moments and the norm that is clipped are of the trained parameters alone.
        inner, schedule = make_optimizer(
            config, steps, _select(shapes, trainable, optax.MaskedNode())
        )
        return optax.partition({"train": inner, "keep": optax.set_to_zero()}, labels), schedule

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Loss and scores of the validation rows."""
        predictions, means = self.predict(state.params, "validation")
        return means | self.prepared.task.scores(predictions)

    def predict(self, params: Any, split: str) -> tuple[list[Row], dict[str, float]]:
        """Predictions for all rows of a split, and the means of what the loss is made of."""
        return self.reader.predict(params, self.prepared.rows[split], self.prepared.examples[split])


def _map_paths(function: Any, tree: Any) -> Any:
    """Maps `function(path, leaf)`, the path as the tuple of the dict keys."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(tuple(str(getattr(k, "key", k)) for k in path), leaf), tree
    )


def _select(tree: Any, trainable: Any, other: Any = None) -> Any:
    """The tree with `other` in place of what is not trained."""
    return _map_paths(lambda path, leaf: leaf if trainable(path) else other, tree)


def export_model(task: Task, tokenizer: Tokenizer, params: Any, place: pathlib.Path) -> str:
    """Writes model/ for `transformers`, whole or not at all.

    Of a head that `transformers` has not, the encoder is written alone.

    Returns:
      Why there is no model/, where `transformers` has no class for it; else ''.
    """
    vocabulary = task.vocabulary
    network, kept = exported(task.network, task.merged(params))
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
    """predictions.jsonl, results.json and report.md."""
    lines = [json.dumps(row, ensure_ascii=False, default=_plain) for row in result.predictions]
    (place / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    notes = {split: dict(found.counts) for split, found in prepared.notes.items()}
    counts = {split: len(rows) for split, rows in prepared.rows.items()}
    values = {
        "scored": prepared.scored,
        "scores": result.scores,
        "baselines": dict(prepared.baselines),
        "rows": counts,
        "notes": notes,
        "parameters": result.parameters,
        "trained_parameters": result.trained,
    }
    (place / "results.json").write_text(json.dumps(values, indent=2) + "\n")
    scored = {"fine-tuned": result.scores, **prepared.baselines}
    report = [
        f"# {type(prepared.task).__name__}",
        "",
        f"{counts['train']:,} rows to learn from; scores are of the {counts[prepared.scored]:,}"
        f" rows of {prepared.scored}.",
        "",
        *markdown_table({name: [scores] for name, scores in scored.items()}),
        "",
        *note_lines(prepared),
        *prepared.task.report(result.predictions),
    ]
    (place / "report.md").write_text("\n".join(report) + "\n", encoding="utf-8")


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


def markdown_table(scores: Mapping[str, Sequence[Scores]]) -> list[str]:
    """The lines of `table_rows` in markdown."""
    header, *rows = table_rows(scores)
    ruler = ("---", *["---:"] * (len(header) - 1))
    return [f"| {' | '.join(row)} |" for row in (header, ruler, *rows)]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value)
