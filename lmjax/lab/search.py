"""Hyperparameter search; each trial is an ablation with one variant.

  DIR/config.json         the search's config
  DIR/study.log           Optuna's journal of trials and results
  DIR/trials/N/           an ablation with one variant and its seeds

Samples depend only on the config and on earlier results, so that an interrupted search resumes with
the same trials.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import flax.traverse_util
import ml_collections

from lmjax.atomic import write_json
from lmjax.configuration import Block, PositiveInt, Seed, build, convert, quoted
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.extras import require
from lmjax.lab.cells import check_variants, run_cells
from lmjax.lab.plan import Ablation, ComparisonConfig, read_ablation, refuse_retired_fields
from lmjax.lab.results import read_results
from lmjax.training.monitor import DivergedError
from lmjax.training.plan import PretrainConfig
from lmjax.training.run_directory import RunDirectory

_TRIAL = "trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(ComparisonConfig):
    """The config of a search.

    Attributes:
      pretraining: the pretraining config.
      space: the searched fields, nested as in `pretraining`; leaves are {'low', 'high', 'log'} or
        {'choices'}.
      sampler: how trials are chosen; 'grid' tries all combinations of choices.
      trials: number of trials.
      measure: the name of the measure to optimize.
      seed: seed of the sampler.
    """

    # A resumed search may have more trials.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("trials", "seeds_together")

    pretraining: Annotated[Mapping[str, Any], Block(find=lambda *_: PretrainConfig)]
    space: Mapping[str, Any]
    sampler: Literal["grid", "random", "tpe"] = "tpe"
    trials: PositiveInt = 20
    measure: str
    seed: Seed = 0


_OWN = ("space", "sampler", "trials", "measure", "seed")  # not fields of an ablation


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished trial.

    Attributes:
      fields: dotted names of fields of the pretraining config -> their values.
      value: the mean of the measure over the seeds.
    """

    number: int
    fields: Mapping[str, Any]
    value: float


def search(
    config: ml_collections.ConfigDict, directory: str | pathlib.Path, command: str
) -> list[Found]:
    """Runs the remaining trials and writes trials.csv and best.json.

    Args:
      config: the fields of `SearchConfig`.
      directory: the directory of the search.
      command: the command that runs it, for reports.

    Returns:
      All successful trials, sorted from best to worst; diverged trials are omitted.

    Raises:
      ConfigError: a field is invalid, before training starts; Optuna is not installed; or all
        trials diverged.
    """
    ablation = read_search(config)
    import optuna
    from optuna.storages.journal import JournalFileBackend

    check_variants(ablation, list(ablation.variants))
    values, settings = config.to_dict(), build(SearchConfig, config, "config")
    space = dict(_leaves(settings.space))
    distributions = {name: _distribution(name, leaf) for name, leaf in space.items()}
    direction = ablation.measures[settings.measure].direction
    trials, seed = settings.trials, settings.seed
    points: list[dict[str, Any]] = []  # the points of a grid, in order
    if settings.sampler == "grid":
        choices = itertools.product(*(leaf["choices"] for leaf in space.values()))
        points = [dict(zip(space, chosen, strict=True)) for chosen in choices][:trials]
        trials = len(points)
    own = RunDirectory(directory, config, SearchConfig)
    place = own.path
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = optuna.trial.TrialState
    with own.locked():
        own.claim()
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(place / "study.log"))),
            study_name=settings.name,
            direction="maximize" if direction == "higher" else "minimize",
            load_if_exists=True,
        )
        while len(study.get_trials(states=(states.COMPLETE, states.FAIL))) < trials:
            if left := study.get_trials(states=(states.RUNNING,)):  # of a killed process
                trial = optuna.trial.Trial(study, left[0]._trial_id)
            else:
                number = len(study.trials)
                # A new process restarts the sampler, so every trial has its own seed.
                random = settings.sampler == "random"
                make = optuna.samplers.RandomSampler if random else optuna.samplers.TPESampler
                study.sampler = make(seed=seed + number)
                if points:
                    study.enqueue_trial(points[number])
                trial = study.ask(distributions)
            try:
                value = _run(values, trial.number, trial.params, place, command)
            except (DivergedError, NonFiniteError) as error:
                print(f"trial {trial.number}: {error}", file=sys.stderr, flush=True)
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, value)
    done = study.get_trials(states=(states.COMPLETE,))
    if not done:
        raise ConfigError(f"config.space: all {trials} trials diverged; search lower rates")
    found = [Found(t.number, t.params, t.values[0]) for t in done]
    found.sort(key=lambda f: -f.value if direction == "higher" else f.value)
    _write(found, place)
    return found


