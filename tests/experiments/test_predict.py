"""The program as a user gives it: rows in, a line each out, in order and as they come."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from lmjax.tasks.finetuning import finetune
from lmjax.tasks.plan import prepare
from tests.tasks import small

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A classification whose rows have names of their own."""
    place = tmp_path_factory.mktemp("run")
    rows = [{"id": i, "review": r["text"], "stars": r["label"]} for i, r in enumerate(ROWS)]
    path = small.write_rows(place / "rows.jsonl", rows)
    task = {"type": "lmjax.tasks.classification.Classification", "text": "review", "label": "stars"}
    config = small.config(task, {"train": path, "validation": path})
    config.training.epochs = 1
    finetune(prepare(config), config, place / "run", "", seed=0)
    return place / "run"


ROWS = small.labelled(40)


def begin(run: pathlib.Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.predict", f"--model={run}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_file_gives_what_the_run_predicted(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out.jsonl"
    child = begin(run, f"--data={run.parent / 'rows.jsonl'}", f"--out={out}")
    printed, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert printed == ""
    lines = [json.loads(line) for line in out.open()]
    before = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    for i, (line, told) in enumerate(zip(lines, before, strict=True)):
        assert (line["id"], line["review"], line["stars"]) == (i, told["text"], told["gold"])
        assert line["prediction"] == told["prediction"]
        for name in ("confidence", "gold_probability"):
            assert line[name] == pytest.approx(told[name], abs=1e-5)
    accuracy = json.loads((run / "results.json").read_text())["scores"]["accuracy"]
    assert f"40 of 40 rows are scored: accuracy {accuracy:.4f}" in error


def test_lines_come_with_the_rows_and_none_is_shifted(run: pathlib.Path) -> None:
    child = begin(run, "--data=-", "--on_bad_rows=skip")
    assert child.stdin is not None and child.stdout is not None

    def asked(*lines: str) -> list[dict[str, Any]]:
        child.stdin.write("".join(f"{line}\n" for line in lines))  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
        return [json.loads(child.stdout.readline()) for _ in lines]  # type: ignore[union-attr]

    # Standard input stays open: what has come is answered without waiting for more.
    (first,) = asked('{"review": "bak dol", "id": "a"}')
    assert first["id"] == "a"
    assert first["prediction"] in ("no", "yes")
    assert "gold_probability" not in first
    found = asked(
        '{"review": " ", "id": "b"}',
        '{"text": "dol nok", "stars": "yes"}',
        "no json",
        '{"review": "dol", "stars": "maybe"}',
        '{"review": "dol", "stars": null}',
    )
    assert found[0] == {"where": "-:2", "review": " ", "id": "b", "error": "empty text"}
    assert found[1]["gold"] == "yes"
    assert "not JSON" in found[2]["error"]
    assert "label 'maybe' is not in the set" in found[3]["error"]
    assert "prediction" in found[4]
    assert ["prediction" in line for line in found] == [False, True, False, False, True]
    out, error = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "")
    assert "1 of 6 rows are scored" in error
    assert "3 of 6 rows have no prediction" in error
    assert "-:2: empty text" in error


def test_bad_rows_are_refused_before_anything_is_written(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = [{"review": "bak"}, {"review": "dol", "stars": "maybe"}, {"review": ""}]
    path, out = small.write_rows(tmp_path / "new.jsonl", rows), tmp_path / "out.jsonl"
    child = begin(run, f"--data={path}", f"--out={out}")
    _, error = child.communicate(timeout=120)
    assert child.returncode == 2
    (line,) = error.splitlines()
    assert line.startswith("error: --data: 2 of 3 rows are invalid: new.jsonl:2: label 'maybe'")
    assert "--on_bad_rows=skip" in line and "--noscore" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--data, --text: give rows or a text"),
        (("--text=bak", "--data=-"), "--data, --text: give one of them"),
        (("--text=bak", "--out=nowhere/out.jsonl"), "--out: 'nowhere/out.jsonl' cannot be a file"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_told_in_a_line(
    run: pathlib.Path, arguments: tuple[str, ...], message: str
) -> None:
    child = begin(run, *arguments)
    _, error = child.communicate(timeout=120)
    assert child.returncode == 2
    (line,) = error.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.slow
def test_the_first_bad_row_of_standard_input_ends_it(run: pathlib.Path) -> None:
    child = begin(run, "--data=-")
    assert child.stdin is not None
    child.stdin.write('{"review": "bak"}\n{"review": ""}\n{"review": "dol"}\n')
    child.stdin.flush()
    assert child.wait(timeout=120) == 2  # although standard input is still open
    assert child.stdout is not None and child.stderr is not None
    assert len(child.stdout.read().splitlines()) == 1
    assert child.stderr.read().startswith("error: -:2: empty text")
    child.stdin.close()
