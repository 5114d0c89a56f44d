"""Does it help to read blanks? An ablation of an objective of one's own."""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation


def get_config(size: str = "tiny") -> ConfigDict:
    return ablation(
        size,
        name="blanks",
        question="Does it help to read blanks?",
        base="causal",
        objective="gpt",
        variants={
            "causal": ("each token from those before it", {}),
            "blanks": ("a tenth of them hidden", {"objective": {"type": "my_package.BlankedLM"}}),
        },
    )
