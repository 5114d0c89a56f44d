"""Knowledge graphs from texts: a tagger finds entities, a second model their relations."""

import collections
import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Any

from lmjax.data.rows import Row
from lmjax.errors import ConfigError
from lmjax.tasks.base import Scores
from lmjax.tasks.metrics import undirected
from lmjax.tasks.opened import Opened
from lmjax.tasks.relations import Relations

_WORD = re.compile(r"\w+|[^\w\s]")
_FORWARD, _BACKWARD = "(e1,e2)", "(e2,e1)"


@dataclasses.dataclass(frozen=True)
class Entity:
    """A span of a text: the index of the text, [begin, end) in characters, and the type."""

    text: int
    begin: int
    end: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Triple:
    """A predicted relation from `head` to `tail`, and the model's confidence."""

    head: Entity
    relation: str
    tail: Entity
    confidence: float


def find_entities(model: Opened, texts: Sequence[str]) -> list[Entity]:
    """The spans that a tagger finds, in the order of the texts.

    Args:
      model: of `lmjax.tasks.tagging`, with BIO tags.
      texts: each is split into words at spaces and punctuation.

    Raises:
      ConfigError: the tags of the model are not BIO tags.
    """
    if "O" not in model.labels:
        raise ConfigError(f"--entities: the tags are no BIO tags: {', '.join(model.labels[:8])}")
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
    """(type, first word, last word) of BIO tags. An I that continues no span begins one."""
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
    model: Opened,
    texts: Sequence[str],
    entities: Sequence[Entity],
    heads: Collection[str] = (),
    tails: Collection[str] = (),
) -> list[Triple]:
    """The relations between the entities of each text.

    If the labels have directions, the model classifies each pair once, with the first entity as e1,
    and 'R(e2,e1)' is a relation from the second to the first. Otherwise it classifies both orders.

    Args:
      model: of `lmjax.tasks.relations`.
      heads, tails: types of entities that may be e1 and e2; () allows any.
    """
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
    """A graph in networkx's node-link form, ready for JSON.

    Entities of one type with the same spelling, ignoring case, are one node. An edge is one
    relation between two nodes; 'count' is the number of texts that state it, and 'confidence' the
    highest one.
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
    """Precision, recall and F1 of distinct (text, head, relation, tail)."""
    ours, theirs = set(found), set(gold)
    right = len(ours & theirs)
    precision = right / len(ours) if ours else 0.0
    recall = right / len(theirs) if theirs else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"triple_f1": f1, "precision": precision, "recall": recall}
