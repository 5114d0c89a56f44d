"""The flag --model of programs that read pretrained models."""

from absl import flags

from lmjax.errors import ConfigError

MODELS = flags.DEFINE_multi_string(
    "model",
    [],
    "A run of lmjax (its --workdir) or a Hugging Face directory; may be repeated to compare several"
    " models.",
)


def one_model() -> str:
    """Returns the value of --model for programs that read a single model.

    Raises:
      ConfigError: --model is missing or repeated.
    """
    if len(MODELS.value) != 1:
        how = (
            "give one of them"
            if MODELS.value
            else "missing; give a run or a Hugging Face directory"
        )
        raise ConfigError(f"--model: {how}")
    return MODELS.value[0]
