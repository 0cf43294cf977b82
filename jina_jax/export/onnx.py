"""The exported folder as an ONNX graph, for runtimes without Python."""

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from jina_jax.config import Activation, ModelConfig, PoolingConfig, T5Config
from jina_jax.errors import UserError
from jina_jax.model.encoder import DENSE, embed

ONNX_FOLDER, ONNX_FILE = "onnx", "model.onnx"
ONNX_DATA = f"{ONNX_FILE}.data"
"""Weights beside the graph, where both together pass the 2 GiB of a protobuf message."""
ACTIVATIONS: dict[Activation, str] = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
"""Of a Dense layer, as sentence-transformers writes them."""
_LARGEST_DIFFERENCE = 1e-5
_PROTOBUF_BYTES = 2**31 - 2**26


def write_onnx(
    folder: Path, params: nnx.State, config: ModelConfig, pooling: PoolingConfig
) -> None:
    """Adds `onnx/model.onnx` to an exported folder.

    Inputs are input_ids and attention_mask, int64 [batch, tokens]; outputs last_hidden_state,
    float32 [batch, tokens, D], and sentence_embedding, float32 [batch, E]. Batch and tokens are
    free.

    Args:
      folder: as written by `export_huggingface`.
      params: what was exported.
      config: shape of the encoder.
      pooling: from hidden states to an embedding.
    Raises: UserError when a package that this takes is missing, or the graph could not know which
      tokens are pooled.
    """
    if not pooling.include_prompt:
        raise UserError(
            "export.onnx: the graph sees no prompts, and pooling.include_prompt=False leaves their "
            "tokens out of the mean; export without it"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import torch
        from transformers import AutoModel, T5EncoderModel
    except ImportError as error:
        raise UserError(f'export.onnx needs {error.name}: pip install "jina-jax[onnx]"') from error

    class _Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = T5EncoderModel if isinstance(config, T5Config) else AutoModel
            self.encoder = kind.from_pretrained(
                folder, local_files_only=True, attn_implementation="eager"
            ).eval()

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask
            ).last_hidden_state
            mask = attention_mask[..., None].to(hidden.dtype)
            if pooling.mode == "mean":
                pooled = (hidden * mask).sum(1) / mask.sum(1)
            elif pooling.mode == "cls":
                pooled = hidden[:, 0]
            else:
                last = (attention_mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
                pooled = hidden.gather(1, last)[:, 0]
            z = activation(pooled if dense is None else torch.nn.functional.linear(pooled, *dense))
            return hidden, torch.nn.functional.normalize(z, dim=-1) if pooling.normalize else z

    dense, activation = None, torch.nn.Identity()
    if pooling.dense_dimensions:
        layer = params[DENSE]
        dense = [torch.tensor(np.asarray(layer["kernel"][...]).T)]
        dense += [torch.tensor(np.asarray(layer["bias"][...]))] if pooling.dense_bias else []
        activation = getattr(torch.nn, ACTIVATIONS[pooling.dense_activation].rpartition(".")[2])()

    path = folder / ONNX_FOLDER / ONNX_FILE
    path.parent.mkdir()
    module = _Encoder()
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    ids = torch.randint(3, config.vocab_size, (2, 7))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    # The exporter logs its own steps.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (ids, torch.ones_like(ids)), path,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state", "sentence_embedding"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            dynamo=True, external_data=size > _PROTOBUF_BYTES, verbose=False,
        )  # fmt: skip


def verify_onnx(
    folder: Path,
    params: nnx.State,
    config: ModelConfig,
    pooling: PoolingConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
) -> float:
    """Runs the graph at two batch sizes and lengths, and compares it with `params`.

    Args:
      folder: with what `write_onnx` wrote.
      params: what was exported.
      config: their shape.
      pooling: from hidden states to an embedding.
      tokenizer: cuts texts; padding is set here.
      texts: at least two.
    Returns: the largest absolute difference of an embedding's coordinate, at most 1e-5.
    Raises: RuntimeError when it is more.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX_FOLDER / ONNX_FILE)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")  # noqa: S106  No secret.
    longest_first = sorted(texts, key=len, reverse=True)
    largest = 0.0
    for batch in (longest_first, longest_first[-(len(texts) // 2) :]):
        encodings = tokenizer.encode_batch(batch)
        ids_NL = np.array([e.ids for e in encodings], np.int64)
        mask_NL = np.array([e.attention_mask for e in encodings], np.int64)
        (theirs_ND,) = session.run(
            ["sentence_embedding"], {"input_ids": ids_NL, "attention_mask": mask_NL}
        )
        ours_ND = np.asarray(embed_padded(config, pooling, params, ids_NL, mask_NL))
        largest = max(largest, float(np.abs(theirs_ND - ours_ND).max()))
    # Written so that NaN fails too.
    if not largest <= _LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"embeddings of {folder / ONNX_FOLDER / ONNX_FILE} differ from the model's by "
            f"{largest:.1e}, expected at most {_LARGEST_DIFFERENCE:.0e}"
        )
    return largest


@partial(jax.jit, static_argnums=(0, 1))
def embed_padded(
    config: ModelConfig,
    pooling: PoolingConfig,
    params: nnx.State,
    ids_NL: np.ndarray,
    mask_NL: np.ndarray,
) -> jax.Array:
    """Embeddings [N, E] of padded texts, as the exported folder and its graph must give them."""
    ids, mask = jnp.asarray(ids_NL, jnp.int32), jnp.asarray(mask_NL, jnp.int32)
    return embed(config, pooling, params, ids, mask, 1, normalize=pooling.normalize)[:, 0]
