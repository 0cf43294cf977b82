"""The optimizer: the course of its learning rate, what it does to which parameter, its update."""

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from jina_jax.checkpoint.state import Params
from jina_jax.config import OptimConfig, RunConfig
from jina_jax.model.encoder import DENSE, is_embedding, param_name
from jina_jax.model.lora import ADAPTER_FACTORS

_MATRICES = ("kernel", *ADAPTER_FACTORS)
"""How names of the matrices of linear maps and of their adapters end."""


def learning_rate_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ..., num_steps - 1.

    Rises linearly from peak / warmup to the peak over the warm-up, then `constant` stays;
    `linear` and `cosine` fall to final_share · peak at num_steps; `rsqrt` is
    peak · sqrt(warmup / t).
    """
    peak, warmup = config.learning_rate, config.warmup(num_steps)
    rest, final = max(1, num_steps - warmup), config.final_share
    start = max(1, warmup)
    after_warmup: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, final),
        "rsqrt": lambda t: peak * jnp.sqrt(start / jnp.maximum(t + warmup + 1, start)),
    }
    if not warmup:
        return after_warmup[config.schedule]
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, after_warmup[config.schedule]], [warmup])


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clips, scales, decays and steps. The learning rate is that of the count in the last of the
    states.

    Source: AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); Adafactor, Shazeer & Stern 2018
    (arXiv 1804.04235), with the learning rate of the schedule and not relative to the parameters;
    Lion, Chen et al. 2023 (arXiv 2302.06675); Muon, Jordan et al. 2024
    (kellerjordan.github.io/posts/muon) and Liu et al. 2025 (arXiv 2502.16982).
    """
    decay = optax.add_decayed_weights(config.weight_decay, mask=partial(_decays, config))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        *_scaling(config),
        # Joined, so that the states of runs of earlier versions keep their places.
        optax.chain(decay, optax.stateless(lambda updates, _: _with_own_rates(config, updates))),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )


def _decays(config: OptimConfig, params: Params) -> Any:
    """Which parameters decay."""

    def of(path: Any, _: Any) -> bool:
        name = param_name(path)
        return name.endswith(_MATRICES) or (config.decay_embeddings and is_embedding(name))

    return jax.tree_util.tree_map_with_path(of, params)


def _scaling(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    """From gradients to updates at a learning rate of 1."""
    dtype = jnp.dtype(config.moment_dtype)
    if config.optimizer == "lion":
        return (optax.scale_by_lion(config.b1, config.b2, mu_dtype=dtype),)
    if config.optimizer == "adafactor":
        return optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    if config.optimizer == "adamw":
        return (adam,)
    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=config.muon_momentum, eps=config.eps, mu_dtype=dtype,
            weight_dimension_numbers=partial(
                jax.tree.map, lambda _: optax.contrib.MuonDimensionNumbers()
            ),
        ),
        optax.stateless_with_tree_map(lambda matrix, _: _muon_size(config, *matrix.shape) * matrix),
    )  # fmt: skip

    def labels(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if _is_of_layer(param_name(path)) else "adamw", params
        )

    return (optax.partition({"muon": muon, "adamw": adam}, labels),)


def _muon_size(config: OptimConfig, in_size: int, out_size: int) -> float:
    if config.muon_scale == "rms":
        return 0.2 * math.sqrt(max(in_size, out_size))
    return math.sqrt(max(1.0, out_size / in_size))


def _is_of_layer(name: str) -> bool:
    """Whether a parameter is a matrix of a layer."""
    return name.startswith("blocks/") and name.endswith(_MATRICES)


def _with_own_rates(config: OptimConfig, updates: Any) -> Any:
    """Updates times the share that a parameter's own learning rate is of the schedule's."""
    named = [param_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    layers = 1 + max((_layer(name) for name in named), default=-1)
    of_adam = 1.0
    if config.optimizer == "muon" and config.adam_learning_rate is not None:
        of_adam = config.adam_learning_rate / config.learning_rate

    def scaled(path: Any, update: Array) -> Array:
        name = param_name(path)
        share = config.layer_decay ** _layers_above(name, layers)
        return update * (share if _is_of_layer(name) else share * of_adam)

    return jax.tree_util.tree_map_with_path(scaled, updates)


def _layer(name: str) -> int:
    """Number of the layer that a parameter is of; -1 where it is of none."""
    found = re.match(r"blocks/(\d+)/", name)
    return int(found[1]) if found else -1


def _layers_above(name: str, layers: int) -> int:
    """Layers between a parameter and the embedding of a text."""
    if _layer(name) >= 0:
        return layers - 1 - _layer(name)
    # The temperature has no name.
    return 0 if name.startswith(("final_norm/", f"{DENSE}/")) or not name else layers


def update(
    config: RunConfig, step: Array, gradients: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """The optimizer's update; its schedule goes by the step, which skipped ones count in too."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    *before, schedule = opt_state
    return optimizer.update(gradients, (*before, schedule._replace(count=step)), params)


def beside_parameters(opt_state: Any, params: Params, shardings: Any, everywhere: Any) -> Any:
    """Sharding of an optimizer's state: a moment lies where its parameter does.

    Args:
      opt_state: of `make_optimizer(...).init`, as arrays or shapes.
      params: what it is of.
      shardings: of `params`.
      everywhere: of what has no parameter of its own shape: counts, rows and columns.
    Returns: a pytree like `opt_state`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {
        path: (x.shape, at)
        for (path, x), at in zip(leaves, jax.tree.leaves(shardings), strict=True)
    }

    def of(path: Any, kept: Any) -> Any:
        # The path of a moment ends with that of its parameter.
        ends = (found[path[i:]] for i in range(len(path)) if path[i:] in found)
        shape, at = next(ends, (None, everywhere))
        return at if shape == kept.shape else everywhere

    return jax.tree_util.tree_map_with_path(of, opt_state)
