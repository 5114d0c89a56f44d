"""Checkpoints in Hugging Face's format: a directory with config.json and safetensors."""

import functools
import json
import logging
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lmjax.convert.pretrained import Pretrained
from lmjax.convert.tensors import SINGLE, TensorFiles, write_tensors
from lmjax.data.tokenizers import Tokenizer, load_tokenizer
from lmjax.errors import ConfigError
from lmjax.models.family import Joined, ModelConfig, published_families
from lmjax.models.heads import CLASS_TASKS, Headed, Task, without_unit
from lmjax.models.network import Network
from lmjax.models.published import Fields, Read, Rule
from lmjax.progress import track

_LARGEST_JSON = 1 << 24  # bytes; enough for configs that name many labels
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def load_huggingface(directory: pathlib.Path) -> Pretrained:
    """Opens a Hugging Face directory; see `lmjax.load`."""
    config_file = directory / "config.json"
    values, where = read_json(config_file), str(config_file)
    model, query_scale = read_config(values, where)
    files = TensorFiles(directory)
    if model.trunk.layers > len(files.shapes):
        raise ConfigError(
            f"{where}: {model.trunk.layers} layers, but the files have only"
            f" {len(files.shapes)} tensors; config and weights belong to different models"
        )
    network = choose_network(model, values, files.shapes, where)
    params = _read_params(network, files, directory, query_scale)
    labelled = isinstance(network, Headed) and network.task.endswith("classification")
    return Pretrained(
        network,
        params,
        tokenizer_of(directory),
        labels_of(values, where) if labelled else (),
        {name: values[name] for name in _TOKEN_IDS if isinstance(values.get(name), int)},
    )


