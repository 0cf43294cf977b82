"""A model's folder, local or of the Hugging Face hub: shape, weights, tokenizer, pooling, limits.

Of a folder only JSON, safetensors and the vocabulary are read, and nothing is executed.
"""

import hashlib
import math
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import ml_dtypes  # noqa: F401  Importing it teaches NumPy the dtype bfloat16.
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from jina_jax.config import Activation, ModelConfig, Pooling, PoolingConfig, PromptConfig
from jina_jax.errors import UserError
from jina_jax.model.encoder import (
    DENSE,
    config_from_huggingface,
    family_of,
    from_huggingface,
)
from jina_jax.system.files import in_package
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import inner_path, parse_json, read_json, refuse_code
from jina_jax.text.tokenizer import (
    SPIECE_FILE,
    TOKENIZER_EXTRAS,
    TOKENIZER_FILE,
    check_ids,
    load_tokenizer,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MODULES_FILE = "modules.json"
LIMITS_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
POOLING_FILE = f"1_Pooling/{CONFIG_FILE}"
LONGEST_TOKENS = 512
"""Of a text, where a folder doesn't say."""
# Nothing that could run code on loading is ever fetched or opened.
_FETCHED = (
    CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors", SPIECE_FILE, TOKENIZER_FILE,
    *TOKENIZER_EXTRAS, MODULES_FILE, LIMITS_FILE, PROMPTS_FILE,
    f"*/{CONFIG_FILE}", f"*_Dense/{WEIGHTS_FILE}",
)  # fmt: skip
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_FLOATS = ("F32", "F16", "BF16", "F64")
_MAX_HEADER_BYTES = 16 << 20
"""A model of 10,000 tensors has a header of 1 MB."""
_LONGEST_STORED = 65535
_BEHIND_POOLING: tuple[list[str], ...] = ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])
_EMBEDDING = "sentence_embedding"
_MOST_OUTPUTS = 1 << 16
_LONGEST_PROMPT = 10_000


