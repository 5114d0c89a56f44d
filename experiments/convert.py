"""Converts a run of lmjax, or a Hugging Face directory, to a Hugging Face directory.

python -m experiments.convert --from=runs/bert --to=bert-hf
"""

from absl import flags

from experiments import command_line
from lmjax.errors import ConfigError

flags.DEFINE_string("from", None, "A run of lmjax (its --workdir) or a Hugging Face directory.")
flags.DEFINE_string("to", None, "The new directory: config.json, model.safetensors, tokenizer.")
flags.DEFINE_enum(
    "part", "discriminator", ["discriminator", "generator"], "Which network of an ELECTRA run."
)


def main() -> None:
    source, target = flags.FLAGS["from"].value, flags.FLAGS["to"].value
    for name, value in (("from", source), ("to", target)):
        if not value:
            raise ConfigError(f"--{name}: missing; give a directory")
    import lmjax

    assert source and target
    pretrained = lmjax.load(source)
    lmjax.save_huggingface(pretrained, target, flags.FLAGS.part)
    published = lmjax.load(target).network.published()
    assert published is not None  # it was just read
    print(f"{target}: {published.architecture}, read back whole")


if __name__ == "__main__":
    command_line.start(main)
