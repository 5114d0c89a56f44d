"""What directories are read and written; damaged, mismatched and hostile ones: one clear error."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lmjax
from lmjax.convert.huggingface import abstract_params
from lmjax.convert.pretrained import Pretrained
from lmjax.errors import ConfigError
from lmjax.models.bert import BertConfig, BertForPreTraining
from lmjax.models.electra import ElectraConfig
from lmjax.models.gpt import Gpt, GptConfig
from lmjax.models.xlnet import Xlnet, XlnetConfig
from lmjax.nn.trunk import TransformerConfig

TRUNK = TransformerConfig(
    layers=2, hidden_size=8, heads=2, intermediate_size=12, activation="gelu", norm="post"
)
BERT = BertForPreTraining(BertConfig(TRUNK, max_length=6, vocab_size=20))


def random_params(network: nn.Module) -> Any:
    rng = np.random.default_rng(0)
    shapes = abstract_params(network)
    flat = {
        path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in shapes.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("published") / "bert"
    lmjax.save_huggingface(Pretrained(BERT, random_params(BERT)), path)
    return path


@pytest.fixture
def copy(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "bert"))


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path / "model.safetensors")


def put(path: pathlib.Path, values: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(values, path / "model.safetensors")


def change_config(path: pathlib.Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    def apply(path: pathlib.Path) -> None:
        values = tensors(path)
        put(path, {**values, name: change(values[name])})

    return apply


def drop(name: str) -> Any:
    return lambda path: put(path, {k: v for k, v in tensors(path).items() if k != name})


def with_config(**fields: Any) -> Any:
    return lambda path: change_config(path, **fields)


def write(name: str, content: bytes) -> Any:
    return lambda path: (path / name).write_bytes(content)


def cut(path: pathlib.Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def pickle_only(path: pathlib.Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def index(weight_map: Any) -> Any:
    def apply(path: pathlib.Path) -> None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return apply


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[0] = np.nan
    return array


WORD = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not a complete safetensors file"),
        (write("model.safetensors", b""), "not a complete safetensors file"),
        (write("model.safetensors", b"\xff" * 64), "not a complete safetensors file"),
        (write("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"), "not a complete"),
        (lambda path: (path / "model.safetensors").unlink(), "has no model.safetensors"),
        (pickle_only, "opening a pickle can execute"),
        (drop(QUERY), f"tensor '{QUERY}' is missing"),
        (change_tensor(QUERY, lambda x: x[:4]), r"shape \[4, 8\], but config.json implies \[8"),
        (change_tensor(WORD, with_nan), f"tensor '{WORD}' has 1 values that are not finite"),
        (change_tensor(WORD, lambda x: x.astype(np.int64)), "has type I64"),
        (lambda p: put(p, {**tensors(p), "lora_A": np.ones(2)}), "unexpected tensor lora_A"),
        (
            lambda p: put(p, {**tensors(p), "cls.predictions.decoder.weight": np.ones((20, 8))}),
            "decoder.weight' differs from 'bert.embeddings.word_embeddings.weight'",
        ),
        (write("config.json", b"{"), "no JSON"),
        (write("config.json", b"[" * 100_000), "no JSON"),
        (write("config.json", b"[1]"), "holds no JSON object"),
        (lambda path: (path / "config.json").unlink(), "config.json: cannot be read"),
        (with_config(model_type="t5"), "'model_type' is 't5'; expected one of bert"),
        (with_config(model_type=["bert"]), "'model_type' is"),
        (with_config(architectures=["T5Model"]), "'architectures' names T5Model"),
        (with_config(architectures=["BertLMHeadModel"]), "causal BERT is not supported"),
        (with_config(architectures="BertModel"), "a list of one name"),
        (with_config(hidden_size="8"), "'hidden_size' is '8'; expected int"),
        (with_config(hidden_size=None), "'hidden_size' is missing"),
        (with_config(hidden_size=-8), "expected a size >= 1"),
        (with_config(num_attention_heads=3), "heads: 3 does not divide"),
        (with_config(num_hidden_layers=900), "900 layers"),
        (with_config(num_hidden_layers=10**9), "layers: must lie in"),
        (with_config(num_hidden_layers=3), "tensor 'bert.encoder.layer.2"),
        (with_config(vocab_size=10**12), "expected a size >= 1"),
        (with_config(vocab_size=10**6), "config.json implies"),
        (with_config(vocab_size=10**9), "vocab_size: must lie in"),
        (with_config(layer_norm_eps=float("nan")), "'layer_norm_eps' is nan"),
        (with_config(type_vocab_size=0), "'type_vocab_size' is 0; expected a size"),
        (with_config(hidden_act="mish"), "'hidden_act' is 'mish'; supported are gelu"),
        (with_config(position_embedding_type="relative_key"), "'position_embedding_type'"),
        (with_config(is_decoder=True), "'is_decoder' is True"),
        (index({WORD: "../../etc/passwd"}), "points to '../../etc/passwd'"),
        (index({WORD: "/etc/passwd.safetensors"}), "points to '/etc/passwd.safetensors'"),
        (index({WORD: "..\\model.safetensors"}), "only .safetensors files in"),
        (index({WORD: 3}), "points to 3"),
        (index({WORD: "other.safetensors"}), "lists 'other.safetensors', which is missing"),
        (index({"no.such": "model.safetensors"}), "tensor 'no.such' is not in model.safetensors"),
        (index([]), "not an index of safetensors files"),
        (index({}), "lists no tensors"),
    ],
)
def test_one_clear_error(damage: Any, message: str, copy: pathlib.Path) -> None:
    damage(copy)
    with pytest.raises(
        ConfigError, match=message.replace("[", r"\[") if "\\" not in message else message
    ) as caught:
        lmjax.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("gpt2", {"embd_pdrop": 0.3}, "'embd_pdrop' is 0.3 and 'resid_pdrop' 0.1"),
        ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' is True"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2LMHeadModel"),
        (
            "xlnet",
            {"bi_data": True},
            "'bi_data' is True: set it to false, and pass `direction`",
        ),
        ("xlnet", {"reuse_len": 3}, "'reuse_len' is 3: set it to null, and set the number"),
        ("xlnet", {"untie_r": False}, "'untie_r' is False"),
        ("xlnet", {"attn_type": "diagonal"}, "'attn_type' is 'diagonal'"),
        ("xlnet", {"architectures": ["XLNetForQuestionAnswering"]}, "beam search over answers"),
    ],
)
def test_a_function_that_is_not_built_is_refused_by_name(
    model_type: str, fields: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    trunk = TransformerConfig(
        layers=1,
        hidden_size=8,
        heads=2,
        intermediate_size=12,
        norm="pre" if model_type == "gpt2" else "post",
    )
    network: nn.Module = Gpt(GptConfig(trunk, max_length=6, vocab_size=20))
    if model_type == "xlnet":
        network = Xlnet(XlnetConfig(trunk, vocab_size=20))
    lmjax.save_huggingface(Pretrained(network, random_params(network)), tmp_path / "m")
    change_config(tmp_path / "m", **fields)
    with pytest.raises(ConfigError, match=message):
        lmjax.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("model", "token"),
    [
        (BertConfig(TRUNK, max_length=6, vocab_size=20), "first"),
        (XlnetConfig(TRUNK, vocab_size=20), "last"),
        (
            GptConfig(dataclasses.replace(TRUNK, norm="pre"), max_length=6, vocab_size=20),
            "last_real",
        ),
        (ElectraConfig(TRUNK, generator_size=1.0, max_length=6, vocab_size=20), "first"),
    ],
)
def test_the_labels_of_a_fine_tuned_head_are_kept(
    model: Any, token: str, tmp_path: pathlib.Path
) -> None:
    network = model.headed("sequence_classification", 3, 0.2)
    assert network.head.token == token
    labels = ("bad", "neutral", "good")
    given = Pretrained(network, random_params(network), None, labels, {"pad_token_id": 0})
    lmjax.save_huggingface(given, tmp_path / "m")
    opened = lmjax.load(tmp_path / "m")
    assert opened.labels == labels
    assert opened.token_ids == {"pad_token_id": 0}
    assert opened.network.task == "sequence_classification"
    # GPT-2's head in transformers drops nothing out.
    assert opened.network.head.dropout == (0.0 if token == "last_real" else 0.2)
    tokens = np.arange(1, 13).reshape(2, 6)
    real = np.arange(6)[None] < np.array([[6], [4]])
    np.testing.assert_array_equal(given(tokens, real=real), opened(tokens, real=real))


def test_nothing_is_overwritten(whole: pathlib.Path) -> None:
    before = (whole / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is not empty; give"):
        lmjax.save_huggingface(lmjax.load(whole), whole)
    assert (whole / "model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="--to: cannot write"):
        lmjax.save_huggingface(lmjax.load(whole), whole / "config.json" / "below")


def test_shards_half_precision_and_old_names_are_read(copy: pathlib.Path) -> None:
    expected = lmjax.load(copy).params
    values = tensors(copy)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for name, v in values.items()
    }
    names = sorted(old)
    (copy / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: old[name] for name in part}, copy / file)
    index({name: file for file, part in parts.items() for name in part})(copy)
    jax.tree.map(np.testing.assert_array_equal, lmjax.load(copy).params, expected)

    half = {name: old[name].astype(np.float16) for name in parts["a.safetensors"]}
    safetensors.numpy.save_file(half, copy / "a.safetensors")
    found = lmjax.load(copy).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), found, expected)
    bits = {name: old[name].astype(jnp.bfloat16) for name in parts["a.safetensors"]}
    safetensors.numpy.save_file(bits, copy / "a.safetensors")
    found = lmjax.load(copy).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2), found, expected)


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@hypothesis.given(data=st.data())
def test_any_config_opens_or_is_refused(whole: pathlib.Path, data: st.DataObject) -> None:
    values = json.loads((whole / "config.json").read_text())
    fields = [*values, "id2label", "classifier_dropout", "is_decoder", "num_labels"]
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2)):
        values[name] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "model.safetensors").symlink_to(whole / "model.safetensors")
        (place / "config.json").write_text(json.dumps(values))
        with contextlib.suppress(ConfigError):
            lmjax.load(place)


@hypothesis.given(at=st.integers(0, 3000), value=st.integers(0, 255))
def test_any_changed_byte_of_a_header_opens_or_is_refused(
    whole: pathlib.Path, at: int, value: int
) -> None:
    content = bytearray((whole / "model.safetensors").read_bytes())
    content[at] = value
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "config.json").write_bytes((whole / "config.json").read_bytes())
        (place / "model.safetensors").write_bytes(content)
        with contextlib.suppress(ConfigError):
            lmjax.load(place)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_prefixes_buffers_and_second_copies_are_read(prefix: str, copy: pathlib.Path) -> None:
    expected = lmjax.load(copy).params
    values = {name.removeprefix("bert."): array for name, array in tensors(copy).items()}
    heads = {name: array for name, array in values.items() if name.startswith("cls.")}
    base = {f"{prefix}{name}": array for name, array in values.items() if name not in heads}
    extra = {
        f"{prefix}embeddings.position_ids": np.arange(6)[None],
        "cls.predictions.decoder.weight": values["embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": values["cls.predictions.bias"],
    }
    put(copy, {**base, **heads, **extra})
    jax.tree.map(np.testing.assert_array_equal, lmjax.load(copy).params, expected)


def test_impossible_texts_are_refused(whole: pathlib.Path) -> None:
    model = lmjax.load(whole)
    for arguments, message in (
        ((np.zeros((1, 7), int),), "7 are more than the 6 rows of the position table"),
        ((np.full((1, 2), 20),), "tokens: ids from 20 to 20, but the table has 20 rows"),
        ((np.full((1, 2), -1),), "tokens: ids from -1"),
        ((np.zeros((1, 2), int), np.full((1, 2), 2)), "token_types: ids from 2 to 2"),
        ((np.zeros(3, int),), "all must be"),
        ((np.zeros((1, 3), int), None, np.ones((1, 2), bool)), "all must be"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)


def test_a_scanned_trunk_is_written_layer_by_layer(tmp_path: pathlib.Path) -> None:
    config = BertConfig(TRUNK, max_length=6, vocab_size=20)
    scanned = BertForPreTraining(
        BertConfig(
            TransformerConfig(**{**vars(TRUNK), "scan_layers": True}), max_length=6, vocab_size=20
        )
    )
    params = random_params(scanned)
    lmjax.save_huggingface(Pretrained(scanned, params), tmp_path / "m")
    loaded = lmjax.load(tmp_path / "m")
    assert loaded.network.config.trunk.layers == config.trunk.layers
    tokens = np.arange(12).reshape(2, 6)
    for mine, theirs in zip(Pretrained(scanned, params)(tokens), loaded(tokens), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    np.testing.assert_allclose(
        Pretrained(scanned, params).hidden_states(tokens), loaded.hidden_states(tokens), atol=1e-5
    )


def test_a_head_that_transformers_lacks_is_refused(tmp_path: pathlib.Path) -> None:
    gpt = GptConfig(dataclasses.replace(TRUNK, norm="pre"), max_length=6, vocab_size=20)
    network = gpt.headed("multiple_choice", 1, 0.0)  # GPT-2 has no such class
    with pytest.raises(ConfigError, match="Headed: transformers has no class for this network"):
        lmjax.save_huggingface(Pretrained(network, random_params(network)), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_gated_trunk_is_not_written_as_a_plain_one(tmp_path: pathlib.Path) -> None:
    gated = dataclasses.replace(TRUNK, gated=True)
    network = BertForPreTraining(BertConfig(gated, max_length=6, vocab_size=20))
    with pytest.raises(ConfigError, match=r"trunk\.gated: transformers supports only False"):
        lmjax.save_huggingface(Pretrained(network, random_params(network)), tmp_path / "m")
    assert not (tmp_path / "m").exists()
