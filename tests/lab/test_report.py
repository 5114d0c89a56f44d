"""The report: its numbers against ones made by hand, and that it needs nothing but the cells."""

import csv
import json
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmjax.errors import ConfigError
from lmjax.lab.measures import MinimalPairs
from lmjax.lab.plots import plot_curves
from lmjax.lab.report import planned, write_report
from lmjax.lab.results import read_results
from lmjax.lab.sequential import Sequential, expected
from lmjax.lab.statistics import detectable, seeds_needed, upper_deviation
from tests.runs import ROOT

SCORES = {  # accuracy, loss
    "old": {0: (0.70, 2.0), 1: (0.72, 2.1), 2: (0.68, 1.9)},
    "new": {0: (0.80, 2.2), 1: (0.825, 2.2), 2: (0.775, 2.2)},
    "odd": {0: (None, 1.0), 1: (None, 1.3), 2: (None, 1.1)},
}
DESCRIBED: dict[str, Any] = {
    "name": "made_up",
    "question": "Is <new> better?",
    "command": "python -m experiments.ablate --config=x.py --workdir=y",
    "budget": "1,000 tokens",
    "base": "old",
    "seeds": [0, 1, 2],
    "comparable_losses": True,
    "variants": {name: {"description": f"the {name} one"} for name in SCORES},
    "measures": [
        {"name": "accuracy", "description": "SST-2", "direction": "higher", "percent": True},
        {"name": "loss", "description": "loss", "direction": "lower", "percent": False},
    ],
    "published": {
        "source": "A paper, Table 1",
        "measure": "error",
        "direction": "lower",
        "compare_to": "accuracy",
        "values": {"old": 20.0, "new": 15.0},
    },
}


def write(place: pathlib.Path, changes: dict[str, Any] | None = None) -> pathlib.Path:
    """An ablation's directory, as far as a report reads it."""
    place.mkdir()
    (place / "ablation.json").write_text(json.dumps(DESCRIBED | (changes or {})))
    for name, seeds in SCORES.items():
        for seed, (accuracy, loss) in seeds.items():
            folder = place / "cells" / name / f"seed{seed}"
            folder.mkdir(parents=True)
            flops = {"old": 1e9, "new": 2e9, "odd": None}[name]
            result = {
                "variant": name,
                "seed": seed,
                "measures": {"accuracy": accuracy, "loss": loss},
                "curve": {
                    "steps": [0, 1, 2],
                    "tokens": [0, 500, 1000],
                    "flops": flops and [0, 5e8, 1e9],
                    "loss": [4.0, loss + 1, loss],
                },
                "cost": {
                    "parameters": 12345,
                    "trunk_parameters": {"old": 100, "new": 200, "odd": 400}[name],
                    "steps": 2,
                    "tokens": 1000.0,
                    "flops": flops,
                },
            }
            (folder / "result.json").write_text(json.dumps(result))
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = write(tmp_path_factory.mktemp("report") / "run")
    write_report(made)
    return made


def test_the_numbers_are_those_made_by_hand(place: pathlib.Path) -> None:
    text = (place / "report.md").read_text()
    half = stats.t.ppf(0.975, 2) * 2.0 / np.sqrt(3)
    assert f"| old (base) | the old one | 70.0 [{70 - half:.1f}, {70 + half:.1f}] |" in text
    assert "| odd | the odd one | none | 1.133 [" in text
    p = stats.ttest_rel([0.80, 0.825, 0.775], [0.70, 0.72, 0.68]).pvalue
    shown = f"{p:.3f}" if p >= 0.001 else "<0.001"
    (line,) = (x for x in text.splitlines() if x.startswith("| SST-2, % | new | +"))
    assert line.startswith("| SST-2, % | new | +10.0 [") and line.endswith("| better |")
    assert f"| {shown} | {shown} |" in line  # one test alone is not corrected
    assert f"| {100 * detectable(0.005, 3, 0.05):.1f} | better |" in line
    p = stats.ttest_rel([2.2, 2.2, 2.2], [2.0, 2.1, 1.9]).pvalue
    (line,) = (x for x in text.splitlines() if x.startswith("| loss | new | +"))
    assert f"| {p:.3f} |" in line and line.endswith("| not significant |")
    assert f"| {detectable(0.1, 3, 0.05 / 2):.4g} |" in line  # the first of Holm's two tests
    (line,) = (x for x in text.splitlines() if x.startswith("| loss | odd | -"))
    assert line.endswith("| better |")  # of a loss, lower is better
    assert "9 of 9 cells are done" in text
    assert "| new | 12,345 | 2 | 1,000 | 2e+09 |" in text
    assert "| odd | 12,345 | 2 | 1,000 | unknown |" in text


