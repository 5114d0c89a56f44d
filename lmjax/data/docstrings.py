"""Labeled rows for each task, derived from the embedded corpus without downloads or licenses.

Labels follow from the position and layout of docstrings. Rows use the splits of the corpus, so
docstrings that are held out here are also held out in pretraining. The rows depend on the
installed package versions.
"""

import collections
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmjax.data.corpora import prepared_dataset

CLASSES = 8  # number of packages to classify: those with the most docstrings
CHOICES = 4
# Common abbreviations of package names in code.
_ALIASES = ("np", "jnp", "plt", "mpl", "tf", "tfds", "ocp", "sp", "hf", "lax")
_SECTION = re.compile(r"^(Parameters|Other Parameters|Returns|Attributes)\n-{3,}\n", re.M)
_NEXT_SECTION = re.compile(r"\n\S[^\n]*\n-{3,}\n")
_WORDS = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])|\n\s*\n")
_TOGETHER = 4  # parameters per context
_RELATED = 3  # parameters per text with relations
# Phrases that state a default.
_DEFAULT = re.compile(
    r"\bdefaults?(?: value)?(?: is| to)?\s*[:=]?\s*`{0,2}"
    r"(True|False|None|-?\d+(?:\.\d+)?(?:e-?\d+)?|'[^']*'|\"[^\"]*\")",
    re.I,
)
# A sentence of 4 to 30 words, not a signature or a section.
_PROSE = re.compile(r"[A-Z][a-z'-]*( (?!-{3})\S+){3,29}")
# Templates of questions about a parameter.
_QUESTIONS = (
    "What does {name} do in {function}?",
    "What is the {name} of {function} for?",
    "How do I use {name} in {function}?",
    "Can you explain {name} to me, in {function}?",
)
_OFTEN = 5  # minimum number of summaries that begin with a verb, in each mood
_SHORTEST = 4  # minimum number of words; shorter sentences say little


class Documentation(NamedTuple):
    """A docstring with its package, the object's name, and the signature of functions."""

    package: str
    name: str
    text: str
    signature: str = ""


class Entry(NamedTuple):
    """A parameter in a numpydoc section; `description` is a single line, or ''."""

    names: tuple[str, ...]
    type: str
    description: str


@functools.lru_cache(maxsize=3)
def documentation(split: str, cache_dir: str) -> tuple[Documentation, ...]:
    """Returns the docstrings of a split of the embedded corpus."""
    source = prepared_dataset("pydocs", cache_dir, "config.data").as_data_source(split=split)
    rows = (source[i] for i in range(len(source)))
    return tuple(
        Documentation(*(row[field].decode() for field in Documentation._fields)) for row in rows
    )


def package_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields docstrings labeled with their package: {'text', 'label'}.

    Package names and their abbreviations are removed from the text.
    """
    counts = collections.Counter(d.package for d in documentation("train", cache_dir))
    packages = sorted(name for name, _ in counts.most_common(CLASSES))
    names = re.compile(
        rf"(?<![a-z0-9])({'|'.join(map(re.escape, (*packages, *_ALIASES)))})"
        r"(?![a-z0-9])",
        re.I,
    )
    for document in documentation(split, cache_dir):
        text = " ".join(names.sub(" ", document.text).split())
        if document.package in packages and text:
            yield {"text": text, "label": document.package}


def parameter_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields numpydoc sections with BIO tags of parameter names and types: {'words', 'tags'}.

    Line breaks and colons, which would reveal names and types, are removed.
    """
    for document in documentation(split, cache_dir):
        for entries in _sections(document.text):
            words: list[str] = []
            tags: list[str] = []
            for entry in entries:
                for i, name in enumerate(entry.names):
                    _tag(words, tags, name, "NAME")
                    if i + 1 < len(entry.names):
                        _tag(words, tags, ",", "")
                _tag(words, tags, entry.type, "TYPE")
                _tag(words, tags, entry.description, "")
            if any(tag != "O" for tag in tags):
                yield {"words": words, "tags": tags}


