"""Reads weights and shapes from a Hugging Face folder or id."""

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  Importing it teaches NumPy the dtype bfloat16.
import numpy as np
from safetensors import SafetensorError, safe_open

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.model.weights import config_from_huggingface

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Nothing that could run code on loading is ever fetched or opened.
_FETCHED = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_encoder(path_or_id: str | Path) -> tuple[T5Config, dict[str, np.ndarray]]:
    """Reads `config.json` and the safetensors of a T5 encoder.

    Args:
      path_or_id: a local folder, or an id of the Hugging Face hub such as `google-t5/t5-small`.
    Returns: the shape, and name → float32 array; float16 and bfloat16 are widened.
    Raises: UserError when the folder or id cannot be found or fetched, holds no safetensors, is
      damaged, or is not a T5.
    """
    folder = find_folder(path_or_id)
    return config_from_huggingface(read_json(folder / CONFIG_FILE)), read_tensors(folder)


def read_tensors(folder: Path, ignored: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads all safetensors of a model folder.

    Args:
      folder: from `find_folder`.
      ignored: endings of names that are left out, whatever their type.
    Returns: name → float32 array; other floats are converted.
    Raises: UserError when there are none, or they are damaged or not floats.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        tensors |= _read_file(path, ignored)
    return tensors


def find_folder(path_or_id: str | Path, fetched: tuple[str, ...] = _FETCHED) -> Path:
    """The local folder of a model, fetched from the Hugging Face hub when it is an id.

    Args:
      path_or_id: a local folder, or an id such as `google-t5/t5-small`.
      fetched: names or globs of the files to fetch; never one that could run code.
    Raises: UserError when it is neither, or cannot be fetched.
    """
    path_or_id = str(path_or_id)
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path_or_id) is None or path.exists():
        raise UserError(
            f"{path_or_id!r} is not a folder; give a folder with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, or a Hugging Face id such as google-t5/t5-small"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path_or_id, allow_patterns=list(fetched)))
    except Exception as error:  # Offline, unknown id, no permission: each has its own class.
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path_or_id!r} is not a local folder and could not be fetched from Hugging Face "
            f"({type(error).__name__}: {reason}); check the id and the connection, or fetch it "
            "elsewhere and give its folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a model folder.

    Raises: UserError when the file is missing, damaged or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}: it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises: UserError when there are none, or the index is wrong.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        for name in _PICKLES:
            if (folder / name).is_file():
                raise UserError(
                    f"{folder} holds {name}, which can run code when it is opened, and no "
                    f"{WEIGHTS_FILE}; convert it where you trust it: "
                    "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) of its transformers class"
                )
        raise UserError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    index = read_json(folder / INDEX_FILE)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX_FILE} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{folder / INDEX_FILE} names {name!r}; expected .safetensors files in its folder"
            )
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which {INDEX_FILE} names")
    return [folder / name for name in names]


def _read_file(path: Path, ignored: tuple[str, ...]) -> dict[str, np.ndarray]:
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  The file is no mapping.
                if not name.endswith(ignored):
                    tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, array in tensors.items():
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise UserError(f"{path}: {name} is {array.dtype.name}, expected a float type")
        tensors[name] = array.astype(np.float32, copy=False)
    return tensors
