"""Reading and writing of safetensors files, one tensor at a time."""

import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable

import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np
import safetensors

from lmjax.errors import ConfigError
from lmjax.progress import track

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)


class TensorFiles:
    """The tensors of a checkpoint directory, in one file or in shards.

    Attributes:
      shapes: name -> shape, of every tensor.
    """

    def __init__(self, directory: pathlib.Path):
        """Reads the headers of the files in `directory`.

        Raises:
          ConfigError: there are no safetensors, a file is truncated or damaged, or an index does
            not match its files or points outside of the directory.
        """
        self._path: dict[str, pathlib.Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = directory / INDEX
        listed = _read_index(index) if index.exists() else None
        names = sorted(set(listed.values())) if listed else [SINGLE]
        for name in names:
            path = directory / name
            if not path.is_file():
                raise ConfigError(_no_weights(directory, name, listed is not None))
            try:
                with safetensors.safe_open(path, framework="numpy") as file:
                    for tensor in file.keys():  # noqa: SIM118  not a dict
                        self._path[tensor] = path
                        self.shapes[tensor] = tuple(file.get_slice(tensor).get_shape())
            except (safetensors.SafetensorError, OSError) as error:
                raise ConfigError(
                    f"{path}: not a complete safetensors file ({error}); copy it again"
                ) from error
        for tensor, name in (listed or {}).items():
            if self._path.get(tensor) != directory / name:
                raise ConfigError(f"{index}: tensor '{tensor}' is not in {name}; copy both again")

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as float32.

        Raises:
          ConfigError: the tensor is not floating-point, or contains NaN or infinity.
        """
        where = self._path[name]
        # Reopened for each tensor: mapped pages count as memory until the file is closed.
        with safetensors.safe_open(where, framework="numpy") as file:
            kind = file.get_slice(name).get_dtype()
            if kind not in ("F64", "F32", "F16", "BF16"):
                raise ConfigError(
                    f"{where}: tensor '{name}' has type {kind}; expected F64, F32, F16 or BF16"
                )
            array = file.get_tensor(name).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ConfigError(
                f"{where}: tensor '{name}' has {int((~np.isfinite(array)).sum())} values that are"
                " not finite; the checkpoint is damaged or comes from a run that diverged"
            )
        return array


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Reads tensor name -> file name; the files must be in the directory of the index."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = dict(listed.items())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(f"{path}: not an index of safetensors files ({error!r})") from error
    for tensor, name in pairs.items():
        plain = isinstance(name, str) and name == os.path.basename(name) and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{path}: tensor '{tensor}' points to {name!r}; only .safetensors files in the"
                " same directory are allowed"
            )
    if not pairs:
        raise ConfigError(f"{path}: lists no tensors")
    return pairs


def _no_weights(directory: pathlib.Path, name: str, indexed: bool) -> str:
    if indexed:
        return f"{directory}: the index lists '{name}', which is missing; copy it too"
    pickles = [pickle for pickle in _PICKLES if (directory / pickle).exists()]
    if not pickles:
        return f"{directory}: has no {SINGLE}; give a Hugging Face directory or a run of lmjax"
    return (
        f"{directory}: {pickles[0]} is not supported, only safetensors: opening a pickle can"
        " execute arbitrary code. If you trust it, convert it once with"
        " transformers.AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
    )


Written = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]


def write_tensors(path: pathlib.Path, tensors: Iterable[Written]) -> None:
    """Writes a safetensors file atomically, with one tensor in memory at a time.

    The library's own writer keeps all tensors and a copy of them in memory. The format is 8 bytes
    of header length, a JSON header, and the concatenated raw arrays.

    Args:
      path: the target file.
      tensors: name, shape, and a function that creates the float32 array and is called once.
    """
    listed = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, _ in listed:
        begin, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape, make in track(listed, f"writing {path}"):
                array = np.ascontiguousarray(make(), dtype="<f4")
                assert array.shape == shape, (name, array.shape, shape)
                file.write(array.data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
