"""The optimizers, behind a global-norm clip, with a warm-up and a schedule."""

import jax
import jax.numpy as jnp
import optax

from jina_jax.config import OptimConfig


def learning_rate_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of step t = 0, 1, ..., num_steps - 1.

    Rises linearly from peak / warmup_steps to the peak over the warm-up, then `constant` stays;
    `linear` and `cosine` fall to final_share · peak at num_steps; `rsqrt` is
    peak · sqrt(warmup / t).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
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