def test_the_papers_numbers_are_compared(place: pathlib.Path) -> None:
    """An error that falls is an accuracy that rises."""
    text = (place / "report.md").read_text()
    assert "A paper, Table 1: error; here: SST-2, %." in text
    (line,) = (x for x in text.splitlines() if x.startswith("| new | 15 |"))
    assert line.startswith("| new | 15 | -5 | +10.0 [") and line.endswith("| agrees |")
    assert (
        "1 of 1 differences have the paper's sign. Significant, and in the paper's direction: new."
        in (text)
    )


def test_against_the_paper_and_undecided(tmp_path: pathlib.Path) -> None:
    published = DESCRIBED["published"]
    against = {"published": {**published, "values": {"old": 20.0, "new": 25.0}}}
    write_report(write(tmp_path / "against", against))
    assert (
        "Significant, and against the paper: new."
        in (tmp_path / "against" / "report.md").read_text()
    )
    by_loss = {"published": {**published, "compare_to": "loss"}}
    write_report(write(tmp_path / "loss", by_loss))
    text = (tmp_path / "loss" / "report.md").read_text()
    assert (
        "0 of 1 differences have the paper's sign. Undecided at this number of seeds: new" in text
    )
    write_report(write(tmp_path / "none", {"published": None}))
    assert "Comparison with the paper" not in (tmp_path / "none" / "report.md").read_text()


def test_a_power_law_is_fitted_to_all_cells(tmp_path: pathlib.Path) -> None:
    wanted = {"measure": "loss", "over": "trunk_parameters", "source": "X", "exponent": -0.5}
    write_report(write(tmp_path / "run", {"scaling": wanted}))
    text = (tmp_path / "run" / "report.md").read_text()
    points = [(n, loss) for n, name in ((100, "old"), (200, "new"), (400, "odd"))
              for _, loss in SCORES[name].values()]  # fmt: skip
    slope, intercept = np.polyfit(*np.log(points).T, 1)
    assert f"loss = {np.exp(intercept):.4g} * (trunk parameters) ^ {slope:.4f}, by" in text
    assert "of the logarithms of 9 cells" in text and "X: -0.5, inside of it." in text
    few = {**wanted, "over": "flops"}  # of two sizes, and one unknown
    write_report(write(tmp_path / "few", {"scaling": few}))
    assert "A power law needs three sizes." in (tmp_path / "few" / "report.md").read_text()


def test_the_csv_has_a_row_a_cell(place: pathlib.Path) -> None:
    with (place / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], int(r["seed"])) for r in rows] == [
        (v, s) for v in SCORES for s in (0, 1, 2)
    ]
    for row in rows:
        accuracy, loss = SCORES[row["variant"]][int(row["seed"])]
        assert row["accuracy"] == ("" if accuracy is None else str(accuracy))
        assert (float(row["loss"]), int(row["parameters"])) == (loss, 12345)


