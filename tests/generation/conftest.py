"""Models that generate."""

import pytest

from lmjax.convert.pretrained import Pretrained
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from tests.words import SIZE, random_model, trunk


@pytest.fixture(scope="session")
def gpt() -> Pretrained:
    return random_model(Gpt(GptConfig(trunk(norm="pre"), max_length=64, vocab_size=SIZE)))


@pytest.fixture(scope="session")
def xlnet() -> Pretrained:
    return random_model(Xlnet(XlnetConfig(trunk(), vocab_size=SIZE)), spread=0.6)
