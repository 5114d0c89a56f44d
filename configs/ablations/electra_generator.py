"""The size of ELECTRA's generator, for the same number of tokens (Figure 3, left).

  python -m experiments.ablate --config=configs/ablations/electra_generator.py:tiny \
      --workdir=runs/electra_generator

In the paper, 1/4 to 1/2 of the discriminator's size works best; it shows the values only in a plot.
A larger generator costs more; `--config.budget.unit=flops --config.budget.amount=2e13` equalizes
the cost.
"""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation

SIZES = {"quarter": 0.25, "half": 0.5, "three_quarters": 0.75, "whole": 1.0}


def get_config(size: str = "tiny") -> ConfigDict:
    variants = {}
    for name, share in SIZES.items():
        fields = {"model": {"generator_size": share}}
        variants[name] = f"{share:.0%} of the discriminator's width", fields
    return ablation(
        size,
        name="electra_generator",
        question="How large should the generator be?",
        base="quarter",
        objective="electra",
        variants=variants,
        comparable_losses=False,
    )
