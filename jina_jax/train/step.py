"""One optimization step: a pure function of the state and a packed batch, and its optimizer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jina_jax.checkpoint.state import Params, TemperatureState, TrainState
from jina_jax.config import (
    LossConfig,
    ModelConfig,
    OptimConfig,
    PoolingConfig,
    RunConfig,
    TrainConfig,
)
from jina_jax.devices.memory import (
    as_out_of_memory,
    does_not_fit,
    local_memory_bytes,
    program_bytes,
)
from jina_jax.devices.mesh import param_shardings, replicated, split_first_axis
from jina_jax.feed.batch import PackedBatch
from jina_jax.model.attention import Kernel
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.encoder import embed, init_params
from jina_jax.model.family import Execution
from jina_jax.model.pooling import first_dimensions
from jina_jax.train.gradcache import encode_in_chunks
from jina_jax.train.loss.contrastive import LossOutput, Terms, contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.slots import take_slots


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


Metrics = dict[str, Array]


def init_state(config: RunConfig, params: Params) -> TrainState:
    """The state before the first step."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    temperature = None
    if config.loss.learn_temperature:
        log_temperature = jnp.log(jnp.float32(config.loss.temperature))
        temperature = TemperatureState(log_temperature, optimizer.init(log_temperature))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), temperature)


def embed_texts(
    params: Params,
    batch: PackedBatch,
    config: ModelConfig,
    *,
    pooling: PoolingConfig = PoolingConfig(),
    texts_per_row: int,
    chunk_rows: int,
    execution: Execution,
    sharding: LossSharding,
    dropout_key: Array | None,
) -> Float32[Array, "B T D"]:
    """Embeddings of a packed batch, one per text, unit length, divided over all devices by pairs.

    Rows are encoded where they lie, `chunk_rows` of them at a time where that is not 0; then the
    pooled texts are gathered, since a text may lie on another device than its partner.
    """

    def encode(params: Params, rows: tuple[Array, ...], execution: Execution) -> Array:
        ids_ML, segments_ML, pooled_ML, row_M = rows
        key = None if dropout_key is None else DropoutKey(dropout_key, row_M)
        return embed(
            config, pooling, params, ids_ML, segments_ML, texts_per_row,
            pooled_RL=pooled_ML, dropout_key=key, execution=execution,
        )  # fmt: skip

    pooled_RL = batch.segments_RL if batch.pooled_RL is None else batch.pooled_RL
    rows = batch.ids_RL, batch.segments_RL, pooled_RL, jnp.arange(len(batch.ids_RL))
    if chunk_rows:
        # Each device has its own rows there, and nothing is left to pin.
        z_RSD = encode_in_chunks(
            partial(encode, execution=execution), params, rows,
            chunk_rows=chunk_rows, mesh=sharding.mesh,
        )  # fmt: skip
    else:
        # Without this the compiler may divide hidden states as the parameters are divided.
        tokens = split_first_axis(sharding.mesh)
        pin = partial(jax.lax.with_sharding_constraint, shardings=tokens)
        z_RSD = encode(params, rows, execution._replace(pin=pin))
    return take_slots(z_RSD.reshape(-1, z_RSD.shape[-1]), batch.slot_BT, sharding)


def batch_loss(
    params: Params, batch: PackedBatch, config: RunConfig, mesh: Mesh, dropout_key: Array | None,
    log_temperature: Array | None = None,
) -> tuple[Array, Metrics]:  # fmt: skip
    """Loss and metrics of one global batch.

    The batch is of triplets where it has more than two texts a record. `log_temperature` is given
    where it is learned.

    Returns: (loss, the other fields of `LossOutput` by name).
    """
    # Each device compares its own pairs with all others, whatever the axes of the mesh are for.
    sharding = LossSharding(mesh, config.loss.gather, config.loss.tile_bytes)
    z_BTD = embed_texts(
        params, batch, config.model, pooling=config.pooling,
        texts_per_row=config.feed.texts_per_row, chunk_rows=config.train.grad_cache_rows,
        execution=_execution(config.train, mesh), sharding=sharding, dropout_key=dropout_key,
    )  # fmt: skip
    temperature: float | Array = config.loss.temperature
    if log_temperature is not None:
        temperature = jnp.exp(log_temperature)
    output = _loss(z_BTD, batch, config.loss, temperature, sharding)
    metrics = output._asdict()
    loss = metrics.pop("loss")
    dims = config.loss.matryoshka_dims
    weights = config.loss.matryoshka_weights or (1.0,) * len(dims)
    for count, weight in zip(dims, weights, strict=True):
        z_BTE = first_dimensions(z_BTD, count)
        output = _loss(z_BTE, batch, config.loss, temperature, sharding)
        loss += weight * output.loss
        metrics |= {f"loss_at_{count}": output.loss, f"accuracy_at_{count}": output.accuracy}
    return loss, {name: value for name, value in metrics.items() if value is not None}


def _execution(config: TrainConfig, mesh: Mesh) -> Execution:
    """How layers are run; a CPU attends row by row, where the rows are not divided."""
    kernel: Kernel = "cudnn" if config.attention == "cudnn" else "at_once"
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        kernel = "by_row"
    return Execution(config.scan_layers, config.remat, kernel)


