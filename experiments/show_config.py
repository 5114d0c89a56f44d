"""Prints the complete config of a run, one field per line, with the source of each value.

  python -m experiments.show_config --config=configs/bert.py:tiny --config.training.steps=1000

A value comes from the command line, from the config file, or from the default of a dataclass. A
required field without a value is marked as missing; if `init` names a checkpoint, it provides the
fields of the model. For an ablation, `pretraining` shows the fields that all variants share, and
`variants` the changes of each.
"""

from collections.abc import Iterator
from typing import Any

from experiments import command_line
from lmjax.configuration import comparable, filled, flattened

_MISSING = object()


def main() -> None:
    found = list(fields(command_line.opened_config()))
    names = max(len(name) for name, *_ in found)
    shown = [(name, "?" if x is _MISSING else repr(x), source) for name, x, source in found]
    values = min(40, max(len(value) for _, value, _ in shown))
    for name, value, source in shown:
        print(f"config.{name:{names}}  {value:{values}}  {source}")


def fields(opened: command_line.Opened) -> Iterator[tuple[str, Any, str]]:
    """Yields (dotted name, value, source) of every field of a config."""
    owners: dict[str, str] = {}
    values = filled(opened.kind, opened.values, missing=_MISSING, owners=owners)
    if "variants" in values:
        values["pretraining"] = _shared(opened)
    stated = flattened(opened.stated)
    for name, value in flattened(values).items():
        if any(f"{name}.".startswith(f"{given}.") for given in opened.overrides):
            source = "command line"
        elif name in stated:
            source = "config file"
        elif value is _MISSING:
            source = f"missing: {owners[f'config.{name}']} needs it"
        else:
            owner = owners.get(f"config.{name}")
            source = f"default of {owner}" if owner else "default"
        yield name, value, source


def _shared(opened: command_line.Opened) -> dict[str, Any]:
    """Returns an ablation's shared pretraining fields and defaults, by dotted name."""
    whole = comparable(opened.kind, opened.values, opened.values)["pretraining"]
    defaults = {name: x for name, x in whole.items() if not (isinstance(x, dict) and x)}
    return defaults | flattened(opened.values["pretraining"])


if __name__ == "__main__":
    command_line.start(main)
