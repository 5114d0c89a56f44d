"""The rules of the house that a reader relies on."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lmjax"

# A room may import itself and what stands to the left of it.
ORDER = [
    "nn",
    "models",
    "objectives",
    "training",
    "convert",
    "generation",
    "tasks",
    "evaluation",
    "lab",
    "api",
]
# What every room may import, and which imports no room.
COMMON = {
    "__init__",
    "atomic",
    "configuration",
    "errors",
    "extras",
    "host",
    "locking",
    "overrides",
    "progress",
    "tables",
    "trees",
}

# What asks for the class of an object.
CHECKS = {"isinstance", "issubclass"}


def sources() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    """Full names of what a file imports, `from a import b` as a.b and a."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: pathlib.Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert not {n.split(".")[0] for n in imported(path)} & {"experiments", "configs", "tests"}
    if path == PACKAGE / "__init__.py":  # the front door
        allowed = {"api", "convert", "evaluation", "generation", "tasks"}
    elif room in COMMON:
        allowed = COMMON
    elif room == "data":
        allowed = COMMON | {"data"}
    else:
        assert room in ORDER, f"say in ORDER where the room '{room}' stands"
        allowed = COMMON | set(ORDER[: ORDER.index(room) + 1])
        if room not in ("nn", "models"):
            allowed |= {"data"}
    found = imported(path)
    if room == "models":  # special tokens are part of a family's input
        found = {name for name in found if not name.startswith("lmjax.data.vocabulary")}
    assert {name.split(".")[1] for name in found if name.startswith("lmjax.")} <= allowed


def test_files_are_small_and_named_for_what_they_hold() -> None:
    for path in sources():
        assert len(path.read_text().splitlines()) <= 600, path
        assert path.name not in ("utils.py", "helpers.py", "misc.py"), path


def test_tensorflow_is_never_imported() -> None:
    for path in sources():
        assert not {n for n in imported(path) if n.split(".")[0] == "tensorflow"}, path


def test_ci_runs_the_readme_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- test command -->\n```bash\n(.+?)\n```", readme, re.S)
    assert block is not None
    assert "\n" not in block.group(1), "the command is one line"
    for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert tool in block.group(1)
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_nothing_tracked_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml") and path.exists():
            assert not re.search(r"(?<!\w)/(home|root|Users)/\w", path.read_text()), name


def test_no_room_but_models_asks_for_the_class_of_a_family() -> None:
    """A family is one place: others ask what its config and its networks can do."""
    families = {
        node.name
        for path in (PACKAGE / "models").glob("*.py")
        if path.stem in ("bert", "electra", "gpt", "xlnet")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    for path in sources():
        if path.parent.name == "models":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in CHECKS:
                asked = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}
                assert not asked & families, f"{path}:{node.lineno}"
