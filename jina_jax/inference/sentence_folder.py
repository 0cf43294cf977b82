"""What a sentence-transformers folder says around its encoder: modules, pooling, longest text."""

from pathlib import Path
from typing import Any

from jina_jax.errors import UserError
from jina_jax.inference.hf_folder import CONFIG_FILE
from jina_jax.system.untrusted import inner_path, read_json, refuse_code

MODULES_FILE = "modules.json"
LIMITS_FILE = "sentence_bert_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
POOLING_FOLDER = "1_Pooling"
LONGEST_TOKENS = 512
"""Where a folder doesn't say."""
_LONGEST_STORED = 65535
_CHAINS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


def check_sentence_folder(folder: Path) -> int:
    """Refuses a folder whose embeddings are something else than the mean over the tokens.

    Args:
      folder: of a transformers or sentence-transformers model.
    Returns: the longest text in tokens.
    Raises: UserError for other modules or poolings, for code of the model's own, or a damaged file.
    """
    if (folder / MODULES_FILE).is_file():
        modules = read_json(inner_path(folder, MODULES_FILE), kind=list)
        pooling = _pooling_folder(folder / MODULES_FILE, modules)
        check_pooling(inner_path(folder, f"{pooling}/{CONFIG_FILE}"))
    return _max_tokens(folder)


def _pooling_folder(path: Path, modules: list[Any]) -> str:
    """The folder of the second module; the first lies in the root."""
    kinds = []
    for module in modules:
        kind = str(module.get("type")) if isinstance(module, dict) else repr(module)
        if kind.partition(".")[0] != "sentence_transformers":
            raise UserError(
                f"{path} has a module {kind[:200]!r}, which would be code of the model's own; it "
                f"is never run here"
            )
        kinds.append(kind.rpartition(".")[2])
    if kinds not in _CHAINS:
        raise UserError(
            f"{path} has the modules {', '.join(kinds)[:200] or 'of none'}; the encoder here is a "
            f"Transformer with mean Pooling and Normalize, and nothing behind them"
        )
    first, pooling = (str(module.get("path", "")) for module in modules[:2])
    if first not in ("", "."):
        raise UserError(
            f"{path}: its Transformer lies in {first!r:.200}; move the files of that folder up "
            f"beside {MODULES_FILE} and set its path to ''"
        )
    return pooling


def check_pooling(path: Path) -> None:
    """Refuses another pooling than the mean.

    Args:
      path: the `config.json` of a Pooling module.
    Raises: UserError.
    """
    config = read_json(path)
    refuse_code(path, config)
    # sentence-transformers 6 writes the mode as a word, earlier ones as flags.
    modes = {k.removeprefix("pooling_mode_") for k, v in config.items() if v is True}
    modes = {mode for mode in modes if mode.endswith("_tokens") or mode.endswith("_token")}
    if "pooling_mode" in config:
        modes.add(f"{str(config['pooling_mode']).removesuffix('_tokens')}_tokens"[:200])
    if modes != {"mean_tokens"}:
        raise UserError(
            f"{path} pools by {' and '.join(sorted(modes)) or 'nothing'}; the encoder here pools "
            f"by the mean over the tokens"
        )


def _max_tokens(folder: Path) -> int:
    """Where old and newer versions of sentence-transformers say it."""
    for file, name in {
        LIMITS_FILE: "max_seq_length",
        TOKENIZER_CONFIG_FILE: "model_max_length",
    }.items():
        if not (folder / file).is_file():
            continue
        values = read_json(inner_path(folder, file))
        refuse_code(folder / file, values)
        # transformers writes 1e30 where there is no bound.
        if type(values.get(name)) is int and 1 < values[name] <= _LONGEST_STORED:
            return int(values[name])
    return LONGEST_TOKENS
