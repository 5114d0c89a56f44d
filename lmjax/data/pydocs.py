"""The embedded corpus: docstrings of the standard library and of installed packages.

It needs no download and ships no text, since every Python installation has it. The contents depend
on the installed versions, which the name of the built dataset therefore encodes.
"""

import ast
import collections
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from lmjax.data.near_copies import near_copy_groups
from lmjax.progress import track

# Import names of packages besides the standard library; missing packages are skipped.
PACKAGES = (
    "absl",
    "array_record",
    "etils",
    "flax",
    "fsspec",
    "google",
    "grain",
    "huggingface_hub",
    "jax",
    "matplotlib",
    "ml_collections",
    "numpy",
    "optax",
    "orbax",
    "packaging",
    "PIL",
    "pygments",
    "rich",
    "scipy",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
    "treescope",
)
_SKIPPED_DIRECTORIES = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages"}
_SHORTEST = 10  # minimum number of words; shorter docstrings say little
_MOST_HELD_OUT = 50  # near copies of one text in a held-out split
_SPLITS = {"train": range(0, 96), "validation": range(96, 98), "test": range(98, 100)}


def splits_of(documents: Sequence["Docstring"]) -> list[str]:
    """Returns the split of each document: about 96% train, 2% validation, 2% test.

    Near copies, such as inherited docstrings, are in one split, so that held-out text is not in
    train: a hash of the first of their names, in alphabetical order, decides. Large groups of them
    are in train, since a split of one text says little. The order of the documents does not matter.
    """
    groups = near_copy_groups([document.text for document in documents]).tolist()
    sizes = collections.Counter(groups)
    names: dict[int, str] = {}
    for group, document in zip(groups, documents, strict=True):
        names[group] = min(names.get(group, document.name), document.name)
    return [
        _split_of(names[group]) if sizes[group] <= _MOST_HELD_OUT else "train" for group in groups
    ]


def _split_of(name: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return next(split for split, buckets in _SPLITS.items() if bucket in buckets)


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """Docstrings, each with its package, qualified name and, for functions, signature.

    The dataset is built without TensorFlow. The config's name is a hash of the versions of Python
    and the packages, so that different versions build a new dataset instead of using a stale one.
    """

    VERSION = tfds.core.Version("1.2.0")

    def __init__(
        self, *, packages: Sequence[str] = PACKAGES, stdlib: bool = True, **kwargs: Any
    ) -> None:
        """Selects the sources.

        Args:
          packages: import names; missing packages are skipped.
          stdlib: whether to read the standard library.
          **kwargs: arguments of tfds.core.GeneratorBasedBuilder, such as data_dir.
        """
        self._roots = dict(_roots(packages, stdlib))
        tag = fingerprint(self._roots)
        config = tfds.core.BuilderConfig(name=f"installed-{tag}", version=self.VERSION)
        super().__init__(file_format="array_record", config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            disable_shuffling=True,  # documents keep the order of the sources
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "package": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "signature": tfds.features.Text(),
                    "id": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        found: dict[str, Docstring] = {}
        for document in collect(self._roots):
            found.setdefault(document.text, document)
        documents: dict[str, list[Docstring]] = {split: [] for split in _SPLITS}
        for document, split in zip(found.values(), splits_of([*found.values()]), strict=True):
            documents[split].append(document)
        return {split: self._generate_examples(part) for split, part in documents.items()}

    def _generate_examples(
        self, documents: Sequence["Docstring"]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, document in enumerate(documents):
            yield i, {**document._asdict(), "id": i}


def fingerprint(roots: dict[str, pathlib.Path]) -> str:
    """Returns 12 hex digits that depend on the versions of Python and the packages."""
    installed = importlib.metadata.packages_distributions()
    lines = [sys.version, f"{_SHORTEST}"]
    for package in roots:
        versions = [importlib.metadata.version(d) for d in sorted(set(installed.get(package, [])))]
        lines.append(f"{package} {versions}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


class Docstring(NamedTuple):
    """A docstring and what it documents.

    Attributes:
      name: qualified name.
      signature: parameter names of a function in parentheses, without self and cls; '' for classes
        and modules.
    """

    package: str
    name: str
    signature: str
    text: str


def collect(roots: dict[str, pathlib.Path]) -> Iterator[Docstring]:
    """Yields all docstrings in a fixed order.

    Sources are parsed, never imported, so none of their code runs.

    Args:
      roots: package or module -> its directory or file.
    """
    files = [
        (package, root, file)
        for package, root in roots.items()
        for file in ([root] if root.is_file() else sorted(root.rglob("*.py")))
        if not _SKIPPED_DIRECTORIES & set(file.relative_to(root.parent).parts[:-1])
    ]
    for package, root, file in track(files, "reading docstrings", len(files)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the sources, such as invalid escapes
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue  # templates and sources of other Python versions
        parts = file.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, node in _documented(tree, module):
            text = ast.get_docstring(node, clean=False)
            if not text:
                continue
            text = inspect.cleandoc(text).encode("utf-8", "replace").decode()
            if len(text.split()) >= _SHORTEST:
                yield Docstring(package, name, _signature(node), text)


def _signature(node: ast.AST) -> str:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args) if x.arg not in ("self", "cls")]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [x.arg for x in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return f"({', '.join(names)})"


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, Any]]:
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")


def _roots(packages: Sequence[str], stdlib: bool) -> Iterator[tuple[str, pathlib.Path]]:
    if stdlib:
        library = pathlib.Path(sysconfig.get_paths()["stdlib"])
        for name in sorted(sys.stdlib_module_names):
            for root in (library / name, library / f"{name}.py"):
                if name not in _SKIPPED_DIRECTORIES and root.exists():
                    yield name, root
    for name in sorted(packages):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is None:
            continue
        if spec.submodule_search_locations:
            for location in list(spec.submodule_search_locations)[:1]:
                yield name, pathlib.Path(location)
        elif spec.origin and spec.origin.endswith(".py"):
            yield name, pathlib.Path(spec.origin)
