"""Labelled rows made of the embedded corpus, for each task one, without download or licence.

The labels are what docstrings say by their place and layout. Rows come from the corpus's own
splits: held-out docstrings were held out in pretraining, too. What there is depends on the
installed versions.
"""

import collections
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmjax.data.corpora import prepared_dataset

CLASSES = 8  # packages to tell from each other: those with the most docstrings
CHOICES = 4
# What a package is called in code, beside its name.
_ALIASES = ("np", "jnp", "plt", "mpl", "tf", "tfds", "ocp", "sp", "hf", "lax")
_SECTION = re.compile(r"^(Parameters|Other Parameters|Returns|Attributes)\n-{3,}\n", re.M)
_NEXT_SECTION = re.compile(r"\n\S[^\n]*\n-{3,}\n")
_WORDS = re.compile(r"\w+|[^\w\s]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])|\n\s*\n")
_TOGETHER = 4  # parameters of a context
_RELATED = 3  # parameters of a text with relations
# How a default is stated.
_DEFAULT = re.compile(
    r"\bdefaults?(?: value)?(?: is| to)?\s*[:=]?\s*`{0,2}"
    r"(True|False|None|-?\d+(?:\.\d+)?(?:e-?\d+)?|'[^']*'|\"[^\"]*\")",
    re.I,
)
# A sentence of 4 to 30 words, not a signature or a section.
_PROSE = re.compile(r"[A-Z][a-z'-]*( (?!-{3})\S+){3,29}")
# How a parameter of a function is asked for.
_QUESTIONS = (
    "What does {name} do in {function}?",
    "What is the {name} of {function} for?",
    "How do I use {name} in {function}?",
    "Can you explain {name} to me, in {function}?",
)
_OFTEN = 5  # times that a verb begins a summary in either mood
_SHORTEST = 4  # words; a sentence of less says little


class Documentation(NamedTuple):
    """A docstring: of which package and object, its text, and a function's signature."""

    package: str
    name: str
    text: str
    signature: str = ""


class Entry(NamedTuple):
    """A parameter in a numpydoc section; `description` is on one line, '' for none."""

    names: tuple[str, ...]
    type: str
    description: str


@functools.lru_cache(maxsize=3)
def documentation(split: str, cache_dir: str) -> tuple[Documentation, ...]:
    """The docstrings of a split of the embedded corpus."""
    source = prepared_dataset("pydocs", cache_dir, "config.data").as_data_source(split=split)
    rows = (source[i] for i in range(len(source)))
    return tuple(
        Documentation(*(row[field].decode() for field in Documentation._fields)) for row in rows
    )


def package_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Which package a docstring documents: {'text', 'label'}.

    The names of the packages are struck out, as they are written and as code abbreviates them.
    """
    counts = collections.Counter(d.package for d in documentation("train", cache_dir))
    packages = sorted(name for name, _ in counts.most_common(CLASSES))
    told = re.compile(
        rf"(?<![a-z0-9])({'|'.join(map(re.escape, (*packages, *_ALIASES)))})"
        r"(?![a-z0-9])",
        re.I,
    )
    for document in documentation(split, cache_dir):
        text = " ".join(told.sub(" ", document.text).split())
        if document.package in packages and text:
            yield {"text": text, "label": document.package}


def parameter_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Names and types of parameters in numpydoc sections: {'words', 'tags'}, BIO.

    The words run on without the lines and colons that would give names and types away.
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
    """What a parameter does: {'question', 'context', 'answers', 'starts', 'id', 'asked'}.

    The context is a few parameters of a section, the answer the first sentence of the one's
    description; `asked` is the subpackage, the function and the parameter.
    """
    for number, document in enumerate(documentation(split, cache_dir)):
        parts, sections = document.name.split("."), list(_sections(document.text))
        for entries in (
            s[i : i + _TOGETHER] for s in sections for i in range(0, len(s), _TOGETHER)
        ):
            if len(entries) < 2:  # there would be nothing to choose from
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
    """Which subpackage a question about a parameter is for: {'text', 'label', ...}.

    The rest is the row of `question_rows` that is asked for. The subpackages are those with the
    most questions.
    """
    counts = collections.Counter(r["asked"][0] for r in question_rows("train", cache_dir))
    chosen = {name for name, _ in counts.most_common(CLASSES)}
    for row in question_rows(split, cache_dir):
        subpackage, function, name = row["asked"]
        if subpackage in chosen:
            form = _QUESTIONS[_hash(row["id"]) % len(_QUESTIONS)]
            yield {**row, "text": form.format(name=name, function=function), "label": subpackage}


def description_rows(split: str, cache_dir: str) -> Iterator[dict[str, Any]]:
    """Which description is a parameter's: {'context', 'choices', 'label'}.

    The context is its name and type; the choices are the first sentences of its description
    and of those of parameters of other names in the same package. None has a word of the
    context in it, which would give it away.
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
    """What a function does, from its signature: {'prompt', 'target'}.

    The prompt is the package, the function's name, behind that of its class where it has one, and
    the names of its parameters. The target is the first sentence of its docstring. Of functions
    of one name that are summarised alike, the first alone.
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
    """Whether a function's summary describes or commands: {'text', 'label', 'other'}.

    'Returns the sum.' is descriptive, 'Return the sum.' imperative (PEP 257); `other` is the
    text in the other mood. Its first word is a verb of which train has both forms.
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
    """The summary of a docstring, and what stands below it: {'text', 'pair'}.

    Of docstrings that are inherited, or alike in one of the two, the first alone.
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
    """Whether a value is a parameter's, and what of it: {'text', 'head', 'tail', 'label'}.

    The text is a few parameters of a section, each with the first sentence of its description
    and the one that states a default, run on without the lines and colons that would give them
    away. The head is a name, the tail the type of a parameter, of one in each text or of all, or
    a default. Each tail is once paired with its own parameter ('has_type', 'has_default') and once
    with the name of another one of the text ('Other').
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
                told = [first, *(x for x in others if _DEFAULT.search(x))]
                text += f"{entry.type} {' '.join(told)} "
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
    """Adds the words of `text`, a span of `kind` or outside of any."""
    for i, word in enumerate(_WORDS.findall(text)):
        words.append(word)
        tags.append(f"{'I' if i else 'B'}-{kind}" if kind else "O")


def _sections(text: str) -> Iterator[list[Entry]]:
    """The entries of each numpydoc section of a docstring."""
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
                    break  # prose, or a type alone
                entries.append(Entry(names, " ".join(kind.split()), ""))
            elif line.strip() and entries:
                last = entries[-1]
                joined = f"{last.description} {' '.join(line.split())}".strip()
                entries[-1] = last._replace(description=joined)
        if any(entry.description for entry in entries):
            yield entries