def _loss(
    z_BTD: Array,
    batch: PackedBatch,
    loss: LossConfig,
    temperature: float | Array,
    sharding: LossSharding,
) -> LossOutput:
    has_negatives = batch.slot_BT.shape[1] > 2
    teacher_BS = None
    if loss.distill_weight > 0:
        scale = loss.distill_triplet_scale if has_negatives else loss.distill_pair_scale
        teacher_BS = scale * batch.teacher_BS
    return contrastive_loss(
        z_BTD[:, 0], z_BTD[:, 1], z_BTD[:, 2:] if has_negatives else None,
        temperature=temperature,
        sharding=sharding,
        terms=Terms(
            loss.query_weight, loss.positive_weight, loss.margin_weight, loss.margin,
            loss.distill_weight,
        ),
        identity_BT=batch.identity_BT if loss.mask_false_negatives else None,
        has_negative_BN=batch.slot_BT[:, 2:] >= 0 if has_negatives else None,
        teacher_BS=teacher_BS,
    )  # fmt: skip


def _train_step(
    state: TrainState, batch: PackedBatch, *, config: RunConfig, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """One step; where its loss or gradient is not finite, only the step number changes."""
    dropout_key = None
    if config.model.has_dropout:
        dropout_key = jax.random.fold_in(jax.random.key(config.train.seed + 1), state.step)
    log_temperature = None if state.temperature is None else state.temperature.log_temperature
    (loss, metrics), (grads, temperature_grad) = jax.value_and_grad(
        batch_loss, argnums=(0, 5), has_aux=True
    )(state.params, batch, config, mesh, dropout_key, log_temperature)
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    temperature = state.temperature
    if temperature is not None:
        metrics["temperature"] = jnp.exp(temperature.log_temperature)
        temperature = _update_temperature(temperature, temperature_grad, config)
    gradient_norm = optax.tree.norm((grads, temperature_grad))
    # A norm is finite only where every part of the gradient is.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    metrics = metrics | {
        "loss": loss,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(config.optim, config.train.num_steps)(state.step),
        "skipped": 1.0 - is_finite,
    }
    changed = optax.apply_updates(state.params, updates), opt_state, temperature
    before = state.params, state.opt_state, state.temperature
    kept = jax.tree.map(partial(jnp.where, is_finite), changed, before)
    return TrainState(state.step + 1, *kept), metrics


def _update_temperature(
    state: TemperatureState, gradient: Array, config: RunConfig
) -> TemperatureState:
    """One step of the temperature, and back into its bounds."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    update, opt_state = optimizer.update(gradient, state.opt_state, state.log_temperature)
    log_temperature = jnp.clip(
        state.log_temperature + update,
        math.log(config.loss.min_temperature), math.log(config.loss.max_temperature),
    )  # fmt: skip
    return TemperatureState(log_temperature, opt_state)


def state_shapes(config: RunConfig) -> TrainState:
    """Shapes and dtypes of a state, without values."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(
        lambda key: init_state(config, init_params(config.model, key, config.pooling)), key
    )


def state_shardings(config: RunConfig, mesh: Mesh) -> TrainState:
    """Sharding of the train state; the optimizer's moments are sharded like their parameters."""
    state, everywhere = state_shapes(config), replicated(mesh)
    params = param_shardings(state.params, mesh, config.model)

    def beside(kept: Any, param: Any, sharding: Any) -> Any:
        return sharding if kept.shape == param.shape else everywhere

    opt_state = optax.tree_utils.tree_map_params(
        make_optimizer(config.optim, config.train.num_steps), beside,
        state.opt_state, state.params, params, transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    temperature = jax.tree.map(lambda _: everywhere, state.temperature)
    return TrainState(everywhere, params, opt_state, temperature)


def batch_shardings(mesh: Mesh, pooling: PoolingConfig = PoolingConfig()) -> PackedBatch:
    """Sharding of a batch: rows are divided, the index of texts is replicated."""
    rows, everywhere = split_first_axis(mesh), replicated(mesh)
    pooled = rows if pooling.skips_prompt else None
    return PackedBatch(rows, rows, everywhere, everywhere, everywhere, pooled)


def make_train_step(
    config: RunConfig, mesh: Mesh
) -> Callable[[TrainState, PackedBatch], tuple[TrainState, Metrics]]:
    """The compiled step; it reuses the memory of the state it is given."""
    state = state_shardings(config, mesh)
    return jax.jit(
        partial(_train_step, config=config, mesh=mesh),
        in_shardings=(state, batch_shardings(mesh, config.pooling)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
    )


class CompiledStep:
    """`make_train_step`, which says so where a step does not fit, before it runs."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._step: Any = make_train_step(config, mesh)
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def knows(self, batch: PackedBatch) -> bool:
        """Whether the step is compiled for batches of this shape."""
        return _shape(batch) in self._compiled

    def compile(self, state: TrainState, batch: PackedBatch) -> None:
        """Compiles the step for the shape of a batch.

        Raises: OutOfMemory with what to change, when it doesn't fit.
        """
        try:
            compiled = self._step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            raise as_out_of_memory(error, self._config, self._mesh.size) from error
        memory = compiled.memory_analysis()
        if memory is not None:
            devices = self._mesh.local_devices
            needed = program_bytes(memory, devices[0].platform)
            available = local_memory_bytes(devices)
            if needed > available:
                raise does_not_fit(
                    f"a step of {len(batch.ids_RL)} rows of {batch.ids_RL.shape[1]} tokens needs "
                    f"{needed / 2**30:,.2f} GiB a device, and there are {available / 2**30:,.2f}",
                    self._config, self._mesh.size,
                )  # fmt: skip
        self._compiled[_shape(batch)] = compiled

    def __call__(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, Metrics]:
        """Runs a step, which was compiled before; it reuses the memory of the state."""
        found: tuple[TrainState, Metrics] = self._compiled[_shape(batch)](state, batch)
        return found


def _shape(batch: PackedBatch) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in batch if array is not None)
