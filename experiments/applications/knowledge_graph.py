"""Builds a knowledge graph of a text: entities, and the relations between them.

  python -m experiments.applications.knowledge_graph --entities=runs/parameters \
      --relations=runs/relations --heads=NAME --tails=TYPE --text=notes.txt --out=graph.json

`entities` is a run of configs/finetune/tagging.py, `relations` one of
configs/finetune/relations.py; each line of the text is a text of its own. graph.json is in
networkx's node-link form (networkx.node_link_graph(json.load(file), edges='edges')); a name that
ends in .csv receives the edges alone. `--text=pydocs` reads held-out docstrings, whose pairs of
names and types are known, and prints precision and recall.
"""

import csv
import json
import pathlib

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from lmjax.data.files import read_texts
from lmjax.errors import ConfigError

flags.DEFINE_string("entities", None, "A run of lmjax.tasks.tagging (its --workdir).")
flags.DEFINE_string("relations", None, "A run of lmjax.tasks.relations (its --workdir).")
flags.DEFINE_string(
    "text", None, "A file with one text per line, JSON lines (.jsonl) with a 'text', or 'pydocs'."
)
flags.DEFINE_list("heads", [], "Types of entities that may be the head; any by default.")
flags.DEFINE_list("tails", [], "Types of entities that may be the tail.")
flags.DEFINE_string("out", None, "graph.json or graph.csv.")

_SHOWN = 15


def main() -> None:
    names = ("entities", "relations", "text", "out")
    given = {name: flags.FLAGS[name].value or "" for name in names}
    for name, value in given.items():
        if not value:
            raise ConfigError(f"--{name}: missing")
    out = pathlib.Path(given["out"])
    if out.suffix not in (".json", ".csv"):
        raise ConfigError(f"--out: '{out}' ends neither in .json nor in .csv")
    # Imported after the flags are parsed: this takes seconds.
    from experiments.applications.graphs import (
        find_entities,
        find_triples,
        graph_of,
        triple_scores,
    )
    from lmjax.data.docstrings import relation_rows
    from lmjax.tasks.opened import open_run
    from lmjax.tasks.relations import Relations
    from lmjax.tasks.tagging import Tagging

    tagger = open_run(given["entities"], Tagging, "--entities")
    classifier = open_run(given["relations"], Relations, "--relations")

    gold = set()
    if given["text"] == "pydocs":
        numbers: dict[str, int] = {}
        for row in relation_rows("test", "", every_type=True):
            number = numbers.setdefault(row["text"], len(numbers))
            if row["label"] == "has_type":
                head, tail = (row["text"][slice(*row[n])] for n in ("head", "tail"))
                gold.add((number, head, row["label"], tail))
        texts = list(numbers)
    else:
        texts = [text for text in read_texts(given["text"], "--text") if text.strip()]
        if not texts:
            raise ConfigError(f"--text: '{given['text']}' is empty")
    entities = find_entities(tagger, texts)
    triples = find_triples(classifier, texts, entities, flags.FLAGS.heads, flags.FLAGS.tails)
    graph = graph_of(texts, triples)
    if out.suffix == ".json":
        out.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        fields = ["source", "relation", "target", "confidence", "count"]
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(graph["edges"])
    console = Console(width=120)
    table = Table(
        "head", "relation", "tail", "confidence", "texts", title="The most frequent edges"
    )
    for edge in graph["edges"][:_SHOWN]:
        cells = (edge["source"], edge["relation"], edge["target"])
        table.add_row(*cells, f"{edge['confidence']:.2f}", str(edge["count"]))
    console.print(table)
    print(
        f"{len(texts):,} texts, {len(entities):,} entities, {len(triples):,} triples:"
        f" {len(graph['nodes']):,} nodes and {len(graph['edges']):,} edges in {out}"
    )
    if gold:
        found = set()
        for t in (t for t in triples if t.relation == "has_type"):
            head, tail = (texts[e.text][e.begin : e.end] for e in (t.head, t.tail))
            found.add((t.head.text, head, t.relation, tail))
        scores = triple_scores(found, gold)
        printed = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"of {len(gold):,} types that the docstrings state: {printed}")


if __name__ == "__main__":
    command_line.start(main)
