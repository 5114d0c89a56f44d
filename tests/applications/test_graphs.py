"""Spans of tags, triples and graphs, from known answers."""

import pathlib

import pytest

from experiments.applications import graphs
from experiments.applications.graphs import Entity, Triple, graph_of, spans_of, triple_scores
from lmjax.errors import ConfigError
from lmjax.tasks.finetuning import finetune
from lmjax.tasks.opened import open_run
from lmjax.tasks.plan import prepare
from lmjax.tasks.relations import Relations
from lmjax.tasks.tagging import Tagging
from tests.tasks import small


def test_spans_of_tags() -> None:
    tags = ["B-A", "I-A", "B-A", "O", "I-B", "I-B", "I-A", "O", "B-B"]
    expected = [("A", 0, 1), ("A", 2, 2), ("B", 4, 5), ("A", 6, 6), ("B", 8, 8)]
    assert spans_of(tags) == expected
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling", reason="is not installed")
    assert seqeval.get_entities(tags) == expected


def test_a_graph_counts_what_several_texts_state() -> None:
    texts = ["Bak eats dol", "bak eats Dol", "dol eats bak"]
    triples = [
        Triple(Entity(i, 0, 3, "X"), "eats", Entity(i, 9, 12, "X"), confidence)
        for i, confidence in enumerate((0.5, 0.75, 0.9))
    ]
    graph = graph_of(texts, [*triples, triples[0]])
    assert [n["name"] for n in graph["nodes"]] == ["Bak", "dol"]
    first, second = graph["edges"]
    assert (first["source"], first["target"]) == ("bak (X)", "dol (X)")
    assert (first["count"], first["confidence"], first["texts"]) == (2, 0.75, [0, 1])
    assert (second["source"], second["target"], second["count"]) == ("dol (X)", "bak (X)", 1)
    networkx = pytest.importorskip("networkx", reason="is not installed")
    read = networkx.node_link_graph(graph, edges="edges")
    assert sorted(read.edges()) == [("bak (X)", "dol (X)"), ("dol (X)", "bak (X)")]


def test_triples_are_counted_once() -> None:
    gold = [(0, "a", "r", "b"), (0, "b", "r", "c"), (1, "a", "r", "b")]
    found = [gold[0], gold[0], (0, "b", "r", "a")]
    scores = triple_scores(found, gold)
    assert scores == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "triple_f1": 0.4})
    assert triple_scores([], gold)["triple_f1"] == 0.0


@pytest.mark.slow
def test_two_runs_make_triples(tmp_path: pathlib.Path) -> None:
    """Texts 'bak WORD dol': bak and dol are entities, related where the word has an a."""
    texts = [f"bak {word} dol" for word in small.WORDS]
    tagged = [{"words": t.split(), "tags": ["B-N", "O", "B-N"]} for t in texts[:64]]
    related = [
        {"text": t, "head": [0, 3], "tail": [8, 11], "label": "R(e2,e1)" if t[5] == "a" else "S"}
        for t in texts[:64]
    ]
    runs = {}
    for name, kind, rows in (
        ("tags", "tagging.Tagging", tagged),
        ("pairs", "relations.Relations", related),
    ):
        path = small.write_rows(tmp_path / f"{name}.jsonl", rows)
        task = {"type": f"lmjax.tasks.{kind}"}
        if name == "pairs":
            task["other"] = "S"
        config = small.config(task, {"train": path, "validation": path})
        config.dropout, config.task.head_dropout, config.training.epochs = 0.0, 0.0, 12
        runs[name] = finetune(prepare(config), config, tmp_path / name, "", seed=0)
    tagger = open_run(tmp_path / "tags", Tagging, "--entities")
    classifier = open_run(tmp_path / "pairs", Relations, "--relations")
    entities = graphs.find_entities(tagger, texts[:8])
    assert entities == [Entity(i, a, a + 3, "N") for i in range(8) for a in (0, 8)]
    triples = graphs.find_triples(classifier, texts[:8], entities)
    predicted = {p["text"]: p for p in runs["pairs"].predictions}
    expected = [i for i, t in enumerate(texts[:8]) if predicted[t]["prediction"] != "S"]
    assert [t.head.text for t in triples] == expected
    assert 0 < len(expected) < 8
    for triple in triples:  # from the second to the first
        assert (triple.head.begin, triple.tail.begin, triple.relation) == (8, 0, "R")
        confidence = predicted[texts[triple.head.text]]["confidence"]
        assert triple.confidence == pytest.approx(confidence, abs=1e-4)
    with pytest.raises(ConfigError, match="no BIO tags: R"):
        graphs.find_entities(classifier, texts)
