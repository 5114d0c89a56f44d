"""The library for notebooks: training and evaluation of texts and rows in memory or in files.

What `experiments` does from the command line, without flags. A run still has a directory, from
which it resumes; without `workdir` it is a temporary one, deleted when Python exits.
"""

import atexit
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import ml_collections

from lmjax.configuration import overlaid, plain
from lmjax.convert.warm_start import initialization
from lmjax.data.corpora import open_corpus
from lmjax.data.rows import Notes, RowsConfig
from lmjax.errors import ConfigError
from lmjax.evaluation.continuations import last_words, read_last_words
from lmjax.evaluation.minimal_pairs import judge, read_pairs
from lmjax.evaluation.perplexity import perplexity
from lmjax.host import tune_host
from lmjax.tasks import finetuning
from lmjax.tasks.opened import Item, Opened, load
from lmjax.tasks.plan import prepare, read_rows
from lmjax.training import loop
from lmjax.training.run_directory import OnMetrics

Config: TypeAlias = Mapping[str, Any] | ml_collections.ConfigDict
Path = str | os.PathLike[str]
Texts = Path | Iterable[str]
Rows = Path | Iterable[Mapping[str, Any]]
# BERT's fine-tuning (Devlin et al. 2018, App. A.3), with the corrections of Mosbach et al. (2021).
# The model is that of `init`.
_FINETUNING = {
    "optimizer": {
        "learning_rate": 5e-5,
        "schedule": "linear_after_warmup",
        "bias_correction": True,
    },
    "training": {"epochs": 3, "batch_size": 32},
}
_UNUSED = {
    "type": "lmjax.models.bert.BertConfig",
    "trunk": {"layers": 1, "hidden_size": 1, "heads": 1, "intermediate_size": 1},
}


def pretrain(
    config: Config,
    texts: Texts | None = None,
    *,
    validation_texts: Texts | None = None,
    workdir: Path | None = None,
    on_metrics: OnMetrics | None = None,
) -> Opened:
    """Pretrains a model, or resumes its run.

    Args:
      config: the fields of `lmjax.training.plan.PretrainConfig`, as plain values; those that are
        left out have their defaults. `init` continues the training of a pretrained model.
      texts: documents, or a corpus as `config.data.corpus` names one; None takes it from there.
      validation_texts: held-out documents, or a corpus; None holds out a part of `texts`.
      workdir: directory of the run.
      on_metrics: is called with the step and the metrics of each line of metrics.jsonl, under
        names such as 'train/loss' and 'validation/loss'.

    Returns:
      The model of the last step, as `lmjax.load` opens it.

    Raises:
      ConfigError: a field, a file or a text that cannot work; raised before anything is compiled.
      DivergedError, PreemptedError: as `lmjax.training.loop.pretrain`.
    """
    tune_host()
    place, values = _directory(workdir), _blocks(config, "data")
    for name, given in (("corpus", texts), ("validation_corpus", validation_texts)):
        if given is not None:
            values["data"][name] = _file(place, given, as_text=True)
    made, warm_start = ml_collections.ConfigDict(values), None
    if made.get("init"):
        made, warm_start = initialization(made)
    loop.pretrain(made, place, warm_start=warm_start, on_metrics=on_metrics)
    return load(place, allow_modules=_modules(values))


def finetune(
    config: Config,
    *,
    train: Rows | None = None,
    validation: Rows | None = None,
    test: Rows | None = None,
    workdir: Path | None = None,
    on_metrics: OnMetrics | None = None,
) -> Opened:
    """Fine-tunes a pretrained model, or resumes its run.

    Args:
      config: the fields of `lmjax.tasks.plan.FinetuneConfig`, as plain values, such as
        {"task": {"type": "lmjax.tasks.classification.Classification"}, "init": "runs/bert"};
        those that are left out have their defaults, and of the optimizer and the training BERT's.
      train, validation, test: rows, or files as `config.data` names them; None takes them from
        there. Without validation a tenth of `train` is held out.
      workdir: directory of the run; it gets predictions.jsonl, report.md and results.json.
      on_metrics: as `pretrain` takes it.

    Returns:
      The fine-tuned model, as `lmjax.load` opens it: `.predict(rows)`.

    Raises:
      ConfigError: a field, a file or a row that cannot work; raised before anything is compiled.
      DivergedError, PreemptedError: as `lmjax.training.loop.pretrain`.
    """
    tune_host()
    place, values = _directory(workdir), _blocks(config, "data")
    for name, given in (("train", train), ("validation", validation), ("test", test)):
        if given is not None:
            values["data"][name] = _file(place, given)
    if values.get("init"):
        values = {"model": _UNUSED, **values}
    elif "model" not in values:
        raise ConfigError("config.init: missing; give a run or a directory of Hugging Face")
    made = ml_collections.ConfigDict(overlaid(_FINETUNING, values))
    prepared = prepare(made)
    finetuning.finetune(
        prepared, made, place, "fine-tuning", seed=made.get("seed", 0), on_metrics=on_metrics
    )
    return load(place, allow_modules=_modules(values))


