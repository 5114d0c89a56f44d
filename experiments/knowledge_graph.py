"""Makes a graph of what a text says: entities, and the relations between them.

  python -m experiments.knowledge_graph --entities=runs/parameters --relations=runs/relations \
      --heads=NAME --tails=TYPE --text=notes.txt --out=graph.json

`entities` is a run of configs/finetune/tagging.py, `relations` one of
configs/finetune/relations.py; each line of the text is read alone. graph.json is networkx's
node-link form (networkx.node_link_graph(json.load(file), edges='edges')); a name that ends in
.csv takes the edges alone. `--text=pydocs` reads the held-out docstrings of the relations, whose
triples of names and types are known: how many of them are found, and how many of those found are
right, is printed.
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
    "text", None, "A file with a text a line, or JSON lines (.jsonl) with a 'text'; or 'pydocs'."
)
flags.DEFINE_list("heads", [], "Types of entities that may be the head; all, where none is said.")
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
    # After the flags: importing it takes seconds.
    from lmjax.data.docstrings import relation_rows
    from lmjax.tasks.graphs import find_entities, find_triples, graph_of, triple_scores

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
    entities = find_entities(given["entities"], texts)
    triples = find_triples(
        given["relations"], texts, entities, flags.FLAGS.heads, flags.FLAGS.tails
    )
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
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"of {len(gold):,} types that the docstrings state: {told}")


if __name__ == "__main__":
    command_line.start(main)
