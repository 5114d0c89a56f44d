"""A search for hyper-parameters, whose trials are cells of an ablation.

  DIR/config.json         the search's config
  DIR/study.log           Optuna's journal: what was asked, and what came of it
  DIR/trials/N/           an ablation of one variant, and its seeds

What is drawn depends on the config and on the earlier results alone, so that a killed search goes
on to the same trials.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import ml_collections

from lmjax.configuration import check_fields, whole_number
from lmjax.errors import ConfigError, NonFiniteError
from lmjax.lab.cells import claimed, run_cells, write_json
from lmjax.lab.plan import read_ablation
from lmjax.lab.results import read_results
from lmjax.training.reporting import RunDirectory
from lmjax.training.watch import DivergedError

SAMPLERS = ("grid", "random", "tpe")
# A search may go on for longer than was first said.
MAY_CHANGE = ("trials", "seeds_together")
_OWN = ("space", "sampler", "trials", "measure", "seed")
# And of an ablation's fields, those that a search has too.
_PLAIN = (
    *("name", "question", "seeds", "seeds_together", "comparable_losses"),
    *("sampler", "trials", "measure", "seed"),
)
_BLOCKS = ("budget", "pretraining", "measures", "space")
_TRIAL = "trial"


@dataclasses.dataclass(frozen=True)
class Found:
    """A finished trial.

    Attributes:
      fields: dotted names of pretraining's config -> their values.
      value: the mean of the measure over the seeds.
    """

    number: int
    fields: Mapping[str, Any]
    value: float


def search(
    config: ml_collections.ConfigDict, directory: str | pathlib.Path, command: str
) -> list[Found]:
    """Runs the trials that are not done yet, and writes trials.csv and best.json.

    Args:
      config: an ablation's without variants and base, and with `space`, shaped as the config of
        pretraining, whose leaves are {'low', 'high', 'log'} or {'choices'}; `sampler`; `trials`;
        `measure`, by name; `seed` of what is drawn.

    Returns:
      All trials that ended well, the best first; one that diverges is passed over.

    Raises:
      ConfigError: names the field, before anything is trained; or Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError(
            "searches are made by Optuna, which is not installed; pip install -e '.[search]'"
        ) from error
    values = config.to_dict()
    space = dict(_leaves(values.get("space") or {}))
    distributions = {name: _distribution(name, leaf) for name, leaf in space.items()}
    better = _check(values, space)
    trials, seed = whole_number(values, "trials", 1), whole_number(values, "seed", 0)
    points: list[dict[str, Any]] = []  # of a grid, in order
    if values["sampler"] == "grid":
        choices = itertools.product(*(leaf["choices"] for leaf in space.values()))
        points = [dict(zip(space, chosen, strict=True)) for chosen in choices][:trials]
        trials = len(points)
    place = RunDirectory(directory, config, MAY_CHANGE).path
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = optuna.trial.TrialState
    with claimed(place) as mine:
        if not mine:
            raise ConfigError(f"--workdir: another process is searching in '{place}'")
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(place / "study.log"))),
            study_name=values["name"],
            direction="maximize" if better == "higher" else "minimize",
            load_if_exists=True,
        )
        while len(study.get_trials(states=(states.COMPLETE, states.FAIL))) < trials:
            if left := study.get_trials(states=(states.RUNNING,)):  # by a process that was killed
                trial = optuna.trial.Trial(study, left[0]._trial_id)
            else:
                number = len(study.trials)
                # A sampler draws from the start on in each life of the search: a seed a trial.
                random = values["sampler"] == "random"
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
    found.sort(key=lambda f: -f.value if better == "higher" else f.value)
    _write(found, place)
    return found


def _run(
    values: Mapping[str, Any],
    number: int,
    fields: Mapping[str, Any],
    place: pathlib.Path,
    command: str,
) -> float:
    """Trains and measures a trial; the mean over its seeds."""
    config = _as_ablation(values, fields)
    directory = place / "trials" / str(number)
    directory.mkdir(parents=True, exist_ok=True)
    run_cells(read_ablation(config), config, directory, command)
    measured = read_results(directory).values(_TRIAL, values["measure"])
    if not measured:
        raise ConfigError(f"config.measure: '{values['measure']}' is none that these models have")
    return statistics.fmean(measured.values())


def _as_ablation(values: Mapping[str, Any], fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Of one variant, in which `fields` are set."""
    changes = flax.traverse_util.unflatten_dict(dict(fields), sep=".")
    says = ", ".join(f"{name.split('.')[-1]} {shown(x)}" for name, x in fields.items())
    own = {name: value for name, value in values.items() if name not in _OWN}
    variants = {_TRIAL: {"says": says, "changes": changes}}
    return ml_collections.ConfigDict({**own, "base": _TRIAL, "variants": variants})


def _check(values: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether a trial can be run at all; the better end of its measure."""
    check_fields(values, _PLAIN + _BLOCKS, plain=_PLAIN)
    if not space:
        raise ConfigError("config.space: empty; name at least one field to search")
    if values["sampler"] not in SAMPLERS:
        raise ConfigError(
            f"config.sampler: '{values['sampler']}' is not one of {', '.join(SAMPLERS)}"
        )
    ranges = [name for name, leaf in space.items() if "choices" not in leaf]
    if values["sampler"] == "grid" and ranges:
        raise ConfigError(f"config.space.{ranges[0]}: a grid takes choices, not a range")
    some = {
        name: leaf["choices"][0] if "choices" in leaf else leaf["low"]
        for name, leaf in space.items()
    }
    measures = read_ablation(_as_ablation(values, some)).measures
    if values["measure"] not in measures:
        raise ConfigError(f"config.measure: '{values['measure']}' is none of {', '.join(measures)}")
    return measures[values["measure"]].better


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted names of the fields that are searched."""
    for name, inner in block.items():
        where = f"{prefix}{name}"
        if not isinstance(inner, Mapping):
            raise ConfigError(
                f"config.space.{where}: expected {{'low', 'high', 'log'}} or {{'choices'}}, got"
                f" {inner!r}"
            )
        if {"low", "high", "choices"} & set(inner):
            yield where, inner
        else:
            yield from _leaves(inner, f"{where}.")


def _distribution(name: str, leaf: Mapping[str, Any]) -> Any:
    from optuna import distributions

    try:
        if set(leaf) == {"choices"}:
            return distributions.CategoricalDistribution(leaf["choices"])
        low, high, log = leaf["low"], leaf["high"], leaf.get("log", False)
        if odd := set(leaf) - {"low", "high", "log"}:
            raise ValueError(f"unknown field '{min(odd)}'")
        kind = isinstance(low, int) and isinstance(high, int)
        make = distributions.IntDistribution if kind else distributions.FloatDistribution
        return make(low, high, log=log)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config.space.{name}: {error}") from error


def shown(value: Any) -> str:
    """A number as a table has it."""
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
    """The best fields as flags of `experiments.pretrain`."""
    return " ".join(f"--config.{name}={json.dumps(value)}" for name, value in found.fields.items())
