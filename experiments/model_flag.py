"""--model, of the programs that read pretrained models."""

from absl import flags

from lmjax.errors import ConfigError

MODELS = flags.DEFINE_multi_string(
    "model",
    [],
    "A run of lmjax (its --workdir) or a Hugging Face directory; may be given again where several"
    " are compared.",
)


def one_model() -> str:
    """The directory of a program that reads one model.

    Raises:
      ConfigError: none was given, or several.
    """
    if len(MODELS.value) != 1:
        how = (
            "give one of them"
            if MODELS.value
            else "missing; give a run or a Hugging Face directory"
        )
        raise ConfigError(f"--model: {how}")
    return MODELS.value[0]