def question_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields questions about parameters.

    Rows are {'question', 'context', 'answers', 'starts', 'id', 'asked'}. The context is a few
    parameters of a section, and the answer is the first sentence of one parameter's description;
    `asked` is (subpackage, function, parameter).
    """
    for number, document in enumerate(documentation(split, cache_dir)):
        parts, sections = document.name.split("."), list(_sections(document.text))
        for entries in (
            s[i : i + _TOGETHER] for s in sections for i in range(0, len(s), _TOGETHER)
        ):
            if len(entries) < 2:  # there is nothing to choose from
                continue
            context, found = "", []
            for entry in entries:
                kind = f" : {entry.type}" if entry.type else ""
                context += f"{', '.join(entry.names)}{kind}\n"
                first = _SENTENCE_END.split(entry.description)[0]
                if len(first.split()) >= _SHORTEST and len(entry.names) == 1:
                    found.append((entry.names[0], first, len(context)))
                context += f"{entry.description}\n"
            for name, answer, start in found:
                yield {
                    "id": f"{split}-{number}-{name}",
                    "question": f"What does {name} do?",
                    "context": context,
                    "answers": [answer],
                    "starts": [start],
                    "asked": (".".join(parts[:2]), parts[-1], name),
                }


def intent_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields questions about a parameter, labeled with the subpackage: {'text', 'label', ...}.

    The other fields are those of the underlying row of `question_rows`. The labels are the
    subpackages with the most questions.
    """
    counts = collections.Counter(r["asked"][0] for r in question_rows("train", cache_dir))
    chosen = {name for name, _ in counts.most_common(CLASSES)}
    for row in question_rows(split, cache_dir):
        subpackage, function, name = row["asked"]
        if subpackage in chosen:
            form = _QUESTIONS[_hash(row["id"]) % len(_QUESTIONS)]
            yield {**row, "text": form.format(name=name, function=function), "label": subpackage}


def description_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields multiple-choice rows about a parameter's description.

    Rows are {'context', 'choices', 'label'}. The context is the parameter's name and type. The
    choices are the first sentences of its own description and of those of other parameters in the
    same package. Choices contain no word of the context, which would reveal the answer.
    """
    by_package: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    for document in documentation(split, cache_dir):
        for entry in itertools.chain.from_iterable(_sections(document.text)):
            first = _SENTENCE_END.split(entry.description)[0]
            if len(first.split()) >= _SHORTEST and len(entry.names) == 1 and entry.type:
                by_package[document.package].append((entry.names[0], entry.type, first))
    for found in by_package.values():
        for i, (name, kind, right) in enumerate(found):
            salt = _hash(f"{i} {name} {right}")
            asked = _words_of(f"{name} {kind}")
            drawn = (found[(salt + 7919 * j) % len(found)] for j in range(16 * CHOICES))
            others = dict.fromkeys(
                f for n, _, f in drawn if n != name and f != right and not asked & _words_of(f)
            )
            if len(others) >= CHOICES - 1 and not asked & _words_of(right):
                choices = list(others)[: CHOICES - 1]
                label = salt % CHOICES
                choices.insert(label, right)
                yield {"context": f"{name} : {kind}", "choices": choices, "label": label}


def signature_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields functions with their summaries: {'prompt', 'target'}.

    The prompt is the package, the function's name (preceded by its class, if any) and the names of
    its parameters. The target is the first sentence of the docstring. Duplicates with the same name
    and summary are dropped.
    """
    seen: set[tuple[str, str]] = set()
    for document in documentation(split, cache_dir):
        *_, outer, name = ("", *document.name.split("."))
        summary = " ".join(_SENTENCE_END.split(document.text)[0].split())
        if document.signature and _PROSE.fullmatch(summary) and (name, summary) not in seen:
            seen.add((name, summary))
            of_class = f"{outer}." if outer.lstrip("_")[:1].isupper() else ""
            prompt = f"{document.package} {of_class}{name}{document.signature}"
            yield {"prompt": prompt, "target": summary}