def test_the_page_is_one_file(place: pathlib.Path) -> None:
    page = (place / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == 2
    assert "<img" not in page and "Is &lt;new&gt; better?" in page
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    assert page.count("<table>") == (place / "report.md").read_text().count("| --- |\n")


def test_the_same_cells_give_the_same_bytes(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copied = tmp_path / "elsewhere"
    shutil.copytree(place, copied)
    names = sorted(path.name for path in place.iterdir() if path.is_file())
    assert names == [
        "ablation.json",
        "cost.svg",
        "curves.svg",
        "report.html",
        "report.md",
        "results.csv",
    ]
    for name in set(names) - {"ablation.json"}:
        (copied / name).unlink()
    write_report(copied)
    for name in names:
        assert (copied / name).read_bytes() == (place / name).read_bytes(), name


def test_what_is_not_done_is_counted(tmp_path: pathlib.Path) -> None:
    place = write(tmp_path / "run")
    shutil.rmtree(place / "cells" / "new")
    (place / "cells" / "old" / "seed1" / "result.json").unlink()
    results = read_results(place)
    assert (results.done, results.wanted) == (5, 9)
    difference = results.difference("odd", "loss")
    assert difference is not None and difference.interval.count == 2  # seeds that both have
    assert difference.interval.mean == pytest.approx((1.0 - 2.0 + 1.1 - 1.9) / 2)
    write_report(place)
    text = (place / "report.md").read_text()
    assert "5 of 9 cells are done" in text
    assert "| new | the new one | none | none |" in text
    shutil.rmtree(place / "cells")
    write_report(place)
    assert "0 of 9 cells are done" in (place / "report.md").read_text()


def test_an_ablation_of_an_earlier_version_is_reported(
    place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Fields of its ablation.json have other names."""
    old = tmp_path / "old"
    shutil.copytree(place, old)
    text = (old / "ablation.json").read_text()
    for name, before in (
        ("description", "says"),
        ("direction", "better"),
        ("compare_to", "beside"),
    ):
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', f'"{before}"')
    (old / "ablation.json").write_text(text)
    write_report(old)
    assert (old / "report.md").read_bytes() == (place / "report.md").read_bytes()


def test_ties_count_half_and_the_report_says_so(
    place: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    note = MinimalPairs.note
    assert "equal scores counts half" in note
    accuracy, loss = DESCRIBED["measures"]
    write_report(write(tmp_path / "run", {"measures": [{**accuracy, "note": note}, loss]}))
    text = f"SST-2: {note}"
    assert text in (tmp_path / "run" / "report.md").read_text()
    assert text not in (place / "report.md").read_text()


RULE = {"measure": "accuracy", "looks": [2, 3], "spending": "pocock"}


def test_a_rule_adjusts_the_report(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = write(tmp_path / "run", {"sequential": RULE, "seeds": [0, 1, 2]})
    write_report(run)
    text = (run / "report.md").read_text()
    assert "for each of 3 variants and up to 3 seeds. 9 cells are done." in text
    assert "Looks at 2, 3 seeds, by SST-2, %, with Pocock-like spending" in text
    assert "new: decided at 3 seeds." in text and "adjusted for its looks" in text
    rule = Sequential("accuracy", (2, 3), "pocock")
    half = 100 * stats.t.isf(rule.limit(0.05, 1) / 2, 2) * 0.005 / np.sqrt(3)
    assert f"| SST-2, % | new | +10.0 [+{10 - half:.1f}, +{10 + half:.1f}] |" in text
    p = rule.adjusted(stats.ttest_rel([0.80, 0.825, 0.775], [0.70, 0.72, 0.68]).pvalue, 1)
    assert f"| {p:.3f} | {p:.3f} | {100 * detectable(0.005, 3, rule.limit(0.05, 1)):.1f} |" in text
    plain = (place / "report.md").read_text()
    assert "## Looks" not in plain and "adjusted for its looks" not in plain

    (run / "cells" / "new" / "seed2" / "result.json").unlink()
    write_report(run)
    assert "new: decided at 2 seeds." in (run / "report.md").read_text()
    by_loss = write(tmp_path / "loss", {"sequential": {**RULE, "measure": "loss"}})
    write_report(by_loss)
    assert "new: not decided at 3 seeds." in (by_loss / "report.md").read_text()
    (by_loss / "cells" / "new" / "seed2" / "result.json").unlink()
    write_report(by_loss)
    assert "new: not decided yet at 2 seeds." in (by_loss / "report.md").read_text()
    (run / "cells" / "new" / "seed0" / "result.json").unlink()
    write_report(run)  # before the first look of `new`
    assert "| SST-2, % | new | +" not in (run / "report.md").read_text()


def test_a_pilot_plans_the_seeds(place: pathlib.Path) -> None:
    results = read_results(place)
    text = planned(results, {"accuracy": 0.01, "loss": 0.05}, None)
    likely = seeds_needed(0.01, 0.005, 0.05)
    cautious = seeds_needed(0.01, upper_deviation(0.005, 3), 0.05)
    assert f"| SST-2, % | new | 3 | 0.5 | 1.0 | {likely} | {cautious} |" in text
    likely = seeds_needed(0.05, 0.1, 0.05 / 2)  # two variants
    assert f"| loss | new | 3 | 0.1 | 0.05 | {likely} |" in text
    rule = Sequential("accuracy", (3, 5), "pocock")
    outcome = expected(rule, 0.05 / 0.1, 0.05 / 2)
    text = planned(results, {"loss": 0.05}, rule)
    (line,) = (x for x in text.splitlines() if x.startswith("| loss | new"))
    assert line.endswith(f"| {outcome.power:.2f} | {outcome.seeds:.1f} |")


def test_what_no_pilot_can_plan_is_refused(place: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = pathlib.Path(shutil.copytree(place, tmp_path / "run"))

    def refused(measure: str, difference: float, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            planned(read_results(run), {measure: difference}, None)

    refused("losses", 0.1, "--plan: 'losses' is not one of accuracy, loss")
    refused("loss", 0.0, "smallest difference must be a positive number")
    file = run / "cells" / "new" / "seed2" / "result.json"
    text = file.read_text()
    file.write_text(text.replace('"loss": 2.2}', '"loss": NaN}'))
    refused("loss", 0.1, "loss of new or old is not a finite number")
    for seed, loss in SCORES["old"].items():
        file = run / "cells" / "new" / f"seed{seed}" / "result.json"
        file.write_text(text.replace('"loss": 2.2}', f'"loss": {loss[1] + 1.0}}}'))
    refused("loss", 0.1, "loss of new differs by the same amount from old")
    for seed in (0, 1):
        (run / "cells" / "odd" / f"seed{seed}" / "result.json").unlink()
        (run / "cells" / "new" / f"seed{seed}" / "result.json").unlink()
    refused("loss", 0.1, "loss of new and old has 1 seeds in common; a pilot needs at least 2")


@pytest.mark.parametrize(
    ("plan", "code", "printed"),
    [
        ("accuracy=0.01,loss=0.05", 0, "pilot"),
        pytest.param("accuracy", 2, "'accuracy' is not MEASURE=DIFFERENCE", marks=pytest.mark.slow),
    ],
)
def test_the_command_plans(place: pathlib.Path, plan: str, code: int, printed: str) -> None:
    command = [sys.executable, "-m", "experiments.ablate", f"--workdir={place}", f"--plan={plan}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and printed in done.stdout + done.stderr


def test_curves_of_runs_are_drawn(tmp_path: pathlib.Path) -> None:
    x = [0, 1, 2, 3]
    plot_curves(
        tmp_path / "curves.png",
        {"masked": (x, [6, 5, 4, 3]), "causal": (x, [7, 5, 4, 4])},
        "updates",
        "loss (nats per token)",
        baselines={"masked": 6.1, "unigram": 6.5},
    )
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