def read_encoder(path_or_id: str | Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Reads `config.json` and the safetensors of an encoder of any family.

    Args:
      path_or_id: a local folder, or an id of the Hugging Face hub such as `intfloat/e5-base-v2`.
    Returns: the shape, and name → float32 array; float16 and bfloat16 are widened.
    Raises: UserError when the folder or id cannot be found or fetched, holds no safetensors, is
      damaged, or is of no family that is known here.
    """
    folder = find_folder(path_or_id)
    config = config_from_huggingface(read_config(folder))
    return config, read_weights(folder, config)


def read_weights(folder: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of an encoder whose shape is known; as `read_encoder`."""
    # Old files store a range of positions as if it were a weight.
    return read_tensors(
        folder, ignored=("position_ids",), ignored_prefixes=family_of(config).ignored
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json` of a model folder.

    Raises: UserError when it is missing or damaged, or the model brings code of its own.
    """
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds no {CONFIG_FILE}: it is not a model folder")
    config = read_json(inner_path(folder, CONFIG_FILE))
    refuse_code(folder / CONFIG_FILE, config)
    return config


def read_tensors(
    folder: Path, *, ignored: tuple[str, ...] = (), ignored_prefixes: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Reads the safetensors of a model folder.

    Args:
      folder: from `find_folder`.
      ignored: endings of names that are left out, whatever their type.
      ignored_prefixes: beginnings of such names.
    Returns: name → float32 array; other floats are converted.
    Raises: UserError when there are none, they are damaged, no floats or not finite, or they are
      more than this machine's memory holds.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        found = _read_file(path, ignored, ignored_prefixes)
        if twice := sorted(tensors.keys() & found.keys()):
            raise UserError(f"{path}: {twice[0]} is in another file of {folder} too")
        tensors |= found
    return tensors


def find_folder(path_or_id: str | Path) -> Path:
    """The local folder of a model, fetched from the Hugging Face hub when it is an id.

    Args:
      path_or_id: a local folder, an id such as `intfloat/e5-base-v2`, or PACKAGE:FOLDER of an
        installed Python package.
    Raises: UserError when it is neither, or cannot be fetched.
    """
    path_or_id = str(path_or_id)
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if (found := in_package(path_or_id)) is not None and found.is_dir():
        return found
    if named := re.fullmatch(r"([A-Za-z_]\w+):[\w/.-]+", path_or_id):
        raise UserError(
            f"no installed package has {path_or_id!r}: pip install {named[1].replace('_', '-')}, "
            f"or name another model"
        )
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


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights of any kind; only safetensors can be read."""
    return any(any(folder.glob(kind)) for kind in (WEIGHTS_FILE, INDEX_FILE, *_PICKLES))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises: UserError when there are none, or the index is wrong.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [inner_path(folder, WEIGHTS_FILE)]
    if not (folder / INDEX_FILE).is_file():
        for name in sorted(path.name for kind in _PICKLES for path in folder.glob(kind)):
            raise UserError(
                f"{folder} holds {name}, which can run code when it is opened, and no "
                f"{WEIGHTS_FILE}; convert it where you trust it: "
                "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) of its transformers class"
            )
        raise UserError(f"{folder} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    weight_map = read_json(inner_path(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX_FILE} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{folder / INDEX_FILE} names {name!r:.200}; expected .safetensors files in its "
                f"folder"
            )
        if not inner_path(folder, name).is_file():
            raise UserError(f"{folder} lacks {name}, which {INDEX_FILE} names")
    return [inner_path(folder, name) for name in names]


def _read_file(
    path: Path, ignored: tuple[str, ...], ignored_prefixes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    _check_header(path)
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            names = [
                name
                for name in file.keys()  # noqa: SIM118  The file is no mapping.
                if not name.endswith(ignored) and not name.startswith(ignored_prefixes)
            ]
            _check_types({name: file.get_slice(name) for name in names}, path)
            with np.errstate(over="ignore"):  # What float32 cannot hold is found below.
                for name in names:
                    tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{path}: {name} holds NaN or infinite numbers; the training that wrote it had "
                f"failed: use an earlier checkpoint of it"
            )
    return tensors


def _check_header(path: Path) -> None:
    """What the library lets pass: a name that stands there twice, and a header of any size."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            (size_bytes,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= size_bytes <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {size_bytes:,} bytes")
            parse_json(file.read(size_bytes))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error


def _check_types(slices: dict[str, Any], path: Path) -> None:
    """Before anything is read: all are floats, and they fit the memory as float32."""
    numbers = 0
    for name, part in slices.items():
        if part.get_dtype() not in _FLOATS:
            raise UserError(f"{path}: {name} is {part.get_dtype()}, expected a float type")
        numbers += math.prod(part.get_shape())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if numbers * 4 > memory_bytes:
        raise UserError(
            f"{path} holds {numbers:,} numbers, {numbers * 4 / 2**30:,.0f} GiB as float32; this "
            f"machine has {memory_bytes / 2**30:,.0f} GiB of memory"
        )


class SentenceModel(NamedTuple):
    """What a folder says of its embeddings."""

    config: ModelConfig
    pooling: PoolingConfig
    prompts: PromptConfig
    max_tokens: int
    """Of the longest text."""
    dense_folder: str = ""
    """Below the model's folder; of the Dense layer, where there is one."""


def read_sentence_config(folder: Path) -> SentenceModel:
    """How a folder's model turns a text into an embedding; its weights are not read.

    Args:
      folder: of a transformers or sentence-transformers model.
    Raises: UserError for modules or poolings that are not known here, for code of the model's own,
      a damaged file, or a limit beyond the model's positions.
    """
    config = config_from_huggingface(read_config(folder))
    modules = module_folders(folder)
    pooling = PoolingConfig(normalize="Normalize" in modules or not modules)
    if "Pooling" in modules:
        mode, include_prompt = read_pooling(
            inner_path(folder, f"{modules['Pooling']}/{CONFIG_FILE}")
        )
        pooling = replace(pooling, mode=mode, include_prompt=include_prompt)
    if dense := modules.get("Dense", ""):
        pooling = _with_dense(pooling, folder, dense, config.dimensions)
    longest = _max_tokens(folder, config.max_positions)
    return SentenceModel(config, pooling, _prompts(folder), longest, dense)


def read_params(folder: Path, model: SentenceModel) -> nnx.State:
    """The parameters of a folder's model.

    Args:
      folder: from `find_folder`.
      model: what `read_sentence_config` gives of it.
    Returns: float32 parameters in host memory, as `model.encoder.init_params` describes them.
    Raises: UserError when they are missing, damaged or of another shape.
    """
    tensors = read_weights(folder, model.config)
    if model.dense_folder:
        behind = read_tensors(inner_path(folder, model.dense_folder))
        tensors |= {f"{DENSE}.{name.removeprefix('linear.')}": x for name, x in behind.items()}
    return from_huggingface(tensors, model.config, model.pooling)


def module_folders(folder: Path) -> dict[str, str]:
    """Class of each module → its folder below; none where the folder is of transformers alone.

    Raises: UserError for modules that are not known here, or in another order.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return {"Pooling": "1_Pooling"} if (folder / POOLING_FILE).is_file() else {}
    found = []
    for module in read_json(inner_path(folder, MODULES_FILE), kind=list):
        kind = str(module.get("type")) if isinstance(module, dict) else repr(module)
        if kind.partition(".")[0] != "sentence_transformers":
            raise UserError(
                f"{path} has a module {kind[:200]!r}, which would be code of the model's own; it "
                f"is never run here"
            )
        found.append((kind.rpartition(".")[2], str(module.get("path", ""))))
    kinds = [kind for kind, _ in found]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in _BEHIND_POOLING:
        raise UserError(
            f"{path} has the modules {', '.join(kinds)[:200] or 'of none'}; the encoder here is a "
            f"Transformer with Pooling, and then Dense or Normalize or both in this order"
        )
    if found[0][1] not in ("", "."):
        raise UserError(
            f"{path}: its Transformer lies in {found[0][1]!r:.200}; move the files of that folder "
            f"up beside {MODULES_FILE} and set its path to ''"
        )
    return dict(found)


def _with_dense(pooling: PoolingConfig, folder: Path, dense: str, dimensions: int) -> PoolingConfig:
    """A pooling with the Dense layer that a module's `config.json` describes."""
    path = inner_path(folder, f"{dense}/{CONFIG_FILE}")
    values = read_json(path)
    refuse_code(path, values)
    activation = str(values.get("activation_function", "torch.nn.modules.activation.Tanh"))
    known: dict[str, Activation] = {name: name for name in get_args(Activation)}
    name = activation.rpartition(".")[2].lower()
    if not activation.startswith("torch.nn.") or name not in known:
        raise UserError(
            f"{path}: activation_function={activation!r:.200} is not known here; there are "
            f"{', '.join(get_args(Activation))} of torch.nn"
        )
    inputs, outputs, bias = (values.get(n) for n in ("in_features", "out_features", "bias"))
    if inputs != dimensions or type(outputs) is not int or not 0 < outputs <= _MOST_OUTPUTS:
        raise UserError(
            f"{path}: in_features={inputs!r:.50} and out_features={outputs!r:.50}; expected the "
            f"model's {dimensions} dimensions, and 1..{_MOST_OUTPUTS}"
        )
    odd = {"use_residual": False, "module_input_name": _EMBEDDING, "module_output_name": _EMBEDDING}
    for option, usual in odd.items():
        if values.get(option) not in (None, usual):
            raise UserError(f"{path}: {option}={values[option]!r:.200} is not supported")
    return replace(
        pooling,
        dense_dimensions=outputs,
        dense_bias=bias is not False,
        dense_activation=known[name],
    )


def _prompts(folder: Path) -> PromptConfig:
    """Those that sentence-transformers would take; none where it has no file for them."""
    path = folder / PROMPTS_FILE
    if not path.is_file():
        return PromptConfig()
    values = read_json(inner_path(folder, PROMPTS_FILE))
    refuse_code(path, values)
    named, default = values.get("prompts") or {}, values.get("default_prompt_name") or ""
    is_texts = isinstance(named, dict) and all(isinstance(p, str | None) for p in named.values())
    if not is_texts or any(len(p or "") > _LONGEST_PROMPT for p in named.values()):
        raise UserError(f"{path}: prompts must be an object of names and texts")
    # sentence-transformers 5 writes empty ones for query and document where there are none.
    prompts = PromptConfig(tuple((n, p) for n, p in named.items() if p), str(default))
    if default and default not in named:
        raise UserError(f"{path}: default_prompt_name={default!r:.200} is none of its prompts")
    return prompts if default in dict(prompts.named) else replace(prompts, default="")


def read_pooling(path: Path) -> tuple[Pooling, bool]:
    """How the hidden states of a text become one vector.

    Args:
      path: the `config.json` of a Pooling module.
    Raises: UserError for one that isn't known here.
    """
    config = read_json(path)
    refuse_code(path, config)
    # sentence-transformers 6 writes the mode as a word, earlier ones as flags.
    modes = {k.removeprefix("pooling_mode_") for k, v in config.items() if v is True}
    modes = {mode for mode in modes if mode.endswith("_tokens") or mode.endswith("token")}
    if "pooling_mode" in config:
        modes.add(str(config["pooling_mode"])[:200])
    modes = {mode.removesuffix("_tokens").removesuffix("_token") for mode in modes}
    if len(modes) != 1 or not modes <= set(get_args(Pooling)):
        raise UserError(
            f"{path} pools by {' and '.join(sorted(modes)) or 'nothing'}; the poolings here are "
            f"{', '.join(get_args(Pooling))}, one at a time"
        )
    mode: Pooling = modes.pop()
    return mode, config.get("include_prompt") is not False


def _max_tokens(folder: Path, positions: int | None) -> int:
    """Where old and newer versions of sentence-transformers say it."""
    longest = positions or _LONGEST_STORED
    for file, name in {
        LIMITS_FILE: "max_seq_length",
        "tokenizer_config.json": "model_max_length",
    }.items():
        if not (folder / file).is_file():
            continue
        values = read_json(inner_path(folder, file))
        refuse_code(folder / file, values)
        value = values.get(name)
        is_limit = file == LIMITS_FILE and value is not None and positions is not None
        if is_limit and (type(value) is not int or not 2 < value <= longest):
            raise UserError(
                f"{folder / file}: {name}={value!r:.200}, expected a number in 3..{longest}, the "
                f"positions that the model has"
            )
        # transformers writes 1e30 where there is no bound.
        if type(value) is int and 1 < value <= _LONGEST_STORED:
            return min(value, longest)
    return min(LONGEST_TOKENS, longest)


def read_folder_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a model's folder; it neither cuts nor pads.

    Raises: UserError when it is missing, or has ids that the model has no embedding for.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        raise UserError(f"{folder} holds no {TOKENIZER_FILE}: save its fast tokenizer there")
    tokenizer = load_tokenizer(folder)
    check_ids(tokenizer, config.vocab_size, folder)
    return tokenizer


def model_sha256(path_or_id: str | Path) -> str:
    """Of everything in a model's folder that its results depend on; no device is touched.

    Raises: UserError when it cannot be found.
    """
    folder = find_folder(path_or_id)
    digest = hashlib.sha256()
    names = [CONFIG_FILE, TOKENIZER_FILE]
    names += [name for name in (LIMITS_FILE, POOLING_FILE) if (folder / name).is_file()]
    names += [PROMPTS_FILE] if _prompts(folder).named else []
    # Found by its name: a cross-encoder, which is hashed here too, has other modules.
    behind = (p for kind in (CONFIG_FILE, "*.safetensors") for p in folder.glob(f"*_Dense/{kind}"))
    names += sorted(path.relative_to(folder).as_posix() for path in behind)
    for path in (*(inner_path(folder, name) for name in names), *weight_files(folder)):
        if not path.is_file():
            raise UserError(f"{folder} holds no {path.name}: it is no folder of a model")
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()
