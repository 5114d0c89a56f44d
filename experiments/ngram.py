"""Estimates an n-gram model of a corpus, and saves it in --workdir.

  python -m experiments.ngram --config=configs/ngram.py --workdir=runs/kn5 \
      --config.data.corpus='texts/*.txt'
  python -m experiments.evaluate --task=perplexity --data=test.txt --model=runs/kn5 --model=runs/gpt
  python -m experiments.generate --model=runs/kn5 --prompt="The" --temperature=1
  python -m experiments.convert --from=runs/kn5 --to=kn5.arpa

All programs open the result as they open a neural model.
"""

import math

from experiments import command_line


def main() -> None:
    values = command_line.config()
    directory = command_line.workdir()
    import numpy as np  # after the flags: these imports take seconds

    from lmjax.configuration import build
    from lmjax.convert.ngrams import new_directory, opened, save_ngrams
    from lmjax.data.store import check_data, prepare
    from lmjax.evaluation.scoring import Passage, passage_scores
    from lmjax.training.ngrams import NgramTraining, estimate

    config = build(NgramTraining, values, "config")
    new_directory(directory, "--workdir")
    check_data(config.data)
    tokenizer, stores = prepare(config.data)
    held_out = stores["validation"]
    found = estimate(
        config.texts(stores["train"]),
        tokenizer.size,
        (tokenizer.roles["eod"],) * 2,
        order=config.order,
        smoothing=config.smoothing,
        discount_fallback=config.discount_fallback,
        held_out=config.texts(held_out),
    )
    model = opened(found.config, found.params, tokenizer)
    about = {"training": values.to_dict(), "constants": found.constants}
    save_ngrams(model, directory, about)
    for n, constants in enumerate(found.constants, 1):
        count = len(found.params[f"order_{n}"]["log_probs"])
        told = ", ".join(f"{x:.4g}" for x in constants)
        fell_back = " (fallback)" if n in found.fell_back else ""
        print(f"{count:,} {n}-grams" + (f"; {told}{fell_back}" if told else ""))
    if "causal" in model.network.score_methods:
        tokens, offsets = config.texts(held_out)
        passages = map(Passage, np.split(tokens, offsets[1:-1]))
        nats = -sum(float(s.logs.sum()) for s in passage_scores(model, list(passages)))
        per_token, bits = math.exp(nats / len(tokens)), nats / math.log(2) / held_out.bytes
        print(f"held-out: perplexity per token {per_token:.2f}, bits per byte {bits:.4f}")
    print(f"the model is in {directory}")


if __name__ == "__main__":
    command_line.start(main)
