"""Does it help to see a beginning whole? An ablation of an objective of one's own."""

from ml_collections import ConfigDict

from configs.ablations.recipe import ablation


def get_config(size: str = "tiny") -> ConfigDict:
    return ablation(
        size,
        name="prefix",
        question="Does it help to see a beginning whole?",
        base="causal",
        objective="gpt",
        variants={
            "causal": ("each token from those before it", {}),
            "prefix": ("up to half seen whole", {"objective": {"type": "my_package.PrefixLM"}}),
        },
    )
