"""From texts to a graph: entities by a tagger, the relations between them by another model."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.tasks.base import Scores
from lmjax.tasks.metrics import undirected
from lmjax.tasks.opened import open_run
from lmjax.tasks.relations import Relations
from lmjax.tasks.tagging import Tagging

_WORD = re.compile(r"\w+|[^\w\s]")
_FORWARD, _BACKWARD = "(e1,e2)", "(e2,e1)"


@dataclasses.dataclass(frozen=True)
class Entity:
    """A span of a text: which text, [begin, end) in characters, its type."""

    text: int
    begin: int
    end: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Triple:
    """A relation that was found: from `head` to `tail`, with the model's confidence."""

    head: Entity
    relation: str
    tail: Entity
    confidence: float


def find_entities(path: str | pathlib.Path, texts: Sequence[str]) -> list[Entity]:
    """The spans that a tagger finds, in the order of the texts.

    Args:
      path: a run of `lmjax.tasks.tagging`, with BIO tags.
      texts: each is split into words at spaces and punctuation.

    Raises:
      ConfigError: as `lmjax.load`, or it is no such run.
    """
    model = open_run(path, Tagging, "--entities")
    if "O" not in model.labels:
        raise ConfigError(f"--entities: '{path}' has no BIO tags: {', '.join(model.labels[:8])}")
    places = [[match.span() for match in _WORD.finditer(text)] for text in texts]
    rows = [
        {"words": [text[a:b] for a, b in spans], "number": i}
        for i, (text, spans) in enumerate(zip(texts, places, strict=True))
        if spans
    ]
    found = []
    for row in model.predict(rows):
        spans = places[row["number"]]
        for kind, first, last in spans_of(row["prediction"]):
            found.append(Entity(row["number"], spans[first][0], spans[last][1], kind))
    return found


def spans_of(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, last word) of BIO tags; an I that continues nothing begins a span."""
    found: list[tuple[str, int, int]] = []
    for i, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark == "O":
            continue
        if mark == "I" and found and found[-1][0] == kind and found[-1][2] == i - 1:
            found[-1] = (kind, found[-1][1], i)
        else:
            found.append((kind, i, i))
    return found


def find_triples(
    path: str | pathlib.Path,
    texts: Sequence[str],
    entities: Sequence[Entity],
    heads: Collection[str] = (),
    tails: Collection[str] = (),
) -> list[Triple]:
    """The relations between the entities of each text.

    Every pair is asked for: once, the first one as e1, where labels have directions
    ('R(e2,e1)' is then from the second to the first); else in both orders.

    Args:
      path: a run of `lmjax.tasks.relations`.
      heads, tails: types of entities that may be e1 and e2; () = any.

    Raises:
      ConfigError: as `lmjax.load`, or it is no such run.
    """
    model = open_run(path, Relations, "--relations")
    directed = any(label.endswith((_FORWARD, _BACKWARD)) for label in model.labels)
    assert isinstance(model.task, Relations)
    other = model.task.other
    by_text = collections.defaultdict(list)
    for entity in entities:
        by_text[entity.text].append(entity)
    rows: list[Row] = []
    for number, found in by_text.items():
        firsts = [a for a in found if not heads or a.kind in heads]
        seconds = [b for b in found if not tails or b.kind in tails]
        for a in firsts:
            for b in seconds:
                if a.begin < b.begin or (a != b and not directed):
                    spans = {"head": [a.begin, a.end], "tail": [b.begin, b.end]}
                    rows.append({"text": texts[number], **spans, "entities": (a, b)})
    triples = []
    for row in model.predict(rows):
        label, (head, tail) = row["prediction"], row["entities"]
        if label == other:
            continue
        if label.endswith(_BACKWARD):
            head, tail = tail, head
        triples.append(Triple(head, undirected(label), tail, row["confidence"]))
    return triples


def graph_of(texts: Sequence[str], triples: Sequence[Triple]) -> dict[str, Any]:
    """{'nodes': [...], 'edges': [...]}, fit for JSON and networkx's node-link form.

    Entities of one type that are written alike, but for upper case, are one node. An edge is
    one relation between two nodes: 'count' texts state it, 'confidence' is the highest.
    """
    nodes: dict[tuple[str, str], dict[str, Any]] = {}
    edges: dict[tuple[str, str, str], dict[str, Any]] = {}
    for triple in triples:
        ends = []
        for entity in (triple.head, triple.tail):
            name = " ".join(texts[entity.text][entity.begin : entity.end].split())
            key = (name.lower(), entity.kind)
            node = nodes.setdefault(
                key, {"id": f"{key[0]} ({key[1]})", "name": name, "type": entity.kind}
            )
            ends.append(node["id"])
        edge = edges.setdefault(
            (ends[0], triple.relation, ends[1]),
            {
                "source": ends[0],
                "target": ends[1],
                "relation": triple.relation,
                "confidence": 0.0,
                "texts": [],
            },
        )
        edge["confidence"] = max(edge["confidence"], triple.confidence)
        if triple.head.text not in edge["texts"]:
            edge["texts"].append(triple.head.text)
    listed = [{**edge, "count": len(edge["texts"])} for edge in edges.values()]
    listed.sort(key=lambda edge: (-edge["count"], -edge["confidence"]))
    return {"directed": True, "multigraph": True, "nodes": list(nodes.values()), "edges": listed}


def triple_scores(
    found: Collection[tuple[int, str, str, str]], gold: Collection[tuple[int, str, str, str]]
) -> Scores:
    """Precision, recall and F1 of (text, head, relation, tail), each counted once."""
    ours, theirs = set(found), set(gold)
    right = len(ours & theirs)
    precision = right / len(ours) if ours else 0.0
    recall = right / len(theirs) if theirs else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"triple_f1": f1, "precision": precision, "recall": recall}
