"""Writes the adapters of a run as PEFT and sentence-transformers load them, without either."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jina_jax.checkpoint.checkpoints import Trained, is_run
from jina_jax.config import LoraConfig, ModelConfig, RunConfig
from jina_jax.errors import UserError
from jina_jax.export.onnx import ONNX_FOLDER
from jina_jax.inference.model_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    find_folder,
    read_params,
    read_sentence_config,
)
from jina_jax.model.encoder import family_of, param_name
from jina_jax.model.lora import factors, joined, merged, split_trained
from jina_jax.system.atomic import sync

ADAPTER_FOLDER = "adapter"
"""Within an exported folder."""
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
_LEFT_OUT = (CONFIG_FILE, WEIGHTS_FILE, "README.md", ONNX_FOLDER)
"""What is the merged model's alone."""
_LARGEST_DIFFERENCE = 1e-6
_PREFIX = "base_model.model."
"""PEFT's, of the names of tensors."""


def peft_adapter(
    params: nnx.State, trained: nnx.State, config: ModelConfig, lora: LoraConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The adapters under the names of PEFT.

    Where a tensor of Hugging Face is several matrices of ours, such as `Wqkv` of ModernBERT, its
    adapter is theirs side by side: A of all, one below the other, and B with zeros where one
    matrix has no part in another's A. Its rank is the sum of theirs.

    Args:
      params: of the encoder, merged; their shapes count alone.
      trained: of `split_trained`.
      config: shape of the encoder.
      lora: that the adapters were made with.
    Returns: name → float32 array, A [rank, in] and B [out, rank] of each; and fields of
      `adapter_config.json`.
    """
    of_matrix = factors(trained)
    sizes = {
        param_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    tensors, ranks = {}, {}
    for theirs, ours in family_of(config).layout(config).items():
        parts = ours.split("+")
        adapted = [part for part in parts if part in of_matrix]
        if not adapted:
            continue
        module = theirs.removesuffix(".weight")
        b_OA = np.zeros((sum(sizes[part][-1] for part in parts), lora.rank * len(adapted)))
        row = column = 0
        for part in parts:
            if part in of_matrix:
                b_AO = of_matrix[part][1]
                b_OA[row : row + b_AO.shape[1], column : column + lora.rank] = b_AO.T
                column += lora.rank
            row += sizes[part][-1]
        a_AI = np.concatenate([of_matrix[part][0].T for part in adapted])
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a_AI)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b_OA.astype(np.float32)
        ranks[module] = lora.rank * len(adapted)
    return tensors, _peft_fields(ranks, lora)


def _peft_fields(ranks: Mapping[str, int], lora: LoraConfig) -> dict[str, Any]:
    """Fields of `adapter_config.json`; `ranks` are of each module that has an adapter."""
    wide = {module.rpartition(".")[2]: r for module, r in ranks.items() if r != lora.rank}
    root = math.sqrt if lora.rank_stabilised else float
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilised,
        # Whole names: `output.dense` alone would be of the attention and the feed-forward.
        "target_modules": sorted(ranks),
        "rank_pattern": wide,
        # The scale of each stays what it was.
        "alpha_pattern": {name: lora.alpha * root(r / lora.rank) for name, r in wide.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def check_base(config: RunConfig) -> str:
    """What the adapter of a run is to be loaded on: an id of the hub, or the path of a folder.

    Raises: UserError where others could not load it.
    """
    start = config.train.initial_weights
    if is_run(Path(start).expanduser()):
        raise UserError(
            f"export.adapter: the run started from {start}, which is a run and no model that "
            f"others load: export that one and start from its export, or leave export.adapter out"
        )
    folder = find_folder(start)
    is_of_hub = not Path(start).expanduser().is_dir() and ":" not in start
    if config.export.push_to and not is_of_hub:
        raise UserError(
            f"export.adapter and export.push_to={config.export.push_to}: the adapter's base is "
            f"{folder}, a folder that nobody else has; start from an id of the hub, or upload the "
            f"merged model alone"
        )
    return start if is_of_hub else str(folder.absolute())


def write_adapter(export: Path, *, trained: Trained, base: str) -> None:
    """Writes the adapter into a folder of its own within an exported folder, with all that
    sentence-transformers needs beside it but the base's weights.

    Args:
      export: the exported folder, of the merged model.
      trained: the run's model, and its adapters.
      base: of `check_base`.
    Raises: UserError when the base is not what the run started from any more.
    """
    _check_same_base(trained, base)
    folder = export / ADAPTER_FOLDER
    shutil.copytree(export, folder, ignore=lambda at, names: _LEFT_OUT if at == str(export) else ())
    tensors, fields = peft_adapter(trained.params, trained.adapters, trained.config, trained.lora)
    fields["base_model_name_or_path"] = base
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG_FILE).write_text(text, encoding="utf-8")
    path = folder / ADAPTER_FILE
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod((folder / ADAPTER_CONFIG_FILE).stat().st_mode)
    sync(path)


def _check_same_base(trained: Trained, base: str) -> None:
    """Base and adapter together must be the run's model."""
    folder = find_folder(base)
    _, frozen = split_trained(read_params(folder, read_sentence_config(folder)), trained.lora)
    found = merged(joined(trained.adapters, frozen), trained.lora)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(trained.params), jax.tree.leaves(found), strict=True
    ):
        if not np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= _LARGEST_DIFFERENCE:
            raise UserError(
                f"export.adapter: {param_name(path)} of {base} is not what the run started from: "
                f"restore that model there, or leave export.adapter out"
            )
