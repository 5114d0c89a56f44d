"""Benchmarks: interleaved subjects in processes of their own, their ratios, and the command."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.bench.__main__ import report
from experiments.bench.rounds import Comparison, Measured, Spread, Subject, compare
from lmjax.extras import installed
from tests.runs import ROOT

SUBJECTS = "tests.outside.bench_subjects"


def test_subjects_take_turns_and_are_compared_within_a_round() -> None:
    slow, fast = (
        Subject(name, f"{SUBJECTS}:sleep", {"seconds": seconds})
        for name, seconds in (("slow", 0.1), ("fast", 0.02))
    )
    said: list[str] = []
    found = compare(Comparison("naps", [slow, fast]), 2, 0.1, said.append)
    assert [line for line in said if "round" in line] == [
        "naps: round 1/2, slow",
        "naps: round 1/2, fast",
        "naps: round 2/2, slow",
        "naps: round 2/2, fast",
    ]
    assert len(found["fast"].wall) == len(found["fast"].cpu) == 2
    assert min(found["fast"].wall) >= 0.02 and min(found["slow"].wall) >= 0.1
    assert max(found["slow"].cpu) < 0.05  # sleeping takes no processor time
    assert found["slow"].facts["ready"] > 0 and found["slow"].facts["memory"] > 1e6
    lines = report(Comparison("naps", [slow, fast]), found)
    assert lines[0] == "### naps"
    assert lines[-1] == "All subjects found the same tokens."
    assert lines[4].startswith("| slow | 0.1") and "| 1.00 | 1.00-1.00 |" in lines[4]


@pytest.mark.parametrize(
    ("function", "reason"), [("refuse", "ValueError no such size"), ("die", "ended with code 9")]
)
def test_a_subject_that_fails_is_a_row_with_the_reason(function: str, reason: str) -> None:
    good = Subject("good", f"{SUBJECTS}:sleep", {"seconds": 0.001})
    bad = Subject("bad", f"{SUBJECTS}:{function}", {})
    comparison = Comparison("naps", [good, bad])
    found = compare(comparison, 2, 0.01, lambda _: None)
    assert found["bad"].error == reason
    assert len(found["good"].wall) == 2
    assert f"| bad | {reason} |" in "\n".join(report(comparison, found))


def test_a_ratio_is_that_of_pairs() -> None:
    reference = Measured([2.0, 8.0, 3.0], [1.0, 1.0, 1.0], {})
    measured = Measured([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], {})
    assert measured.ratio(reference) == Spread(2.0, 1.0, 4.0)
    assert measured.ratio(reference, "cpu").median == 0.5
    # Per unit of work, if a run of one subject does more of it.
    more = Measured(measured.wall, measured.cpu, {"work": 300})
    assert more.ratio(Measured(reference.wall, reference.cpu, {"work": 100})).median == 6.0


def bench(place: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.bench", f"--output={place}"]
    command += ["--sizes=tiny", "--objectives=gpt", "--rounds=1", "--seconds=0.01", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_writes_a_table_a_plot_and_the_raw_numbers(tmp_path: pathlib.Path) -> None:
    if not installed("transformers"):
        pytest.skip("transformers is not installed")
    done = bench(tmp_path, "--suite=train")
    assert done.returncode == 0, done.stderr
    assert "### gpt tiny, 4 x 128 tokens, float32" in done.stdout
    assert (tmp_path / "benchmarks.md").read_text().count("| lmjax |") == 1
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["versions"]["jax"]
    measured = results["results"]["gpt tiny, 4 x 128 tokens, float32"]
    assert {"torch as shipped", "torch, tuned", "lmjax", "matrix products"} <= set(measured)
    for name, subject in measured.items():
        assert not subject["error"], (name, subject)
        assert subject["wall"][0] > 0


@pytest.mark.slow
def test_every_other_suite_runs(tmp_path: pathlib.Path) -> None:
    if not installed("transformers"):
        pytest.skip("transformers is not installed")
    flags = ("--gpt=tiny", "--batches=1,2", "--start_size=tiny", "--points=2")
    done = bench(tmp_path, "--suite=generate,finetune,data,startup,scaling", *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| gpt \| hidden_size \| -?[\d.]+ \| -?[\d.]+ \|", done.stdout)
    assert done.stdout.count("All subjects found the same tokens.") == 2
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert len(results) == 5 + 6
    for subjects in results.values():
        assert not [subject["error"] for subject in subjects.values() if subject["error"]]


def test_an_unknown_suite_is_refused(tmp_path: pathlib.Path) -> None:
    done = bench(tmp_path / "out", "--suite=trian")
    assert done.returncode == 2
    assert (
        "error: --suite: 'trian' is none of train, generate, finetune, data, packing,"
        in done.stderr
    )
    assert not (tmp_path / "out").exists()
