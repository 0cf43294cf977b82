"""The parameters that a run starts from."""

from typing import Any

import jax

from jina_jax.config import RunConfig
from jina_jax.config_file import difference
from jina_jax.errors import UserError
from jina_jax.hf_folder import read_encoder
from jina_jax.model.t5 import init_params
from jina_jax.model.weights import from_huggingface


def initial_params(config: RunConfig) -> Any:
    """Reads `train.initial_weights`, or draws parameters from `train.seed`.

    Raises: UserError when the folder is of another shape than `config.model`.
    """
    if not config.train.initial_weights:
        return init_params(config.model, jax.random.key(config.train.seed))
    shape, tensors = read_encoder(config.train.initial_weights)
    free = {"dropout_rate", "compute_dtype"}
    wanted, found = (
        {k: v for k, v in vars(c).items() if k not in free} for c in (config.model, shape)
    )
    if wanted != found:
        raise UserError(
            f"{config.train.initial_weights} has another shape than the config's model "
            f"(config → folder):\n  "
            + "\n  ".join(f"model.{line}" for line in difference(wanted, found))
        )
    return from_huggingface(tensors, config.model)