def evaluate(
    model: Opened,
    data: Texts | Rows,
    what: Literal["", "perplexity", "minimal_pairs", "last_word"] = "",
) -> dict[str, float]:
    """Scores of a model, without training.

    Args:
      model: of `load`, `pretrain` or `finetune`.
      data: texts or rows, or the files that hold them.
      what: 'perplexity' of texts, by a causal model; 'minimal_pairs', rows with `good` and `bad`;
        'last_word' of texts; '' scores the predictions of a fine-tuned model for labelled rows.

    Raises:
      ConfigError: the model has not what the measure needs, or a row or text cannot be used.
      NonFiniteError: the model gives NaN or infinity.
    """
    measures = ("perplexity", "minimal_pairs", "last_word", "")
    if what not in measures:
        raise ConfigError(f"what: '{what}' is not one of {', '.join(map(repr, measures))}")
    if not what and model.task is None:
        raise ConfigError("what: empty, and the model has no task; name a measure")
    with tempfile.TemporaryDirectory() as folder:
        path = _file(pathlib.Path(folder), data, as_text=what in ("perplexity", "last_word"))
        if what == "perplexity":
            found = perplexity(model, open_corpus(path, "all", where="data").documents())
            return {
                "perplexity": found.per_token,
                "word_perplexity": found.per_word,
                "bits_per_byte": found.bits_per_byte,
            }
        if what == "minimal_pairs":
            return {"accuracy": float(judge(model, read_pairs(path, 0, "data")).mean())}
        if what == "last_word":
            asked = read_last_words(path, "text", "refuse", Notes())
            words = last_words(model, [(row["context"], row["word"]) for row in asked])
            return {"accuracy": words.share.accuracy, "perplexity": words.perplexity}
        assert model.task is not None
        rows = read_rows(model.task, RowsConfig(train=path, validation=path), "train", Notes())
    told = model.told([Item({}, row) for row in rows], whole=True)
    return model.task.scores([row for row in told if row is not None])


def _directory(workdir: Path | None) -> pathlib.Path:
    if workdir is not None:
        return pathlib.Path(workdir)
    place = tempfile.mkdtemp(prefix="lmjax-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return pathlib.Path(place)


def _blocks(config: Config, *blocks: str) -> dict[str, Any]:
    """The plain values of a config, in which these blocks are there."""
    values = dict(plain(config))
    for name in blocks:
        values[name] = dict(values.get(name, {}))
    return values


def _file(place: pathlib.Path, data: Any, as_text: bool = False) -> str:
    """The file that holds texts or rows; of those in memory one that is named by its content."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    listed = list(data)
    wanted: type = str if as_text else Mapping
    for i, item in enumerate(listed):
        if not isinstance(item, wanted):
            kind = "a text" if as_text else "a dict of columns"
            raise ConfigError(f"data: number {i} is a {type(item).__name__}; give {kind}")
    rows = [{"text": item} for item in listed] if as_text else [dict(item) for item in listed]
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        content = text.encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data: a row holds what is no plain data ({error})") from error
    folder = place / "data"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.jsonl"
    if not path.exists():
        path.write_bytes(content)
    return str(path)


def _modules(values: Any) -> set[str]:
    """The packages of all classes that a config names: its own run may be opened with them."""
    if isinstance(values, Mapping):
        own = {str(values["type"]).split(".")[0]} if "type" in values else set()
        return own.union(*map(_modules, values.values()))
    return set()
