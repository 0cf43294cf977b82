"""What a run starts from: the model that its config names, and its parameters."""

import dataclasses
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint.checkpoints import RunModel, is_run, load_checkpoint, read_run_model
from jina_jax.config import (
    ModelConfig,
    PoolingConfig,
    PromptConfig,
    RunConfig,
    TokenizerConfig,
)
from jina_jax.config.files import difference, local_folder
from jina_jax.devices.mesh import param_shardings, put
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import (
    SentenceModel,
    find_folder,
    read_params,
    read_sentence_config,
)
from jina_jax.model.encoder import init_params
from jina_jax.model.huggingface import DTYPES
from jina_jax.system.files import is_url


def with_named_model(config: RunConfig) -> RunConfig:
    """A configuration whose `model` is a folder or an id, with what that says in its place.

    Shape, weights, tokenizer, pooling, prompts and the longest text come from there. Fields that
    the config has set to something else than their defaults stay as they are.

    Args:
      config: as a config file gives it; any whose model is a shape is given back as it is.
    Raises: UserError when the folder cannot be found, or is of no model that is known here.
    """
    name = config.model
    if not isinstance(name, str):
        return config
    found, tokenizer = _named(name)
    data, feed, longest = config.data, config.feed, found.max_tokens
    source = tokenizer if data.tokenizer == TokenizerConfig() else data.tokenizer.source
    has_pooling, has_prompts = config.pooling != PoolingConfig(), data.prompts != PromptConfig()
    replace = dataclasses.replace
    return replace(
        config,
        model=found.config,
        pooling=config.pooling if has_pooling else found.pooling,
        data=replace(
            data,
            tokenizer=replace(data.tokenizer, source=source),
            prompts=data.prompts if has_prompts else found.prompts,
            max_text_tokens=min(data.max_text_tokens, longest),
        ),
        feed=replace(
            feed,
            query_tokens=min(feed.query_tokens, longest),
            positive_tokens=min(feed.positive_tokens, longest),
        ),
        train=replace(config.train, initial_weights=config.train.initial_weights or name),
    )


def _named(name: str) -> tuple[RunModel | SentenceModel, str]:
    """What a name says of a model, and where its tokenizer lies."""
    folder = local_folder(name)
    if is_run(folder):
        return read_run_model(folder), str(folder / "tokenizer")
    return read_sentence_config(find_folder(folder if is_url(name) else name)), name


def initial_params(config: RunConfig, mesh: Mesh) -> Any:
    """Reads `train.initial_weights`, or draws parameters from `train.seed`.

    Args:
      config: of the run.
      mesh: each of its devices makes or takes its own part.
    Raises: UserError when the folder is of another shape than `config.model`.
    """
    draw = partial(init_params, config.model, pooling=config.pooling)
    key = jax.random.key(config.train.seed)
    shardings = param_shardings(jax.eval_shape(draw, key), mesh, config.model)
    if not config.train.initial_weights:
        return jax.jit(draw, out_shardings=shardings)(key)
    found, params = _read(config)
    wanted = parameter_shape(config.model, config.pooling)
    if problems := difference(wanted, parameter_shape(*found)):
        raise UserError(
            f"{config.train.initial_weights} has another shape than the config's model "
            f"(config → folder):\n  " + "\n  ".join(problems)
        )
    return put(params, shardings)


def parameter_shape(model: ModelConfig, pooling: PoolingConfig) -> dict[str, Any]:
    """What parameters must agree in, as field → value."""
    of_model = {k: v for k, v in vars(model).items() if "dropout" not in k and k not in DTYPES}
    of_pooling = {"dense_dimensions": pooling.dense_dimensions}
    if pooling.dense_dimensions:
        of_pooling["dense_bias"] = pooling.dense_bias
    return {f"model.{k}": v for k, v in of_model.items()} | {
        f"pooling.{k}": v for k, v in of_pooling.items()
    }


def _read(config: RunConfig) -> tuple[tuple[ModelConfig, PoolingConfig], Any]:
    """Shape and parameters of a run's newest checkpoint, or of a Hugging Face model."""
    name = config.train.initial_weights
    folder = local_folder(name)
    if is_run(folder):
        trained = load_checkpoint(folder)
        return (trained.config, trained.pooling), trained.params
    folder = find_folder(folder if is_url(name) else name)
    model = read_sentence_config(folder)
    return (model.config, model.pooling), read_params(folder, model)
