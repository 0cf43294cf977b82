"""Reads the weights and the shape of a T5 encoder from a Hugging Face folder or id."""

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
    folder = _folder(str(path_or_id))
    config_json = _read_json(folder / CONFIG_FILE)
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(folder):
        tensors |= _read_tensors(path)
    return config_from_huggingface(config_json), tensors


def _folder(path_or_id: str) -> Path:
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
        return Path(snapshot_download(path_or_id, allow_patterns=list(_FETCHED)))
    except Exception as error:  # Offline, unknown id, no permission: each has its own class.
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path_or_id!r} is not a local folder and could not be fetched from Hugging Face "
            f"({type(error).__name__}: {reason}); check the id and the connection, or fetch it "
            "elsewhere and give its folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}: it is not a model folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        for name in _PICKLES:
            if (folder / name).is_file():
                raise UserError(
                    f"{folder} holds {name}, which can run code when it is opened, and no "
                    f"{WEIGHTS_FILE}; convert it where you trust it: "
                    f"T5EncoderModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
                )
        raise UserError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    index = _read_json(folder / INDEX_FILE)
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


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118  The file is no mapping.
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, array in tensors.items():
        if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
            raise UserError(f"{path}: {name} is {array.dtype.name}, expected a float type")
        tensors[name] = array.astype(np.float32, copy=False)
    return tensors
