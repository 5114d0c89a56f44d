"""Converts a run of lmjax, or a Hugging Face directory, to a Hugging Face directory.

  python -m experiments.convert --from=runs/bert --to=bert-hf

N-gram models are converted to ARPA files, and ARPA files to directories that lmjax opens faster:

  python -m experiments.convert --from=runs/kn5 --to=kn5.arpa
  python -m experiments.convert --from=lm.arpa.gz --to=lm --tokenizer=runs/gpt
"""

from absl import flags

from experiments import command_line
from lmjax.errors import ConfigError

flags.DEFINE_string("from", None, "A run of lmjax (its --workdir) or a Hugging Face directory.")
flags.DEFINE_string("to", None, "The new directory: config.json, model.safetensors, tokenizer.")
flags.DEFINE_enum(
    "part", "discriminator", ["discriminator", "generator"], "Which network of an ELECTRA run."
)
flags.DEFINE_string(
    "tokenizer",
    None,
    "The tokenizer whose tokens are the words of an ARPA file; by default, words are separated by"
    " white space.",
)


def main() -> None:
    source, target = flags.FLAGS["from"].value, flags.FLAGS["to"].value
    for name, value in (("from", source), ("to", target)):
        if not value:
            raise ConfigError(f"--{name}: missing; give a directory")
    import lmjax
    from lmjax.convert.arpa import is_arpa, read_arpa, write_arpa
    from lmjax.convert.ngrams import save_ngrams
    from lmjax.data.tokenizers import load_tokenizer

    assert source and target
    if is_arpa(source):
        path = flags.FLAGS.tokenizer
        save_ngrams(
            read_arpa(source, load_tokenizer(path, where="--tokenizer") if path else None), target
        )
        return
    pretrained = lmjax.load(source)
    if is_arpa(target):
        write_arpa(pretrained, target)
        return
    lmjax.save_huggingface(pretrained, target, flags.FLAGS.part)
    published = lmjax.load(target).network.published()
    assert published is not None  # it was just read
    print(f"{target}: {published.architecture}, read back whole")


if __name__ == "__main__":
    command_line.start(main)