def save_huggingface(
    pretrained: Pretrained,
    directory: str | pathlib.Path,
    part: str = "discriminator",
    length: int = 0,
    asks: bool = False,
) -> None:
    """Writes a directory that `transformers` opens without missing or unexpected tensors.

    Its tokenizer produces the inputs that the model has in lmjax: the family's special tokens,
    token types and side of padding. The exceptions are GPT and XLNet as language models, which
    continue a text without special tokens.

    Args:
      pretrained: a model whose network has a class in `transformers`.
      directory: the target; it is created if missing and must be empty.
      part: which network of an ELECTRA run: 'discriminator' or 'generator'.
      length: the length for `truncation=True`; 0 = the size of the position table.
      asks: whether a language model was fine-tuned to answer prompts, so that a text is a prompt.

    Raises:
      ConfigError: the directory is not empty, or `transformers` has no class for the model.
    """
    target = pathlib.Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--to: '{target}' is not empty; give a new directory")
    network, params = pretrained.network.part(pretrained.params, part)
    published = network.published()
    if published is None:
        raise ConfigError(f"{type(network).__name__}: transformers has no class for this network")
    model: ModelConfig = network.config
    values = {"architectures": [published.architecture], **model.published_values()}
    values |= _head_values(network) | dict(pretrained.token_ids)
    model.check_padding(values.get("pad_token_id"))
    if pretrained.labels:
        values["id2label"] = {str(i): label for i, label in enumerate(pretrained.labels)}
        values["label2id"] = {label: i for i, label in enumerate(pretrained.labels)}
    _, params = without_unit(network, params)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    base = model.published_base if published.bare else ""
    tensors = [
        (
            name.removeprefix(base),
            _their_shape(rule, lambda path: _leaf(flat, path).shape),
            _maker(rule, flat),
        )
        for rule in published.rules
        for name in (rule.theirs, *rule.copies)
    ]
    texts = {"config.json": _json(values)}
    if pretrained.tokenizer is not None:
        texts |= _tokenizer_files(pretrained.tokenizer, network, length, asks)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_tensors(target / SINGLE, tensors)
        for name, text in texts.items():
            (target / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to: cannot write '{target}' ({error.strerror})") from error


def read_config(values: Mapping[str, Any], where: str) -> Read:
    """Converts config.json to the family's config.

    Raises:
      ConfigError: the architecture or the value of a field is not supported.
    """
    families = published_families()
    family = values.get("model_type")
    if not isinstance(family, str) or family not in families:
        raise ConfigError(
            f"{where}: 'model_type' is {family!r}; expected one of {', '.join(sorted(families))}"
        )
    fields = Fields(values, where)
    fields.require("is_decoder", (False,), "decoders of this family are not supported")
    fields.require("add_cross_attention", (False,), "cross-attention is not supported")
    try:
        read = families[family].read_published(fields)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None
    fields.report_unread()
    return read


def choose_network(
    model: ModelConfig, values: Mapping[str, Any], names: Collection[str], where: str
) -> Network:
    """Builds the network of a checkpoint.

    Args:
      model: the family's config, read from `values`.
      values: the contents of config.json.
      names: names of the tensors.
      where: the path of config.json, for messages.

    Raises:
      ConfigError: the class of the checkpoint is not supported or missing.
    """
    architecture = _architecture(model, values, where)
    task = CLASS_TASKS.get(architecture.removeprefix(model.published_prefix))
    if task is None:
        task = _task_by_names(model, names, where)
    if task is None:
        return model.published_network(architecture, names, values, where)
    dropout = model.published_head_dropout(task, values, where)
    return model.headed(task, len(labels_of(values, where)), dropout)


def labels_of(values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Returns the names of the classes, in order (`id2label`)."""
    named = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(_count(values))}
    try:
        by_index = {int(index): str(label) for index, label in named.items()}
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: 'id2label' must map numbers to names") from error
    if sorted(by_index) != list(range(len(by_index))):
        raise ConfigError(f"{where}: 'id2label' must be numbered from 0 without gaps")
    return tuple(by_index[i] for i in range(len(by_index)))


def _count(values: Mapping[str, Any]) -> int:
    count = values.get("num_labels", 2)
    return count if isinstance(count, int) and 0 < count < 1_000_000 else 2


def _architecture(model: ModelConfig, values: Mapping[str, Any], where: str) -> str:
    listed = values.get("architectures") or [""]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"{where}: 'architectures' is {listed!r}; expected a list of one name")
    name = listed[0]
    if name in model.published_refused:
        raise ConfigError(f"{where}: 'architectures' names {name}: {model.published_refused[name]}")
    if name and not name.startswith(model.published_prefix):
        raise ConfigError(
            f"{where}: 'architectures' names {name}, but 'model_type' is"
            f" {values.get('model_type')!r}; one of them is wrong"
        )
    return name


def _task_by_names(model: ModelConfig, names: Collection[str], where: str) -> Task | None:
    """Infers the task of a head from tensor names if the config names no class with a head."""
    first = {name.split(".")[0] for name in names}
    if "qa_outputs" in first:
        return "question_answering"
    _, output = model.published_heads.get("sequence_classification", ("", ""))
    if output != "classifier" and f"{output}.weight" in names:
        return "sequence_classification"
    if "classifier" in first:
        raise ConfigError(
            f"{where}: the checkpoint has a classifier, but 'architectures' does not name its"
            " class; add it, e.g. BertForSequenceClassification or BertForTokenClassification"
        )
    return None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Raises:
      ConfigError: the file is missing or does not contain a JSON object.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise ConfigError(f"{path}: {size:,} bytes are too many for a config; check the path")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the directory of an lmjax run or of"
            " a Hugging Face model"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    return values


def tokenizer_of(directory: pathlib.Path) -> Tokenizer | None:
    """Loads the tokenizer of a checkpoint directory, if there is one."""
    if not any((directory / name).exists() for name in _TOKENIZERS):
        return None
    values = directory / "tokenizer_config.json"
    lowercase = read_json(values).get("do_lower_case", True) if values.exists() else True
    return load_tokenizer(str(directory), bool(lowercase), where="tokenizer")


def abstract_params(network: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape of every parameter of `network` without computing values."""

    def init() -> Any:
        ids = jnp.zeros((1, 1), jnp.int32)
        inputs = network.config.inputs(ids, ids, jnp.ones((1, 1), bool))
        return network.init(jax.random.key(0), inputs, method="whole")["params"]

    return flax.traverse_util.flatten_dict(jax.eval_shape(init), sep="/")


def _read_params(
    network: Any,
    files: TensorFiles,
    directory: pathlib.Path,
    query_scale: Callable[[int], float],
) -> Any:
    """Reads the parameters of `network`, one tensor at a time."""
    wanted = abstract_params(network)
    params: dict[str, jax.Array] = {}
    used: set[str] = set()
    published, model = network.published(), network.config
    if published is None:
        raise ConfigError(
            f"{directory}: 'architectures' in config.json names a class that {model.family()} does"
            " not have"
        )

    def short(name: str) -> str:
        return name.removeprefix(model.published_base)

    for rule in track(list(published.rules), f"reading {directory}"):
        names = (rule.theirs, *rule.also, *rule.copies)
        both = dict.fromkeys(name for full in names for name in (full, short(full)))
        places = [name for name in both if name in files.shapes]
        used.update(places)
        if not places:
            raise ConfigError(f"{directory}: tensor '{rule.theirs}' is missing")
        shape = _their_shape(rule, lambda path: wanted[path].shape)
        if files.shapes[places[0]] != shape:
            raise ConfigError(
                f"{directory}: tensor '{places[0]}' has shape {list(files.shapes[places[0]])}, but"
                f" config.json implies {list(shape)}; they belong to different models"
            )
        array = files.read(places[0])
        for other in places[1:]:
            same = short(other) not in map(short, rule.copies)
            if same and not np.array_equal(files.read(other), array):
                raise ConfigError(
                    f"{directory}: '{other}' differs from '{places[0]}', but config.json ties them"
                    " ('tie_word_embeddings'); set that to false, or remove one of them"
                )
        for path, part in zip(rule.ours, rule.split(array), strict=True):
            if "/query/" in path:
                part = part * np.float32(query_scale(_layer(path)))
            params[path] = jnp.array(part)
    _check_unused(set(files.shapes) - used, model.published_unused, directory)
    assert params.keys() == wanted.keys(), params.keys() ^ wanted.keys()
    return flax.traverse_util.unflatten_dict(params, sep="/")


def _check_unused(names: set[str], known: str, directory: pathlib.Path) -> None:
    unknown = sorted(name for name in names if not re.fullmatch(known, name))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ConfigError(
            f"{directory}: unexpected tensor {', '.join(unknown[:3])}{more}; check"
            " 'architectures' in config.json"
        )
    if names:
        logging.getLogger(__name__).info("%s: not used: %s", directory, ", ".join(sorted(names)))


def _their_shape(rule: Rule, shape_of: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
    parts = [np.broadcast_to(np.float32(0), shape_of(path)) for path in rule.ours]
    return rule.join(parts).shape


def _leaf(flat: Mapping[str, Any], path: str) -> Any:
    """Returns a parameter by its path with unrolled layers, also from a scanned stack."""
    if path in flat:
        return flat[path]
    layer = _layer(path)
    return flat[path.replace(f"layer_{layer}", "layers")][layer]


def _layer(path: str) -> int:
    return int(re.findall(r"layer_(\d+)", path)[0])


def _maker(rule: Rule, flat: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    return lambda: rule.join([np.asarray(_leaf(flat, path), np.float32) for path in rule.ours])


def _head_values(network: Network) -> dict[str, Any]:
    if not isinstance(network, Headed):
        return {}
    head: Any = network.head
    values: dict[str, Any] = dict.fromkeys(network.config.published_dropouts, head.dropout)
    if network.task.endswith("classification"):
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(head.classes)}
        values["label2id"] = {f"LABEL_{i}": i for i in range(head.classes)}
    if network.task == "sequence_classification" and head.classes == 1:
        values["problem_type"] = "regression"  # otherwise pipelines apply a sigmoid
    return values


def _tokenizer_files(tokenizer: Tokenizer, network: Any, length: int, asks: bool) -> dict[str, str]:
    """Returns tokenizer.json and the tokenizer_config.json that AutoTokenizer needs."""
    model: ModelConfig = network.config
    vocabulary = tokenizer.vocabulary(np.zeros(tokenizer.size))
    written = json.loads(tokenizer.to_json(model.vocab_size))
    if asks:
        written["post_processor"] = _template(
            tokenizer, model, functools.partial(model.ask, vocabulary)
        )
    elif not network.continues_texts:
        template = _template(tokenizer, model, functools.partial(model.join, vocabulary))
        written["post_processor"] = template or written["post_processor"]
    names = ["input_ids", "attention_mask"]
    if model.published_token_types:
        names.insert(1, "token_type_ids")
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": names,
        "padding_side": "left" if model.left_padded or asks else "right",
        "pad_token_type_id": 0,
        # Tasks read '[MASK]' as plain text; in prompts of a language model it is the token.
        "split_special_tokens": isinstance(network, Headed) or asks,
    }
    for role, index in tokenizer.roles.items():
        if index < model.vocab_size:
            values[f"{'eos' if role == 'eod' else role}_token"] = tokenizer.token(index)
    if longest := length or getattr(model, "max_length", 0):
        values["model_max_length"] = longest
    return {
        "tokenizer.json": json.dumps(written, ensure_ascii=False),
        "tokenizer_config.json": _json(values),
    }


def _template(
    tokenizer: Tokenizer, model: ModelConfig, join: Callable[..., Joined]
) -> dict[str, Any] | None:
    """Converts `join`, for one text and for two, to a post-processor of tokenizer.json.

    Returns None if a special token has no row in the token table.
    """
    special: dict[str, int] = {}

    def items(*texts: str) -> list[dict[str, Any]]:
        joined = join(*(np.array([-1 - place]) for place in range(len(texts))))
        made = []
        for index, kind in zip(joined.tokens.tolist(), joined.token_types.tolist(), strict=True):
            if index < 0:
                made.append({"Sequence": {"id": texts[-1 - index], "type_id": kind}})
            else:
                name = tokenizer.token(index)
                special[name] = index
                made.append({"SpecialToken": {"id": name, "type_id": kind}})
        return made

    template: dict[str, Any] = {"type": "TemplateProcessing"}
    template |= {"single": items("A"), "pair": items("A", "B")}
    if max(special.values()) >= model.vocab_size:
        return None
    names = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in special.items()}
    return {**template, "special_tokens": names}


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
