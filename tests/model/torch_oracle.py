"""torch's T5 encoder with the same weights as ours, and a tiny shape to compare them at."""

import numpy as np
import torch
import transformers

from jina_jax.config import T5Config
from jina_jax.model.encoder import config_to_huggingface

TINY = T5Config(
    vocab_size=101, d_model=24, d_kv=8, d_ff=48, num_layers=3, num_heads=4,
    relative_attention_num_buckets=16, relative_attention_max_distance=20,
)  # fmt: skip


def torch_encoder(config: T5Config) -> transformers.T5EncoderModel:
    """A random `T5EncoderModel` whose every weight matters.

    Norm scales start at 1 in T5, which would hide a scale that is not applied.
    """
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**config_to_huggingface(config)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model.eval()


def numpy_tensors(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
