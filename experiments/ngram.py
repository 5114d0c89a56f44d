"""Estimates an n-gram model of a corpus, and saves it in --workdir.

  python -m experiments.ngram --config=configs/ngram.py --workdir=runs/kn5 \
      --config.data.corpus='texts/*.txt'
  python -m experiments.evaluate --task=perplexity --data=test.txt --model=runs/kn5 --model=runs/gpt
  python -m experiments.generate --model=runs/kn5 --prompt="The" --temperature=1
  python -m experiments.convert --from=runs/kn5 --to=kn5.arpa

All programs open the result as they open a neural model.
"""

from experiments import command_line


def main() -> None:
    values = command_line.config()
    directory = command_line.workdir()
    from lmjax.configuration import build  # after the flags: these imports take seconds
    from lmjax.convert.ngrams import NgramTraining, new_directory, opened, save_ngrams
    from lmjax.data.store import check_data, open_split, prepare
    from lmjax.evaluation.perplexity import perplexity
    from lmjax.models.ngram_estimation import estimate

    config = build(NgramTraining, values, "config")
    new_directory(directory, "--workdir")
    check_data(config.data)
    tokenizer, stores = prepare(config.data)
    found = estimate(
        config.texts(stores["train"]),
        tokenizer.size,
        (tokenizer.roles["eod"],) * 2,
        order=config.order,
        smoothing=config.smoothing,
        discount_fallback=config.discount_fallback,
        held_out=config.texts(stores["validation"]),
    )
    model = opened(found.config, found.params, tokenizer)
    about = {"training": values.to_dict(), "constants": found.constants}
    save_ngrams(model, directory, about)
    for n, constants in enumerate(found.constants, 1):
        count = len(found.params[f"order_{n}"]["log_probs"])
        told = ", ".join(f"{x:.4g}" for x in constants[:5])
        fell_back = " (fallback)" if n in found.fell_back else ""
        print(f"{count:,} {n}-grams" + (f"; {told}{fell_back}" if told else ""))
    if "causal" in model.network.score_methods:
        documents = open_split(config.data, "validation").documents()
        held_out = perplexity(model, documents)
        print(
            f"held-out: perplexity per token {held_out.per_token:.2f}, bits per byte"
            f" {held_out.bits_per_byte:.4f}"
        )
    print(f"the model is in {directory}")


if __name__ == "__main__":
    command_line.start(main)
