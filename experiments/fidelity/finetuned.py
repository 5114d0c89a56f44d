"""Holds a finished run of `experiments.finetune` against `transformers` with the same recipe.

  python -m experiments.fidelity.finetuned --workdir=runs/sst2

The run must be a classification that began with a published BERT. Its config.json is read again,
so that rows, tokens, padding and recipe are the same; `transformers` then fine-tunes as
many seeds, which follow the run's own: heads, orders of the rows and dropout are drawn anew.
Prints scores on the same rows, the losses at the end, and 95% intervals (Welch's) of the
differences between the means over seeds.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np
import torch
import transformers
from scipy import stats

from experiments import command_line
from experiments.fidelity import recipe
from experiments.fidelity.outputs import quiet
from lmjax.configuration import opening
from lmjax.convert.huggingface import read_json
from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.progress import track
from lmjax.tables import markdown_table
from lmjax.tasks.base import Scores
from lmjax.tasks.classification import Classification
from lmjax.tasks.collate import Collator, Epochs, by_length
from lmjax.tasks.plan import Prepared, prepare
from lmjax.training.run_directory import read_metrics

SCORES = ("accuracy", "macro_f1")


@dataclasses.dataclass(frozen=True)
class End:
    """How a seed's run ended: its scores, and the mean loss of its last steps."""

    scores: Scores
    loss: float


def main() -> None:
    quiet()
    workdir = pathlib.Path(command_line.workdir())
    config = ml_collections.ConfigDict(read_json(workdir / "config.json"))
    with opening():
        prepared = prepare(config)
    check(prepared, config)
    seeds = range(config.seed, config.seed + config.seeds)
    places = [workdir if seed == config.seed else workdir / f"seed{seed}" for seed in seeds]
    ours = [our_end(place) for place in places]
    steps, last = last_steps(workdir)
    theirs = [their_end(prepared, config, s + config.seeds, first=steps - last) for s in seeds]
    ends = {"lmjax": ours, "transformers": theirs}
    print("\n".join(table(ends, f"loss of the last {last} steps")))


def check(prepared: Prepared, config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for a run that `transformers` is not made to repeat here."""
    task = prepared.task
    if type(task) is not Classification or task.model.published_type != "bert":
        raise ConfigError("config.task.type, config.init: only BERT's Classification is compared")
    if len(prepared.scored) > 1:
        raise ConfigError("config.data.test: one set alone is compared")
    if task.freeze or task.adapter.rank:
        raise ConfigError("config.task.freeze, .adapter.rank: only runs that train all of a model")
    if not (pathlib.Path(config.init) / "model.safetensors").is_file():
        raise ConfigError(f"config.init: '{config.init}' has no model.safetensors")
    if config.seeds < 2:
        raise ConfigError("config.seeds: one has no spread; continue the fine-tuning with more")
    recipe.check(prepared.optimizer)


def last_steps(place: pathlib.Path) -> tuple[int, int]:
    """Steps of a run, and how many of them the log's last means are of: a tenth or more."""
    logged = [line["step"] for line in read_metrics(place) if line["split"] == "train"]
    before = max((step for step in logged if step <= 0.9 * logged[-1]), default=0)
    return logged[-1], logged[-1] - before


def our_end(place: pathlib.Path) -> End:
    """Of a run that is finished: results.json is written last."""
    scores = read_json(place / "results.json")["scores"]
    steps, last = last_steps(place)
    total, before = 0.0, 0
    for line in read_metrics(place):
        if line["split"] == "train":
            if line["step"] > steps - last:
                total += line["loss"] * (line["step"] - before)
            before = line["step"]
    return End(scores, total / last)


def their_end(prepared: Prepared, config: ml_collections.ConfigDict, seed: int, first: int) -> End:
    """Fine-tunes in torch; the loss is of the steps from `first` on."""
    torch.manual_seed(seed)
    model = published(prepared, config)
    epochs = Epochs(prepared.examples["train"], _collator(prepared), seed)
    training, optimizer = prepared.training.of_steps(epochs.batches_per_epoch, prepared.optimizer)
    batches = (epochs.batch_at(step) for step in range(training.steps))
    title = f"transformers, seed {seed}"
    losses = recipe.train(model, track(batches, title, training.steps), optimizer, training.steps)
    return End(prepared.task.scores(predict(prepared, model)), float(np.mean(losses[first:])))


def published(prepared: Prepared, config: ml_collections.ConfigDict) -> Any:
    """The directory of `config.init`, with a random head and the run's dropout.

    Raises:
      ConfigError: it has a head already, which lmjax leaves behind.
    """
    loaded: Any = transformers.BertForSequenceClassification.from_pretrained(
        config.init,
        num_labels=len(prepared.task.labels),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        classifier_dropout=prepared.task.head_dropout,
        attn_implementation="eager",
        output_loading_info=True,
    )
    model, loading = loaded
    if "classifier.weight" not in loading["missing_keys"]:
        raise ConfigError(f"config.init: '{config.init}' has a classifier; give an encoder")
    return model


def predict(prepared: Prepared, model: Any) -> list[Row]:
    """Predictions for the rows that the run's score is of."""
    (scored,) = prepared.scored
    rows, examples = prepared.rows[scored], prepared.examples[scored]
    outputs: list[dict[str, Any]] = [{} for _ in examples]
    model.eval()
    with torch.no_grad():
        for indices, batch in by_length(examples, _collator(prepared)):
            logits = model(**recipe.arguments(batch)).logits.numpy()
            for index, row in zip(indices, logits, strict=True):
                outputs[index] = {"logits": row}
    return prepared.task.predict(rows, examples, outputs)


def table(ends: dict[str, list[End]], loss: str) -> list[str]:
    """Markdown: each side's median, mean and range over seeds, and the difference of means."""
    columns = [*SCORES, loss]
    rows = []
    values = {
        side: np.array([[*(end.scores[n] for n in SCORES), end.loss] for end in found])
        for side, found in ends.items()
    }
    for side, found in values.items():
        cells = [
            f"{np.median(x):.4f}, mean {x.mean():.4f} ({x.min():.4f} to {x.max():.4f})"
            for x in found.T
        ]
        rows.append([side, *cells])
    cells = []
    for ours, theirs in zip(*(found.T for found in values.values()), strict=True):
        low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        cells.append(f"{ours.mean() - theirs.mean():+.4f} ({low:+.4f} to {high:+.4f})")
    rows.append(["difference of means", *cells])
    return markdown_table(["", *columns], rows)


def _collator(prepared: Prepared) -> Collator:
    return Collator(prepared.task, prepared.training.batch_size)


if __name__ == "__main__":
    command_line.start(main)
