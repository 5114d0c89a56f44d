"""Labelled rows made of docstrings that are known."""

import pytest

from lmjax.data import docstrings
from lmjax.data.docstrings import Documentation

NUMPYDOC = """Cuts a thing.

Parameters
----------
x, y : array_like, optional
    Where to cut. Both are
    needed.
depth : int
    How deep the knife goes. At least 1.

        More of it.

Returns
-------
out : ndarray
    What is left of the thing.

Notes
-----
depth : int
    Not a parameter here at all.
"""


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "train": [Documentation("numpy", "numpy.cut", NUMPYDOC)]
        + [
            Documentation("jax", f"jax.f{i}", f"Makes jax do {i}; Jax.numpy is NumPy.")
            for i in "ab"
        ]
        + [Documentation("re", "re.x", "Compiles what jaxlib wants.")],
        "test": [Documentation("other", "other.x", "Of a package that is not there.")],
    }
    monkeypatch.setattr(docstrings, "documentation", lambda split, _: tuple(known[split]))
    monkeypatch.setattr(docstrings, "CLASSES", 2)


def test_sections_are_read_as_numpydoc_means_them() -> None:
    parameters, returns = docstrings._sections(NUMPYDOC)
    assert [entry.names for entry in parameters] == [("x", "y"), ("depth",)]
    assert parameters[0].type == "array_like, optional"
    assert parameters[0].description == "Where to cut. Both are needed."
    assert parameters[1].description == "How deep the knife goes. At least 1. More of it."
    assert [entry.names for entry in returns] == [("out",)]


def test_packages_do_not_tell_their_names() -> None:
    rows = list(docstrings.package_rows("train", ""))
    assert {row["label"] for row in rows} == {"jax", "numpy"}
    assert rows[1]["text"] == "Makes do a; . is ."
    assert not list(docstrings.package_rows("test", ""))


def test_parameters_are_spans() -> None:
    first, second = docstrings.parameter_rows("train", "")
    assert first["words"][:7] == ["x", ",", "y", "array_like", ",", "optional", "Where"]
    assert first["tags"][:7] == ["B-NAME", "O", "B-NAME", "B-TYPE", "I-TYPE", "I-TYPE", "O"]
    assert len(first["words"]) == len(first["tags"])
    assert second["tags"][:2] == ["B-NAME", "B-TYPE"]


def test_answers_are_in_their_context() -> None:
    (row,) = docstrings.question_rows("train", "")
    assert row["question"] == "What does depth do?"
    assert row["answers"] == ["How deep the knife goes."]
    assert row["context"][row["starts"][0] :].startswith("How deep the knife goes.")


def test_choices_have_no_word_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    nouns = ["axis", "depth", "width", "colour", "length"]
    entries = "".join(
        f"p{i} : int\n    The {noun} of what is drawn, with {other}.\n"
        for i, (noun, other) in enumerate(zip(nouns * 2, "abcdefghij", strict=True))
    )
    text = f"Draws.\n\nParameters\n----------\n{entries}"
    text += "depth : int\n    The depth of it all.\n"
    documents = (Documentation("a", "a.b", text),)
    monkeypatch.setattr(docstrings, "documentation", lambda *_: documents)
    rows = list(docstrings.description_rows("train", ""))
    assert len(rows) == 10  # not that of `depth`, whose description names it
    for row in rows:
        number = int(row["context"].split()[0][1:])
        right = row["choices"][row["label"]]
        assert right.startswith(f"The {(nouns * 2)[number]} of what")
        assert len(set(row["choices"])) == docstrings.CHOICES
    assert rows == list(docstrings.description_rows("train", ""))
    assert len({row["label"] for row in rows}) > 1


RELATED = """Cuts.

Parameters
----------
width : int
    How wide it is. It is never read.
depth : int, optional
    How deep the knife goes. Default is 3.
"""


def test_values_are_related_to_their_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (Documentation("numpy", "numpy.cut", RELATED),)
    monkeypatch.setattr(docstrings, "documentation", lambda split, _: known)
    rows = list(docstrings.relation_rows("train", "", every_type=True))
    found = {
        (*(row["text"][slice(*row[n])] for n in ("head", "tail")), row["label"]) for row in rows
    }
    assert found == {
        ("depth", "3", "has_default"),
        ("width", "3", "Other"),
        ("width", "int", "has_type"),
        ("depth", "int", "Other"),
        ("depth", "int, optional", "has_type"),
        ("width", "int, optional", "Other"),
    }
    text = "width int How wide it is. depth int, optional How deep the knife goes. Default is 3. "
    assert {row["text"] for row in rows} == {text}
    assert len(list(docstrings.relation_rows("train", ""))) == 4


def test_summaries_are_paired_with_what_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "Returns the sum of\nall of them.\n\nOf an empty\nlist, and of no list at all, it is 0."
    texts = [long, long.replace("sum", "mean"), "Too short.\n\n" + "word " * 20, "Alone in here."]
    known = tuple(Documentation("a", str(i), text) for i, text in enumerate(texts))
    monkeypatch.setattr(docstrings, "documentation", lambda split, _: known)
    assert list(docstrings.summary_rows("train", "")) == [
        {
            "text": "Returns the sum of all of them.",
            "pair": "Of an empty list, and of no list at all, it is 0.",
        }
    ]


def test_functions_are_summarised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        Documentation("re", "re.cut", "Cuts the text in two.  More.", "(text, *, at)"),
        Documentation("np", "np.a.cut", "Cuts the text in two.", "(text)"),  # as before
        Documentation("np", "np.a.Array.cut", "Cuts the array\nin two parts.", "(at)"),
        Documentation("np", "np.a.Array", "Holds a lot of numbers.", ""),  # no function
        Documentation("np", "np.b", "b(x, y, z, axis=None) -> array", "(x)"),  # no prose
        Documentation("np", "np.c", "Says little.", "(x)"),
        Documentation("np", "np.d", "Parameters ---------- x : int", "(x)"),
    ]
    monkeypatch.setattr(docstrings, "documentation", lambda *_: known)
    assert list(docstrings.signature_rows("train", "")) == [
        {"prompt": "re cut(text, *, at)", "target": "Cuts the text in two."},
        {"prompt": "np Array.cut(at)", "target": "Cuts the array in two parts."},
    ]