def _run(
    values: Mapping[str, Any],
    number: int,
    fields: Mapping[str, Any],
    place: pathlib.Path,
    command: str,
) -> float:
    """Trains and measures a trial; returns the mean over its seeds."""
    config = _as_ablation(values, {_TRIAL: fields})
    directory = place / "trials" / str(number)
    directory.mkdir(parents=True, exist_ok=True)
    run_cells(read_ablation(config), config, directory, command)
    measured = read_results(directory).values(_TRIAL, values["measure"])
    if not measured:
        raise ConfigError(
            f"config.measure: these models have no '{values['measure']}'; use another measure"
        )
    return statistics.fmean(measured.values())


def _as_ablation(
    values: Mapping[str, Any], trials: Mapping[str, Mapping[str, Any]]
) -> ml_collections.ConfigDict:
    """Returns an ablation's config with a variant for each of `trials`, name -> fields."""
    variants = {
        trial: {
            "description": ", ".join(
                f"{name.split('.')[-1]} {shown(x)}" for name, x in fields.items()
            ),
            "changes": flax.traverse_util.unflatten_dict(dict(fields), sep="."),
        }
        for trial, fields in trials.items()
    }
    own = {name: x for name, x in values.items() if name not in _OWN}
    return ml_collections.ConfigDict({**own, "base": next(iter(trials)), "variants": variants})


def read_search(config: ml_collections.ConfigDict) -> Ablation:
    """Checks a search's config without training or writing files.

    Returns:
      An ablation with trials for each end of each range, and for each choice.

    Raises:
      ConfigError: a field is invalid, or Optuna is not installed.
    """
    refuse_retired_fields(config)
    settings = build(SearchConfig, config, "config")
    space = dict(_leaves(settings.space))
    if not space:
        raise ConfigError("config.space: empty; name at least one field to search")
    for name, leaf in space.items():
        _distribution(name, leaf)
    ranges = [name for name, leaf in space.items() if "choices" not in leaf]
    if settings.sampler == "grid" and ranges:
        raise ConfigError(f"config.space.{ranges[0]}: a grid needs choices instead of a range")
    candidates = {
        name: leaf.get("choices") or [leaf["low"], leaf["high"]] for name, leaf in space.items()
    }
    first = {name: found[0] for name, found in candidates.items()}
    others = [{**first, name: x} for name, found in candidates.items() for x in found[1:]]
    trials = {f"{_TRIAL}{i}": fields for i, fields in enumerate([first, *others])}
    ablation = read_ablation(_as_ablation(config.to_dict(), trials))
    if settings.measure not in ablation.measures:
        known = ", ".join(ablation.measures)
        raise ConfigError(f"config.measure: '{settings.measure}' is not one of {known}")
    return ablation


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the dotted names of the searched fields, with their ranges or choices."""
    for name, inner in block.items():
        where = f"{prefix}{name}"
        if not isinstance(inner, Mapping):
            raise ConfigError(
                f"config.space.{where}: expected {{'low', 'high', 'log'}} or {{'choices'}}, got"
                f" {quoted(inner)}"
            )
        if {"low", "high", "choices"} & set(inner):
            yield where, inner
        else:
            yield from _leaves(inner, f"{where}.")


def _distribution(name: str, leaf: Mapping[str, Any]) -> Any:
    distributions = require("optuna.distributions", "search", "config.space: a search")
    where = f"config.space.{name}"
    given = dict(leaf) if "choices" in leaf else {"log": False, **leaf}
    fields: dict[str, Any] = {"low": int | float, "high": int | float, "log": bool}
    if "choices" in leaf:
        fields = {"choices": tuple[Any, ...]}
    for odd in given.keys() ^ fields.keys():
        raise ConfigError(f"{where}: '{odd}' is {'missing' if odd in fields else 'unknown'}")
    values = {field: convert(given[field], hint, where) for field, hint in fields.items()}
    whole = all(isinstance(values.get(end), int) for end in ("low", "high"))
    range_of = distributions.IntDistribution if whole else distributions.FloatDistribution
    try:
        make = distributions.CategoricalDistribution if "choices" in leaf else range_of
        return make(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def shown(value: Any) -> str:
    """Formats a value for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(found: Sequence[Found], place: pathlib.Path) -> None:
    names = list(found[0].fields)
    with (place / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *names, "value"])
        for f in found:
            writer.writerow([f.number, *(f.fields[name] for name in names), f.value])
    write_json(place / "best.json", {"value": found[0].value, "fields": dict(found[0].fields)})


def flags(found: Found) -> str:
    """Formats the fields of a trial as flags of `experiments.pretrain`."""
    return " ".join(f"--config.{name}={json.dumps(value)}" for name, value in found.fields.items())
