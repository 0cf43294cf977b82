"""The optimizers, behind a global-norm clip, with a warm-up and a schedule."""

import jax
import jax.numpy as jnp
import optax

from jina_jax.config import OptimConfig


def learning_rate_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ..., num_steps - 1.

    Rises linearly from peak / warmup_steps to the peak over the warm-up, then
    `constant` stays; `linear` and `cosine` fall to final_share · peak at num_steps;
    `rsqrt` is peak · sqrt(warmup / t).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    final = config.final_share

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        done = jnp.clip((t - warmup) / max(1, num_steps - warmup), 0.0, 1.0)
        shape = {
            "constant": jnp.ones_like(done),
            "linear": 1 - (1 - final) * done,
            "cosine": final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "rsqrt": jnp.sqrt(max(1, warmup) / jnp.maximum(t + 1, max(1, warmup))),
        }[config.schedule]
        return peak * jnp.where(t < warmup, (t + 1) / max(1, warmup), shape)

    return schedule


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clips, scales, decays and steps; weight decay acts on matrices, not on norm scales.

    Source: AdamW, Loshchilov & Hutter 2019 (arXiv 1711.05101); Adafactor, Shazeer & Stern 2018
    (arXiv 1804.04235), with the learning rate of the schedule and not relative to the parameters;
    Lion, Chen et al. 2023 (arXiv 2302.06675).
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        *_scaling(config),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )


def _scaling(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    dtype = jnp.dtype(config.moment_dtype)
    if config.optimizer == "adamw":
        return (optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype),)
    if config.optimizer == "lion":
        return (optax.scale_by_lion(config.b1, config.b2, mu_dtype=dtype),)
    return optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
