"""Causal and masked language modelling in turn or mixed, for the same number of tokens.

  python -m experiments.ablate --config=configs/ablations/phases.py:tiny --workdir=runs/phases

All variants train one decoder (GPT-BERT; Charpentier and Samuel 2024) and are compared as masked
language models. Gisserot-Boukhlef et al. 2025 report that a causal phase before the masked one is
better than masked training alone.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation, held_out


def _rows(causal_fraction: float, **fields: Any) -> dict[str, Any]:
    kind = "lmjax.objectives.causal_masked.CausalMaskedLM"
    return {"objective": {"type": kind, "causal_fraction": causal_fraction}, **fields}


def _causal_until(start: float) -> dict[str, Any]:
    masked = {"start": start, "changes": {"objective": {"causal_fraction": 0.0}}}
    return _rows(1.0, phases={"masked": masked})


def get_config(size: str = "tiny") -> ConfigDict:
    return ablation(
        size,
        name="phases",
        question="Does a masked language model gain from causal rows, before or among masked ones?",
        base="masked",
        objective="gpt",
        variants={
            "masked": ("masked rows only", _rows(0.0)),
            "mixed_1_15": ("1 causal row to 15 masked ones", _rows(1 / 16)),
            "mixed_1_1": ("as many causal as masked rows", _rows(0.5)),
            "causal_first_25": ("the first 25% of the steps causal", _causal_until(0.25)),
            "causal_first_50": ("the first 50% of the steps causal", _causal_until(0.5)),
        },
        measures=held_out("held-out loss of masked tokens, nats", "masked"),
    )
