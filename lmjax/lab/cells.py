"""Training and measuring the cells of an ablation; interrupted cells are resumed.

  DIR/config.json                the ablation's config
  DIR/ablation.json              the ablation's description, for the report
  DIR/cells/VARIANT/steps.json   number of steps that the budget allows
  DIR/cells/VARIANT/seedN/       a pretraining run, and its result.json

Several processes may share DIR, on machines that share a disk: each works on a variant that no
other process works on. When a process is killed, its variant is released immediately.
"""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.traverse_util
import ml_collections

from lmjax.atomic import write_json
from lmjax.configuration import allowing
from lmjax.errors import ConfigError
from lmjax.lab.budget import flops_per_step
from lmjax.lab.plan import Ablation, AblationConfig
from lmjax.lab.results import read_results
from lmjax.locking import held
from lmjax.training.checkpoints import read_part
from lmjax.training.loop import check_run, pretrain
from lmjax.training.plan import make_plan
from lmjax.training.run_directory import RunDirectory, read_metrics


def run_cells(
    ablation: Ablation,
    config: ml_collections.ConfigDict,
    directory: str | pathlib.Path,
    command: str,
    only: Collection[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Trains and measures the cells that are neither finished nor in progress.

    A sequential rule takes one look after the other: a variant whose difference to the base is
    significant at a look gets no more seeds. Looks are decided by the finished cells alone, so
    that an interrupted ablation continues with the same decisions.

    Args:
      ablation: the ablation.
      config: the config that `ablation` was read from.
      directory: the ablation's directory.
      command: the command that runs it, for the report.
      only: names of variants; () = all.
      say: prints messages.

    Raises:
      ConfigError: the directory belongs to another ablation, `only` has an unknown variant, or a
        rule cannot test its measure.
      NonFiniteError: a value that a rule tests is not finite.
    """
    if odd := [name for name in only if name not in ablation.variants]:
        raise ConfigError(f"--only: '{odd[0]}' is not one of {', '.join(ablation.variants)}")
    shared = RunDirectory(directory, config, AblationConfig)
    wanted = list(only or ablation.variants)
    if ablation.sequential is None:
        _run_seeds(ablation, ablation.seeds, wanted, shared, command, say)
        return
    cells, trained = shared.path / "cells", list(ablation.variants)
    for seeds in ablation.sequential.looks:
        names = [name for name in wanted if name in trained]
        _run_seeds(ablation, range(seeds), names, shared, command, say)
        if left := [name for name in trained if _unfinished(cells / name, range(seeds))]:
            say(
                f"look at {seeds} seeds: not all cells of {', '.join(left)} are finished; run the"
                " command again when they are"
            )
            return
        undecided = read_results(shared.path).up_to(seeds).undecided()
        say(f"look at {seeds} seeds: undecided: {', '.join(undecided) or 'none'}")
        if not undecided:
            return
        trained = [ablation.base, *undecided]


def _run_seeds(
    ablation: Ablation,
    seeds: Sequence[int],
    names: Sequence[str],
    shared: RunDirectory,
    command: str,
    say: Callable[[str], None],
) -> None:
    """Trains and measures the first seeds of some variants."""
    cells = shared.path / "cells"
    left = [name for name in names if _unfinished(cells / name, seeds)]
    check_variants(ablation, left)
    with shared.locked(wait=True):  # briefly: other processes may share the ablation
        shared.claim()
        cells.mkdir(exist_ok=True)
        write_json(shared.path / "ablation.json", ablation.described(command))
    for name in left:
        folder = cells / name
        folder.mkdir(exist_ok=True)
        with held(folder / ".lock") as holder:
            if holder:
                say(f"{name}: {holder} is working on it")
            else:
                _run_variant(ablation, name, seeds, folder)


def _unfinished(folder: pathlib.Path, seeds: Sequence[int]) -> bool:
    return not all(result_of(folder, seed).exists() for seed in seeds)


def check_variants(ablation: Ablation, names: Collection[str]) -> None:
    """Checks that the runs of variants can start with their configs and data.

    Raises:
      ConfigError: a run cannot start; names the variant and the field.
    """
    for name in names:
        try:
            check_run(ablation.variants[name].config)
        except ConfigError as error:
            raise ConfigError(f"config.variants.{name}, with its changes: {error}") from error


def result_of(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Returns the result file of a cell in the folder of its variant."""
    return folder / f"seed{seed}" / "result.json"


def _run_variant(ablation: Ablation, name: str, seeds: Sequence[int], folder: pathlib.Path) -> None:
    """Trains the seeds in turn, then measures those without a result."""
    config = ablation.variants[name].config.copy_and_resolve_references()
    kept = folder / "steps.json"
    if not kept.exists():
        steps = ablation.budget.steps(config, folder / "timing")
        write_json(kept, {"budget": str(ablation.budget), "steps": steps})
    config.training.steps = json.loads(kept.read_text())["steps"]
    places = {seed: folder / f"seed{seed}" for seed in seeds}
    for seed, place in places.items():
        config.seed = seed
        pretrain(config, place, f"{name}, seed {seed}")
    # The user's config names the objective, so its module may be imported.
    with allowing([config.objective.type.rpartition(".")[0]]):
        _measure(ablation, name, config, places)


def _measure(
    ablation: Ablation,
    name: str,
    config: ml_collections.ConfigDict,
    places: Mapping[int, pathlib.Path],
) -> None:
    for seed, place in places.items():
        if result_of(place.parent, seed).exists():
            continue
        measured = {m: one.measure(place, m, seed) for m, one in ablation.measures.items()}
        made = {"variant": name, "seed": seed, "measures": measured, **_trained(config, place)}
        write_json(result_of(place.parent, seed), made)


def _trained(config: ml_collections.ConfigDict, place: pathlib.Path) -> dict[str, Any]:
    """Returns the curve of the held-out loss and the run's cost, without times, which vary."""
    lines = read_metrics(place)
    train = [line for line in lines if line["split"] == "train"]
    plan = make_plan(config)
    try:
        flops = flops_per_step(config)
    except ConfigError:
        flops = None
    curve: dict[str, list[float]] = {"steps": [], "tokens": [], "flops": [], "loss": []}
    for line in lines:
        if line["split"] == "validation":
            curve["steps"].append(line["step"])
            curve["tokens"].append(sum(t["tokens"] for t in train if t["step"] <= line["step"]))
            curve["flops"].append((flops or 0) * line["step"])
            curve["loss"].append(line[plan.phase_at(line["step"]).objective.headline])
    params, steps = read_part(place / "checkpoints", "params"), config.training.steps
    sizes = {names: x.size for names, x in flax.traverse_util.flatten_dict(params).items()}
    cost = {
        "parameters": sum(sizes.values()),
        "trunk_parameters": sum(n for names, n in sizes.items() if "stack" in names),
        "steps": steps,
        "tokens": sum(line["tokens"] for line in train),
        "flops": flops and flops * steps,
    }
    return {"curve": {**curve, "flops": flops and curve["flops"]}, "cost": cost}
