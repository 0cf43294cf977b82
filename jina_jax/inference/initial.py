"""The parameters that a run starts from."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint.checkpoints import is_run, load_checkpoint
from jina_jax.config import RunConfig, T5Config
from jina_jax.config.files import difference
from jina_jax.devices.mesh import param_shardings, put
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import read_encoder
from jina_jax.model.t5 import from_huggingface, init_params


def initial_params(config: RunConfig, mesh: Mesh) -> Any:
    """Reads `train.initial_weights`, or draws parameters from `train.seed`.

    Args:
      config: of the run.
      mesh: each of its devices makes or takes its own part.
    Raises: UserError when the folder is of another shape than `config.model`.
    """
    draw, key = partial(init_params, config.model), jax.random.key(config.train.seed)
    shardings = param_shardings(jax.eval_shape(draw, key), mesh)
    if not config.train.initial_weights:
        return jax.jit(draw, out_shardings=shardings)(key)
    shape, params = _read(config)
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
    return put(params, shardings)


def _read(config: RunConfig) -> tuple[T5Config, Any]:
    """Shape and parameters of a run's newest checkpoint, or of a Hugging Face model."""
    folder = Path(config.train.initial_weights).expanduser()
    if is_run(folder):
        trained = load_checkpoint(folder)
        return trained.config, trained.params
    shape, tensors = read_encoder(config.train.initial_weights)
    return shape, from_huggingface(tensors, shape)