def mood_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields function summaries labeled with their mood: {'text', 'label', 'other'}.

    'Returns the sum.' is descriptive, 'Return the sum.' is imperative (PEP 257); `other` is the
    text in the other mood. The first word is a verb that occurs in both forms in train.
    """
    firsts = collections.Counter(
        row["target"].split()[0] for row in signature_rows("train", cache_dir)
    )
    forms = {}
    for verb, count in firsts.items():
        described = f"{verb}s"
        if min(count, firsts[described]) >= _OFTEN:
            forms[verb], forms[described] = ("imperative", described), ("descriptive", verb)
    for row in signature_rows(split, cache_dir):
        first, _, rest = row["target"].partition(" ")
        if first in forms:
            label, other = forms[first]
            yield {"text": row["target"], "label": label, "other": f"{other} {rest}"}


def _words_of(text: str) -> set[str]:
    return {word.lower().rstrip("s") for word in re.findall(r"[A-Za-z]+", text)}


def summary_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Yields the summary and the remaining text of docstrings: {'text', 'pair'}.

    Docstrings that share either part with an earlier one, such as inherited ones, are dropped.
    """
    seen: set[str] = set()
    for document in documentation(split, cache_dir):
        summary, _, rest = document.text.partition("\n\n")
        text, pair = " ".join(summary.split()), " ".join(rest.split())
        if len(text.split()) < _SHORTEST or len(pair.split()) < 2 * _SHORTEST:
            continue
        if text not in seen and pair not in seen:
            yield {"text": text, "pair": pair}
        seen |= {text, pair}


def relation_rows(split: str, cache_dir: str, every_type: bool = False) -> Iterator[dict[str, Any]]:
    """Yields relations between parameters and values: {'text', 'head', 'tail', 'label'}.

    The text is a few parameters of a section, each with the first sentence of its description and
    those that state a default, without the line breaks and colons that would reveal the relation.
    The head is a parameter name and the tail a type or a default. Each tail is paired once with
    its own parameter ('has_type', 'has_default') and once with another parameter of the text
    ('Other').

    Args:
      every_type: use the types of all parameters of a text, not only one.
    """
    for document in documentation(split, cache_dir):
        sections = list(_sections(document.text))
        parts = [s[i : i + _RELATED] for s in sections for i in range(0, len(s), _RELATED)]
        for entries in parts:
            text = ""
            names: list[list[int]] = []
            types: list[tuple[int, list[int], str]] = []
            values: list[tuple[int, list[int], str]] = []
            for entry in entries:
                if len(entry.names) > 1 or not entry.description:
                    continue
                own, name = len(names), entry.names[0]
                names.append([len(text), len(text) + len(name)])
                text += f"{name} "
                if entry.type:
                    types.append((own, [len(text), len(text) + len(entry.type)], "has_type"))
                begin = len(text)
                first, *others = (x for x in _SENTENCE_END.split(entry.description) if x)
                kept = [first, *(x for x in others if _DEFAULT.search(x))]
                text += f"{entry.type} {' '.join(kept)} "
                if stated := _DEFAULT.search(text, begin):
                    values.append((own, list(stated.span(1)), "has_default"))
            if len(names) < 2:
                continue
            if types:
                values += types if every_type else [types[_hash(text) % len(types)]]
            for own, tail, label in values:
                step = 1 + _hash(f"{tail} {text}") % (len(names) - 1)
                other = (own + step) % len(names)
                yield {"text": text, "head": names[own], "tail": tail, "label": label}
                yield {"text": text, "head": names[other], "tail": tail, "label": "Other"}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _tag(words: list[str], tags: list[str], text: str, kind: str) -> None:
    """Appends the words of `text`, tagged as a span of `kind`, or as outside if ''."""
    for i, word in enumerate(_WORDS.findall(text)):
        words.append(word)
        tags.append(f"{'I' if i else 'B'}-{kind}" if kind else "O")


def _sections(text: str) -> Iterator[list[Entry]]:
    """Yields the entries of each numpydoc section of a docstring."""
    for match in _SECTION.finditer(text):
        following = _NEXT_SECTION.search(text, match.end() - 1)
        lines = text[match.end() : following.start() if following else len(text)].split("\n")
        entries: list[Entry] = []
        for line in lines:
            if line[:1].strip():  # not indented: a new entry
                head, _, kind = line.partition(" : ")
                names = tuple(name.strip().lstrip("*") for name in head.split(","))
                if not all(name.isidentifier() for name in names):
                    entries = []
                    break  # prose, or only a type
                entries.append(Entry(names, " ".join(kind.split()), ""))
            elif line.strip() and entries:
                last = entries[-1]
                joined = f"{last.description} {' '.join(line.split())}".strip()
                entries[-1] = last._replace(description=joined)
        if any(entry.description for entry in entries):
            yield entries
